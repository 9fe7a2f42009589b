"""Properties of the source text itself, so that reviews can be about behaviour.

Every rule is a function from a file to the lines that break it; a finding names file, line and
rule. Exceptions are listed here with their reason, and an exception that is no longer needed fails.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("operator", "dataplane", "proto", "charts", "deploy")
FOLDERS = (*PRODUCT, ".ci", "tests", "benchmarks", "docs")
LINES_PER_FILE_MAX = 500
LINES_PER_FUNCTION_MAX = 60
COLUMNS_MAX = 100

PYTHON = frozenset({".py"})
NATIVE = frozenset({".c", ".h", ".pyx", ".pxi", ".pxd"})
CODE = PYTHON | NATIVE | {".pyi"}
TEXT = CODE | {".sh", ".md", ".toml", ".yaml", ".yml", ".proto", ".tpl", ".txt", ".cmake", ""}
# Generated stubs, build folders, the licence text, git's own file in a linked checkout.
NOT_OURS = re.compile(r"_pb2(_grpc)?\.pyi?$|(^|/)(__pycache__|node_modules)/|^(\.git|LICENSE)$")

# path, or path::function for the length of one function -> why it may break the rule
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

# Built from halves so that this file does not contain what it looks for.
BANNED = {
    "TO" + "DO": "file an issue instead",
    "FIX" + "ME": "fix it, or file an issue",
    "XX" + "X": "say what is meant",
    "/wo" + "rk/": "a path of one machine",
    "/ho" + "me/": "a path of one machine",
    "/ro" + "ot/": "a path of one machine",
    "--index" + "-url": "registries are the user's configuration",
    "pypi" + ".org": "registries are the user's configuration",
    "helper" + " agent": "the text is about MemKV, not about how it was written",
}


class Finding(NamedTuple):
    """One broken rule; line 0 is the whole file."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class Source(NamedTuple):
    """One file of the project."""

    path: str
    text: str

    @property
    def suffix(self) -> str:
        return Path(self.path).suffix

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")


def sources(root: Path, suffixes: frozenset[str]) -> Iterator[Source]:
    top = [path for path in sorted(root.iterdir()) if path.is_file()]
    below = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*")))
    for path in [*top, *below]:
        name = path.relative_to(root).as_posix()
        if path.suffix in suffixes and path.is_file() and not NOT_OURS.search(name):
            yield Source(name, path.read_text(encoding="utf-8"))


def findings(
    rule: Callable[[Source], Iterator[Finding]], suffixes: frozenset[str], root: Path = ROOT
) -> list[str]:
    return [str(found) for source in sources(root, suffixes) for found in rule(source)]


# --- rules of one file -----------------------------------------------------------------------


def too_wide(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.lines, 1):
        if len(line) > COLUMNS_MAX:
            yield Finding(source.path, number, f"{len(line)} columns (at most {COLUMNS_MAX})")


def too_long(source: Source) -> Iterator[Finding]:
    count = len(source.lines)
    if count > LINES_PER_FILE_MAX and source.path not in LONG_FILES:
        yield Finding(source.path, 0, f"{count} lines (at most {LINES_PER_FILE_MAX}): split it")


class Parsed(NamedTuple):
    """What the rules ask of a file of Python. The trees of all files would take much memory."""

    functions: list[tuple[str, int, int]]
    calls: list[tuple[str, ast.Call]]
    """Of what is named in WATCHED."""
    has_docstring: bool


WATCHED = frozenset({"time", "sleep"})


@functools.cache
def parsed(text: str) -> Parsed:
    """Parse a file once for all rules."""
    tree = ast.parse(text)
    found = Parsed([], [], ast.get_docstring(tree) is not None)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            found.functions.append((node.name, node.lineno, length))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            last = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if last in WATCHED:
                found.calls.append((ast.unparse(node.func), node))
    return found


def python_functions(source: Source) -> Iterator[tuple[str, int, int]]:
    yield from parsed(source.text).functions


def c_functions(source: Source) -> Iterator[tuple[str, int, int]]:
    """Bodies between a `{` that ends an unindented definition and the next unindented `}`."""
    start, name = 0, ""
    for number, line in enumerate(source.lines, 1):
        if found := re.match(r"[A-Za-z_][\w\s*]*?(\w+)\(", line):
            start, name = number, found.group(1)
        elif line.startswith("}") and start:
            yield name, start, number - start + 1
            start = 0


