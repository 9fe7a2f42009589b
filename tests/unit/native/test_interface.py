"""The .pyi, the native module and the oracle name the same things with the same arguments."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import memkv
from memkv import _hotpath
from memkv.testing import hotpath_oracle as oracle

STUB = Path(memkv.__file__).with_name("_hotpath.pyi")


def mirrored_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield dotted names of the sums and index sections; special methods apart."""
    text = STUB.read_text().split("# --- ring.pxi")[0]
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("__"):
                    yield f"{node.name}.{method.name}", method


FUNCTIONS = dict(mirrored_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_there_twice(name: str) -> None:
    stub = FUNCTIONS[name]
    if any(isinstance(decorator, ast.Name) for decorator in stub.decorator_list):
        pytest.skip("a property; the stateful test reads it")
    twin: object = oracle
    for part in name.split("."):
        twin = getattr(twin, part)
    assert callable(twin)
    assert list(inspect.signature(twin).parameters) == [argument.arg for argument in stub.args.args]


@pytest.mark.parametrize("name", sorted({name.split(".")[0] for name in FUNCTIONS}))
def test_a_name_is_native(name: str) -> None:
    stubbed = {method.split(".")[1] for method in FUNCTIONS if method.startswith(f"{name}.")}
    assert stubbed <= set(dir(getattr(_hotpath, name)))
