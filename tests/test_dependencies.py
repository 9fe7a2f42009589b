"""What the product imports when it runs is declared in pyproject.toml, or it is not there."""

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = {"memkv", "memkv_operator", "memkv_proto"}
MODULES_OF = {  # of a distribution, where its name is another one
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "protobuf": "google",
    "prometheus-client": "prometheus_client",
}
PRODUCT = [
    path
    for folder in ("dataplane/memkv", "operator/memkv_operator", "proto/memkv_proto")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "testing" not in path.parts
]


EXTRAS = {  # what is imported only where it is wanted -> the rooms that may
    "operator": ("operator/memkv_operator", "dataplane/memkv/metadata/kubernetes"),
    "rdma": ("dataplane/memkv/rdma",),
}
ENGINES = {"vllm", "lmcache", "sglang", "torch"}
"""What the integrations import when an engine loads them: its own, never declared here."""


def declared(path: Path) -> set[str]:
    """Return the modules that a file may import besides the standard library and MemKV's own."""
    engines = ENGINES if path.is_relative_to(ROOT / "dataplane/memkv/integrations") else set()
    return engines | declared_for(
        *(
            extra
            for extra, rooms in EXTRAS.items()
            if any(path.is_relative_to(ROOT / room) for room in rooms)
        )
    )


@functools.cache
def declared_for(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(name for extra in extras for name in optional[extra]),
    ]
    names = [text.split(">")[0].split("=")[0].split("[")[0] for text in requirements]
    return {MODULES_OF.get(name, name.replace("-", "_")) for name in names}


def imported_at_run_time(node: ast.AST) -> Iterator[str]:
    """Yield the packages imported anywhere but below TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # most of a tree, and without statements in it
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0]
        yield from imported_at_run_time(child)


@pytest.mark.parametrize("folder", ["dataplane", "operator", "proto"])
def test_what_is_imported_is_declared(folder: str) -> None:
    known = OWN | set(sys.stdlib_module_names)
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in PRODUCT
        if path.is_relative_to(ROOT / folder)
        for name in imported_at_run_time(ast.parse(path.read_text(encoding="utf-8")))
        if name not in known | declared(path)
    }
    assert not unknown


def test_every_room_is_a_package() -> None:
    """Import contracts see packages only; a folder without `__init__.py` would escape them."""
    rooms = {path.parent for path in (ROOT / "dataplane/memkv").rglob("*.py")}
    assert [str(room) for room in sorted(rooms) if not (room / "__init__.py").exists()] == []