def cython_functions(source: Source) -> Iterator[tuple[str, int, int]]:
    """From a line with `def name(` to the last line that is indented deeper."""
    open_: list[tuple[str, int, int]] = []
    last = 0
    for number, line in enumerate([*source.lines, "end"], 1):
        if not line.strip() or line.lstrip().startswith(("#", ")")):
            continue
        indent = len(line) - len(line.lstrip())
        while open_ and indent <= open_[-1][1]:
            name, _, start = open_.pop()
            yield name, start, last - start + 1
        if found := re.match(r"\s*(?:def|cdef|cpdef)\b[^(=]*?(\w+)\(", line):
            open_.append((found.group(1), indent, number))
        last = number


def functions(source: Source) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of each function."""
    reader = {".py": python_functions, ".c": c_functions, ".h": c_functions}
    return reader.get(source.suffix, cython_functions)(source)


def long_functions(source: Source) -> Iterator[Finding]:
    for name, start, count in functions(source):
        if count > LINES_PER_FUNCTION_MAX and f"{source.path}::{name}" not in LONG_FUNCTIONS:
            limit = LINES_PER_FUNCTION_MAX
            yield Finding(source.path, start, f"{name} has {count} lines (at most {limit})")


def banned_words(source: Source) -> Iterator[Finding]:
    if not any(word in source.text for word in BANNED):
        return
    for number, line in enumerate(source.lines, 1):
        for word, reason in BANNED.items():
            if re.search(rf"(?<![\w.]){re.escape(word)}", line):
                yield Finding(source.path, number, f"{word}: {reason}")


def comments(source: Source) -> Iterator[tuple[int, str]]:
    """Comments of Python; whole lines of the rest, which no tokenizer here understands."""
    if source.suffix not in PYTHON:
        yield from enumerate(source.lines, 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def silent_suppressions(source: Source) -> Iterator[Finding]:
    """A suppression names its code and says why: `noqa: E402  imports need the path first`."""
    if "ignore" not in source.text and "noqa" not in source.text:
        return
    for number, line in comments(source):
        if re.search(r"#\s*type:\s*ignore(?!\[[\w, -]+\]\s+#\s*\S)", line):
            yield Finding(source.path, number, "write `# type: ignore[code]  # reason`")
        if re.search(r"#\s*noqa(?!:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*\s+\S)", line):
            yield Finding(source.path, number, "write `# noqa: CODE  reason`")


def missing_docstring(source: Source) -> Iterator[Finding]:
    if source.text.strip() and not parsed(source.text).has_docstring:
        yield Finding(source.path, 1, "a module starts with a docstring that states its rules")


def real_clock(source: Source) -> Iterator[Finding]:
    if source.path.endswith("/clock.py"):
        return
    for name, node in parsed(source.text).calls:
        if name == "time.time":
            message = "only clock.py reads the wall clock: take a Clock, or time.monotonic"
            yield Finding(source.path, node.lineno, message)


def sleeping_tests(source: Source) -> Iterator[Finding]:
    """`asyncio.sleep(0)` gives way to other tasks and waits for nothing: allowed."""
    for name, node in parsed(source.text).calls:
        zero = [ast.unparse(argument) for argument in node.args] == ["0"]
        if source.is_test and name.split(".")[-1] == "sleep" and not zero:
            message = "a test waits for an event with a deadline, never for time"
            yield Finding(source.path, node.lineno, message)


UNSAFE_C = re.compile(r"\b(strcpy|strcat|sprintf|vsprintf|gets|alloca|strtok|atoi|system)\s*\(")
ALLOCATION = re.compile(r"(\w+)\s*=\s*[^=;]*?\b(?:malloc|calloc|realloc|aligned_alloc|strdup)\s*\(")
LINES_TO_CHECK = 6


def unsafe_native(source: Source) -> Iterator[Finding]:
    """Calls without a length, and allocations whose result is not compared soon after.

    Test programs may crash on a failed allocation; sanitizers watch their bounds.
    """
    if source.is_test:
        return
    lines = source.lines
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith(("#", "//", "*", "/*")):
            continue
        if found := UNSAFE_C.search(line):
            yield Finding(source.path, number, f"{found.group(1)} has no bound or is not reentrant")
        if found := ALLOCATION.search(line):
            name = re.escape(found.group(1))
            check = rf"!\s*[\w.>-]*\b{name}\b|\b{name}\b\s*(==|!=|is)|not\s+[\w.]*\b{name}\b"
            if not re.search(check, "\n".join(lines[number - 1 : number + LINES_TO_CHECK])):
                message = f"{found.group(1)} is used without a check that the allocation worked"
                yield Finding(source.path, number, message)


RULES: dict[str, tuple[Callable[[Source], Iterator[Finding]], frozenset[str]]] = {
    "lines are at most 100 columns wide": (too_wide, CODE),
    "files are at most 500 lines long": (too_long, CODE),
    "functions are at most 60 lines long": (long_functions, PYTHON | NATIVE),
    "no banned words": (banned_words, frozenset(TEXT)),
    "suppressions give a reason": (silent_suppressions, CODE),
    "modules have a docstring": (missing_docstring, PYTHON),
    "time is an argument": (real_clock, PYTHON),
    "tests never sleep": (sleeping_tests, PYTHON),
    "native code checks allocations and bounds": (unsafe_native, NATIVE),
}


@pytest.mark.parametrize("name", RULES)
def test_source_text(name: str) -> None:
    rule, suffixes = RULES[name]
    found = findings(rule, suffixes)
    assert not found, "\n" + "\n".join(found)


def test_exceptions_are_still_needed() -> None:
    for path in LONG_FILES:
        assert len((ROOT / path).read_text().splitlines()) > LINES_PER_FILE_MAX, path
    for entry in LONG_FUNCTIONS:
        path, name = entry.split("::")
        source = Source(path, (ROOT / path).read_text())
        lengths = [count for found, _, count in functions(source) if found == name]
        assert max(lengths, default=0) > LINES_PER_FUNCTION_MAX, entry


# --- rules of the tree -----------------------------------------------------------------------


def test_roots_are_not_packages() -> None:
    """`operator/__init__.py` would hide the standard library's module; tests are not a package."""
    roots = [ROOT / name for name in ("operator", "dataplane", "proto", "tests")]
    found = [path / "__init__.py" for path in roots if (path / "__init__.py").exists()]
    found += sorted((ROOT / "tests").rglob("__init__.py"))
    assert not found, f"remove {found}"


