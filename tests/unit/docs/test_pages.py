"""The pages: links lead somewhere, tables say what the code says, commands are ones that parse."""

import importlib.util
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from memkv.cli import main as cli
from memkv.cli import parsing, settings

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
names = [page.relative_to(ROOT).as_posix() for page in PAGES]


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", names)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("#"):
            continue
        path = (page.parent / target.partition("#")[0]).resolve()
        assert path.exists(), f"{name} links to {target}"


@pytest.mark.parametrize(
    "name", ["configuration", "exit codes", "statuses", "operator metrics", "agent metrics"]
)
def test_tables_of_the_manual_say_what_the_code_says(name: str) -> None:
    reference = load_reference()
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert reference.section(page, name) == reference.STATIC[name](), (
        "run python docs/reference.py"
    )


def test_every_table_of_a_configuration_file_is_in_the_manual() -> None:
    assert {field.section for field in cli.all_fields()} == set(load_reference().SECTIONS)


def commands(name: str) -> Iterator[str]:
    """Yield the `memkv` commands of the shell blocks of a page."""
    for language, block in FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
        if language not in ("", "sh", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition("#")[0].strip().removeprefix(".venv/bin/")
            if words.startswith("memkv "):
                yield words


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_commands_that_are_shown_parse(name: str) -> None:
    shown = list(commands(name))
    assert shown
    for line in shown:
        words = shlex.split(line)[1:]
        command = cli.load(parsing.name_of(words, cli.HELP))
        arguments = parsing.build_parser(cli.HELP, words[0], command).parse_args(words)
        settings.resolve(command.fields, [settings.flag_source(vars(arguments))])


def test_the_readme_has_two_commands_to_begin_with() -> None:
    first = FENCE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert first is not None
    lines = [line.partition("#")[0].strip() for line in first[2].splitlines()]
    assert [line for line in lines if line] == ["make demo", "make test"]


def test_configuration_of_the_manual_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(page) if language == "toml"]
    assert blocks
    for block in blocks:
        path = tmp_path / "memkv.toml"
        path.write_text(block)
        fields = cli.all_fields()
        settings.resolve(fields, [settings.file_source(path, fields, fields)])


def test_pictures_are_well_formed() -> None:
    for picture in (ROOT / "docs/images").glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert picture.name in "".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_the_track_record_names_tests_that_exist() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("test_*.*")
        if path.suffix in (".py", ".c")
    }
    known = {name for text in sources.values() for name in re.findall(r"\btest_\w+(?=\()", text)}
    rows = [
        line.strip("| \n").split(" | ")
        for line in (ROOT / "docs/track-record.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| found by"))
    ]
    assert rows
    for row in rows:
        assert len(row) == 3, row
        files = re.findall(r"tests/[\w/]+\.\w+", row[2])
        tests = re.findall(r"\btest_\w+\b(?!\.)", row[2])
        assert files or tests, f"no test is named: {row}"
        assert set(files) <= sources.keys(), row
        assert set(tests) <= known, row
