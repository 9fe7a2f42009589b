"""Alerts and dashboard read what the real exporters serve, by labels that they have there.

tests/unit/chart/test_alert_states.py brings the exporters into the state of each alert.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from memkv.testing.clock import ManualClock
from memkv_operator.api.names import NODES
from memkv_operator.run.metrics import OperatorMetrics
from memkv_operator.testing import exporters
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.pool_model import PoolModel

CHART = Path(__file__).resolve().parents[3] / "charts/memkv"
SELECTOR = re.compile(r"\b(memkv_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
SHOWN = re.compile(r"\$labels\.(\w+)")


def served() -> dict[str, list[dict[str, str]]]:
    """Name of a series -> the labels it is served with."""
    model = PoolModel(64, 5)
    for name in ("a", "b"):
        model.join(name)
    model.pass_time(10)
    used = OperatorMetrics(ManualClock())
    for result in ("ok", "failed", "bug"):
        used.reconciles.labels(result)
    used.requested("GET", 200)
    used.heard_of(NODES)
    used.show_ends("inference/pool-a", {"node": 0.0})
    scrapes = (
        exporters.node(),
        exporters.metadata(model.shard_map),
        exporters.agent(),
        exporters.pools(model.status),
        exporters.scrape(used.registry, exporters.OPERATOR),
    )
    found: dict[str, list[dict[str, str]]] = {}
    for series in exporters.merged(scrapes):
        name, labels = exporters.labels_of(series)
        found.setdefault(name, []).append(labels)
    return found


SERVED = served()


def expressions() -> Iterator[tuple[str, str]]:
    for group in objects(read_yaml(CHART / "files/alerts.yaml"), "groups"):
        for rule in objects(group, "rules"):
            yield str(rule["alert"]), str(rule["expr"])
    for path in sorted(CHART.glob("files/dashboards/*.json")):
        dashboard = cast(Object, json.loads(path.read_text(encoding="utf-8")))
        for panel in objects(dashboard, "panels"):
            for target in objects(panel, "targets"):
                yield f"panel {panel['title']} {target['refId']}", str(target["expr"])


def faults(expression: str) -> list[str]:
    """Return what an expression asks for and nobody serves."""
    found = []
    wanted = {label for group in GROUPING.findall(expression) for label in split(group)}
    for name, matchers in SELECTOR.findall(expression):
        if name not in SERVED:
            found.append(f"{name} is not exported")
            continue
        labels = set.intersection(*(set(one) for one in SERVED[name]))
        asked = {label for label, _, _ in MATCHER.findall(matchers)} | wanted
        found += [f"{name} has no label {label}" for label in sorted(asked - labels)]
    return found


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


@pytest.mark.parametrize(("place", "expression"), list(expressions()), ids=str)
def test_what_is_read_is_exported_with_the_labels_it_is_read_by(
    place: str, expression: str
) -> None:
    assert not faults(expression), place


def test_what_nobody_exports_is_seen() -> None:
    """So the test above would see it."""
    assert faults("memkv_store_missed > 0") == ["memkv_store_missed is not exported"]
    assert faults('memkv_pool_slots{status="x"}') == ["memkv_pool_slots has no label status"]
    assert faults("max by (pod) (memkv_worker_ready)") == ["memkv_worker_ready has no label pod"]


def test_annotations_show_labels_that_the_alert_has() -> None:
    for group in objects(read_yaml(CHART / "files/alerts.yaml"), "groups"):
        for rule in objects(group, "rules"):
            expression = str(rule["expr"])
            kept = {label for one in GROUPING.findall(expression) for label in split(one)}
            if "group_right" in expression or not expression.startswith(("max by", "sum")):
                name = SELECTOR.findall(expression)[-1 if "group_right" in expression else 0][0]
                kept |= {label for labels in SERVED[name] for label in labels}
            shown = {
                x for text in child(rule, "annotations").values() for x in SHOWN.findall(str(text))
            }
            assert shown <= kept, rule["alert"]
