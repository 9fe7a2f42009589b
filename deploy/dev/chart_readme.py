"""Writes charts/memkv/README.md from README.md.gotmpl, in the conventions of helm-docs.

Only what that template uses is understood: fields of Chart.yaml and the table of values, whose
descriptions are the comments `# --` of values.yaml. So the page needs no Go to be made and checked;
helm-docs 1.14.2 makes the same one.

    python deploy/dev/chart_readme.py
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts/memkv"
FIELD = re.compile(r'\{\{ template "chart\.(\w+)" \. \}\}')
TYPES = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "object"}
HEAD = "| Key | Type | Default | Description |\n|-----|------|---------|-------------|\n"


def page() -> str:
    """Return the whole page."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = (CHART / "values.yaml").read_text(encoding="utf-8")

    def field(match: re.Match[str]) -> str:
        name = match[1]
        return table(values) if name == "valuesTable" else str(chart[name])

    template = (CHART / "README.md.gotmpl").read_text(encoding="utf-8")
    return FIELD.sub(field, template)


def table(values: str) -> str:
    """Return the table of the values of a values.yaml, sorted by key."""
    rows = sorted(rows_of(cast(yaml.MappingNode, yaml.compose(values)), values.splitlines()))
    return HEAD + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rows_of(
    mapping: yaml.MappingNode, lines: list[str], path: str = "", described: bool = False
) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and description of each value; what lies below a described one is
    shown only when it is described itself."""
    for key, node in mapping.value:
        name = f"{path}.{key.value}" if path else str(key.value)
        text = description(lines, key.start_mark.line)
        inner = isinstance(node, yaml.MappingNode) and bool(node.value)
        if text or not (inner or described):
            value = yaml.load(yaml.serialize(node), Loader=yaml.SafeLoader)
            default = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
            yield name, TYPES[type(value)], f"`{default}`", text
        if inner:
            yield from rows_of(cast(yaml.MappingNode, node), lines, name, described or bool(text))


def description(lines: list[str], line: int) -> str:
    """Return the comment `# --` right above a line, "" when there is none."""
    above: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        text = lines[line].strip().removeprefix("#").strip()
        if text.startswith("-- "):
            return " ".join([text.removeprefix("-- "), *above])
        above.insert(0, text)
    return ""


if __name__ == "__main__":
    (CHART / "README.md").write_text(page(), encoding="utf-8")