def requirement_pins(path: Path) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition("==")
        pins.setdefault(name.lower(), set()).add(rest.split(";")[0].strip())
    return pins


def test_pinned_versions_agree() -> None:
    """Both lock files and every exact pin of pyproject.toml name the same version."""
    folder = ROOT / "deploy/dev"
    locked = requirement_pins(folder / "requirements.txt")
    peers = requirement_pins(folder / "requirements-peers.txt")
    wanted = re.findall(r'"([\w-]+)(?:\[\w+\])?==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    for name, version in wanted:
        assert version in locked.get(name, peers.get(name, set())), f"{name}: run `make lock`"
    for name in locked.keys() & peers.keys():
        assert locked[name] == peers[name], f"{name}: run `make lock`"


# --- the rules themselves --------------------------------------------------------------------

BROKEN = {
    "dataplane/a.py": (
        "import time\nnow = time.time()\nx = 1  # type: ignore\ny = 2  # noqa\n" + "#" * 101
    ),
    "dataplane/long.py": '"""Doc."""\ndef f():\n' + "    pass\n" * 60,
    "dataplane/many.py": '"""Doc."""\n' + "\n" * 500,
    "dataplane/a.c": "int f(int a)\n{\n" + "    a++;\n" * 60 + "}\n\nchar *g = malloc(1);\n",
    "dataplane/a.pyx": "cdef class A:\n    def f(self):\n" + "        pass\n" * 60 + "\nx = 1\n",
    "tests/test_a.py": '"""Doc."""\n\ntime.sleep(1)\nasyncio.sleep(0)\n' + "# TO" + "DO later\n",
}
EXPECTED = {
    "lines are at most 100 columns wide": ["dataplane/a.py:5"],
    "files are at most 500 lines long": ["dataplane/many.py:0"],
    "functions are at most 60 lines long": [
        "dataplane/a.c:1", "dataplane/a.pyx:2", "dataplane/long.py:2",
    ],
    "no banned words": ["tests/test_a.py:5"],
    "suppressions give a reason": ["dataplane/a.py:3", "dataplane/a.py:4"],
    "modules have a docstring": ["dataplane/a.py:1"],
    "time is an argument": ["dataplane/a.py:2"],
    "tests never sleep": ["tests/test_a.py:3"],
    "native code checks allocations and bounds": ["dataplane/a.c:65"],
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules_find_what_they_look_for(name: str, tmp_path: Path) -> None:
    for path, text in BROKEN.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    rule, suffixes = RULES[name]
    found = [":".join(line.split(":")[:2]) for line in findings(rule, suffixes, tmp_path)]
    assert found == EXPECTED[name]
