"""The chart's README is what its template and values make, and every value is described."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]


def load_generator() -> ModuleType:
    path = ROOT / "deploy/dev/chart_readme.py"
    spec = importlib.util.spec_from_file_location("chart_readme", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_new() -> None:
    page = (ROOT / "charts/memkv/README.md").read_text(encoding="utf-8")
    assert page == load_generator().page(), "run python deploy/dev/chart_readme.py"


def test_every_value_is_described() -> None:
    table = load_generator().table((ROOT / "charts/memkv/values.yaml").read_text(encoding="utf-8"))
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 50
    assert [row for row in rows if len(row) < 4 or len(row[3]) < 4] == []


def test_table_is_that_of_helm_docs() -> None:
    values = (
        "# of the file\n\na:\n  # -- First,\n  # and more\n  b: [1, x]\n  c: null\n# -- All\nd:\n"
        '  e: {g: "<", f: true}\n  # -- Own\n  h: 1.5\n'
    )
    table = load_generator().table(values.replace("null", "{}"))
    assert table.splitlines()[2:] == [
        '| a.b | list | `[1,"x"]` | First, and more |',
        "| a.c | object | `{}` |  |",
        '| d | object | `{"e":{"f":true,"g":"<"},"h":1.5}` | All |',
        "| d.h | float | `1.5` | Own |",
    ]


def test_commands_name_files_that_exist() -> None:
    page = (ROOT / "charts/memkv/README.md").read_text(encoding="utf-8")
    paths = re.findall(r"\b((?:charts|deploy)/[\w./-]+\w)", page)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
