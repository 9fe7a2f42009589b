"""Alerts and dashboards name metrics that exist, and every alert tells what to do."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from memkv_operator.testing.crds import Object, child, objects, read_yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts/memkv"
MANUAL = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
# The manual's tables are compared with the code by tests/unit/docs.
ROW = re.compile(r"^\| `(memkv_\w+)` \| (counter|gauge|histogram) \|", re.MULTILINE)
METRICS = dict(ROW.findall(MANUAL))
USED = re.compile(r"\bmemkv_\w+")
GROUPS = objects(read_yaml(CHART / "files/alerts.yaml"), "groups")
ALERTS = [rule for group in GROUPS for rule in objects(group, "rules")]


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    for path in sorted(CHART.glob("files/dashboards/*.json")):
        dashboard = cast(Object, json.loads(path.read_text(encoding="utf-8")))
        for panel in objects(dashboard, "panels"):
            for target in objects(panel, "targets"):
                yield f"{path.name}: {panel['title']}", str(target["expr"])
        for variable in objects(child(dashboard, "templating"), "list"):
            if variable["type"] == "query":
                query = str(child(variable, "query")["query"])
                yield f"{path.name}: ${variable['name']}", query


def unknown_metrics(expression: str) -> list[str]:
    names = {name for name in METRICS if METRICS[name] != "histogram"}
    for name, kind in METRICS.items():
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    return [name for name in USED.findall(expression) if name not in names]


def test_the_manual_lists_metrics() -> None:
    assert len(METRICS) > 40
    assert unknown_metrics("rate(memkv_store_puts[5m])") == ["memkv_store_puts"]


@pytest.mark.parametrize(("place", "expression"), list(dashboard_expressions()), ids=str)
def test_dashboard_shows_what_exists(place: str, expression: str) -> None:
    assert not unknown_metrics(expression), place
    assert USED.search(expression), place


def test_panels_have_their_own_numbers_and_places() -> None:
    for path in CHART.glob("files/dashboards/*.json"):
        dashboard = cast(Object, json.loads(path.read_text(encoding="utf-8")))
        panels = objects(dashboard, "panels")
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = {(child(panel, "gridPos")["x"], child(panel, "gridPos")["y"]) for panel in panels}
        assert len(places) == len(panels)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_names_metrics_that_exist_and_an_action(alert: Object) -> None:
    assert USED.search(str(alert["expr"]))
    assert not unknown_metrics(str(alert["expr"]))
    assert child(alert, "labels")["severity"] in ("warning", "critical")
    annotations = child(alert, "annotations")
    assert annotations.keys() == {"summary", "description"}
    assert re.search(rf"^\*\*{alert['alert']}\.\*\*", MANUAL, re.MULTILINE), (
        "docs/operations.md says nothing about it"
    )
