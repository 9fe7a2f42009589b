"""Writes the tables of docs/operations.md that say what the code says, and compares them with it.

    python docs/reference.py                        writes the configuration tables anew
    python docs/reference.py NODE_URL METADATA_URL  also the metrics, from a pool that was used

tests/unit/docs and tests/e2e/test_metrics.py compare; they never write.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.request import urlopen

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memkv.agent.metrics import AgentCollector, AgentView
from memkv.cli import exits, main
from memkv.cli.connection import EXPLANATIONS
from memkv.cli.exits import Exit
from memkv.cli.settings import Field
from memkv.clock import SystemClock
from memkv.status import Status
from memkv_operator.api.names import POOLS
from memkv_operator.run.metrics import OperatorMetrics, PoolCollector
from memkv_operator.run.view import ClusterView
from memkv_proto import agent_admin_pb2

PAGE = Path(__file__).parent / "operations.md"
SECTIONS = {
    "": "Of several commands, at the top of the file",
    "up": "`memkv up`, table `[up]`",
    "node": "`memkv node`, table `[node]`",
    "metadata": "`memkv metadata`, table `[metadata]`",
    "agent": "`memkv agent`, table `[agent]`",
    "demo": "`memkv demo`, table `[demo]`",
    "replay": "`memkv replay`, table `[replay]`",
    "bench": "`memkv bench`, table `[bench]`",
    "top": "`memkv top`, table `[top]`",
}
LABELS_NOT_SHOWN = {"le"}


def configuration() -> str:
    """Return a table of fields for each section."""
    fields = main.all_fields()
    parts = []
    for section, title in SECTIONS.items():
        rows = [row_of(field) for field in fields if field.section == section]
        head = ["flag", "variable", "name in the file", "default", "meaning"]
        parts.append(f"{title}:\n\n{markdown(head, rows)}")
    return "\n\n".join(parts)


def row_of(field: Field[object]) -> list[str]:
    default = field.default_text or ("off" if field.is_switch else "")
    shown = f"`{default}`" if default and not field.default_shown else default
    return [f"`{field.flag}`", f"`{field.variable}`", f"`{field.name}`", shown, field.help]


def exit_codes() -> str:
    """Return the table of exit codes."""
    return markdown(["code", "meaning"], [[str(int(c)), exits.MEANINGS[c]] for c in Exit])


def statuses() -> str:
    """Return the table of negative results."""
    rows = [[str(int(s)), f"`{s.name}`", EXPLANATIONS[s]] for s in Status if s in EXPLANATIONS]
    return markdown(["value", "name", "meaning, and what to do"], rows)


def metrics(text: str) -> str:
    """Return a table of what a /metrics page serves."""
    rows = []
    for family in text_string_to_metric_families(text):
        labels = {name for sample in family.samples for name in sample.labels}
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = ", ".join(sorted(labels - LABELS_NOT_SHOWN))
        rows.append([f"`{name}`", family.type, shown, family.documentation])
    return markdown(["name", "type", "labels", "meaning"], sorted(rows))


def operator_metrics() -> str:
    """Return the table of the operator's metrics, each used once so that its labels show."""
    view = ClusterView(lambda key: None)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    meta = {"name": "pool", "namespace": "pools", "uid": "1", "resourceVersion": "1"}
    view.changed(POOLS, {"metadata": meta, "spec": {}, "status": {"conditions": [ready]}})
    used = OperatorMetrics(SystemClock())
    used.registry.register(PoolCollector(view))
    used.reconciles.labels("ok")
    used.requested("GET", 200)
    used.heard_of(POOLS)
    used.show_ends("pools/pool", {"node": 0.0})
    return metrics(generate_latest(used.registry).decode())


def agent_metrics() -> str:
    """Return the table of an agent's metrics, of one that has a drive and handed it out."""
    facts = agent_admin_pb2.AgentFacts(
        disks=[agent_admin_pb2.AgentDisk(id="nvme-1", health_known=True)],
        assignments=[agent_admin_pb2.AssignmentFacts(resource="drives.memkv.io/a-1")],
    )
    registry = CollectorRegistry()
    registry.register(AgentCollector(lambda: AgentView(facts)))
    return metrics(generate_latest(registry).decode())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                     for row in lines)  # fmt: skip


def replaced(page: str, name: str, content: str) -> str:
    """Return the page with what is between the marks of `name` replaced."""
    marks = rf"(<!-- {name} -->\n)(?:.*?)(\n<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda found: found[1] + content + found[2], page, flags=re.S)
    if count != 1:
        raise ValueError(f"{PAGE.name} has {count} places for {name}")
    return new


def section(page: str, name: str) -> str:
    """Return what is between the marks of `name`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", page, flags=re.S)
    if found is None:
        raise ValueError(f"{PAGE.name} has no place for {name}")
    return found[1]


STATIC = {
    "configuration": configuration, "exit codes": exit_codes, "statuses": statuses,
    "operator metrics": operator_metrics, "agent metrics": agent_metrics,
}  # fmt: skip


def fetched(url: str) -> str:
    """Return a /metrics page."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def write(arguments: Sequence[str]) -> None:
    """Write the tables anew."""
    page = PAGE.read_text(encoding="utf-8")
    for name, content in STATIC.items():
        page = replaced(page, name, content())
    for name, url in zip(("node metrics", "metadata metrics"), arguments, strict=False):
        page = replaced(page, name, metrics(fetched(url)))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1:])
