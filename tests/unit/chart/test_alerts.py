"""Every alert of the chart fires when it should and is quiet when not, by promtool's own rules.

A case is figures as Prometheus would have scraped them, one a minute (`1x4 0x9`: five times 1, then
ten times 0), and the minute at which ALERTS is looked at.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from memkv_operator.testing.crds import objects, read_yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "charts/memkv/files/alerts.yaml"
ALERTS = [str(rule["alert"]) for rule in objects(objects(read_yaml(RULES), "groups")[0], "rules")]

NODE = '{namespace="ns",pool="a",node="n1"}'
SHOWN_NODE = 'namespace="ns",pool="a",node="n1"'
POOL = 'namespace="ns",pool="a"'
WARNING, CRITICAL = 'severity="warning"', 'severity="critical"'
DAY_S = 24 * 3600
ENDS = f'memkv_tls_cert_expiry_timestamp_seconds{{{POOL},certificate="node"}}'
READY = f'memkv_pool_condition{{{POOL},type="Ready",status="True"}}'
HEARD = 'memkv_operator_last_watch_event_timestamp_seconds{resource="nodes"}'
FAILED = 'memkv_operator_reconcile_total{result="failed"}'


@dataclass(frozen=True, slots=True)
class Case:
    """`fires`: labels of the alert, beside its name; empty: it is quiet."""

    alert: str
    why: str
    minute: int
    series: dict[str, str] = field(default_factory=dict)
    fires: str = ""


def counter(name: str, values: str) -> dict[str, str]:
    return {f"memkv_{name}_total{NODE}": values}


def on_node(name: str, values: str) -> dict[str, str]:
    return {f"memkv_{name}{NODE}": values}


def of_pool(name: str, state: str, values: str) -> dict[str, str]:
    return {f'memkv_pool_{name}{{{POOL},state="{state}"}}': values}


def epochs(metadata: str, worker: str) -> dict[str, str]:
    return {
        f'memkv_metadata_map_epoch{{{POOL},node="m1"}}': metadata,
        f"memkv_worker_map_epoch{NODE}": worker,
        # Another pool, far ahead: each is compared with its own metadata service.
        'memkv_metadata_map_epoch{namespace="ns",pool="b",node="m2"}': "900x99",
    }


def leaders(first: str, second: str) -> dict[str, str]:
    return {f'memkv_operator_leader{{pod="{p}"}}': v for p, v in (("a", first), ("b", second))}


ON_NODE = f"{WARNING},{SHOWN_NODE}"
OF_POOL = f"{WARNING},{POOL}"
CASES = [
    Case("MemKVWorkerNotReady", "down", 11, on_node("worker_ready", "1x4 0x20"), ON_NODE),
    Case("MemKVWorkerNotReady", "just down", 9, on_node("worker_ready", "1x4 0x20")),
    Case("MemKVWorkerNotReady", "up", 30, on_node("worker_ready", "1x60")),
    Case(
        "MemKVWorkerRestarting", "often", 29,
        counter("worker_restarts", "0x9 1+1x9 10x40"), ON_NODE,
    ),
    Case("MemKVWorkerRestarting", "twice", 29, counter("worker_restarts", "0x9 1x9 2x40")),
    Case("MemKVWorkerRestarting", "long ago", 60, counter("worker_restarts", "0x2 1+1x9 10x80")),
    Case("MemKVDriveErrors", "reads", 8, counter("store_read_errors", "5x5 6x20"), ON_NODE),
    Case("MemKVDriveErrors", "damage", 8, counter("store_corrupt", "0x5 1x20"), ON_NODE),
    Case("MemKVDriveErrors", "writes", 8, counter("store_flush_errors", "0x5 1x20"), ON_NODE),
    Case("MemKVDriveErrors", "long ago", 40, counter("store_read_errors", "5x5 6x60")),
    Case(
        "MemKVMassLossSuspected", "frozen", 5,
        on_node("metadata_mass_loss_suspected", "0x2 1x20"), f"{CRITICAL},{SHOWN_NODE}",
    ),
    Case(
        "MemKVMassLossSuspected", "a moment", 6,
        on_node("metadata_mass_loss_suspected", "0x2 1 0x20"),
    ),
    Case(
        "MemKVMetadataUnreachable", "cut", 11,
        on_node("node_metadata_connected", "1x4 0x20"), ON_NODE,
    ),
    Case(
        "MemKVMetadataUnreachable", "again there", 11,
        on_node("node_metadata_connected", "1x4 0x3 1x20"),
    ),
    Case("MemKVMapBehind", "stuck", 12, epochs("7x4 9x20", "7x40"), ON_NODE),
    Case("MemKVMapBehind", "late, then follows", 12, epochs("7x4 9x20", "7x6 9x20")),
    Case("MemKVPutsRefused", "full", 25, counter("store_puts_refused", "0x4 0+5x40"), ON_NODE),
    Case("MemKVPutsRefused", "a burst", 25, counter("store_puts_refused", "0x4 0+50x5 250x40")),
    Case(
        "MemKVPeersDisagree", "always", 25,
        counter("connection_protocol_errors", "0+1x40"), ON_NODE,
    ),
    Case("MemKVPeersDisagree", "once", 25, counter("connection_protocol_errors", "0x4 1x40")),
    Case("MemKVPoolNotReady", "not", 15, {READY: "1x2 0x30"}, OF_POOL),
    Case("MemKVPoolNotReady", "not yet", 9, {READY: "0x30"}),
    Case("MemKVPoolNotReady", "Ready", 20, {READY: "1x30"}),
    Case(
        "MemKVSlotsUnassigned", "some", 5,
        of_pool("slots", "unassigned", "0x2 8x20"), f"{CRITICAL},{POOL}",
    ),
    Case("MemKVSlotsUnassigned", "moving", 5, of_pool("slots", "moving", "8x20")),
    Case("MemKVNodesLost", "one", 10, of_pool("nodes", "lost", "0x2 1x20"), OF_POOL),
    Case("MemKVNodesLost", "came back", 10, of_pool("nodes", "lost", "0x2 1x3 0x20")),
    Case("MemKVOperatorWithoutLeader", "nobody", 10, leaders("0x20", "0x20"), WARNING),
    Case("MemKVOperatorWithoutLeader", "taken over", 12, leaders("1x4 0x20", "0x6 1x20")),
    Case("MemKVReconcilesFail", "always", 45, {FAILED: "0+1x60"}, WARNING),
    Case("MemKVReconcilesFail", "for a while", 45, {FAILED: "0+1x15 15x60"}),
    Case("MemKVWatchSilent", "dead", 50, {HEARD: "0+60x5 300x60"}, WARNING),
    Case("MemKVWatchSilent", "lives", 50, {HEARD: "0+60x60"}),
    Case(
        "MemKVCertificateExpires", "soon", 70, {ENDS: f"{13 * DAY_S}x90"},
        f'{WARNING},{POOL},certificate="node"',
    ),
    Case("MemKVCertificateExpires", "not soon", 70, {ENDS: f"{15 * DAY_S}x90"}),
    Case("MemKVCertificateExpires", "renewed", 70, {ENDS: f"{13 * DAY_S}x30 {90 * DAY_S}x60"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> str:
    """The path of promtool; skips where none can be had."""
    script = ROOT / "deploy/dev/promtool.sh"
    done = subprocess.run([script], capture_output=True, text=True, timeout=300)
    said = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    if done.returncode == 77:
        pytest.skip(said)
    assert done.returncode == 0, done.stderr
    return said


def verdict(promtool: str, case: Case, folder: Path) -> tuple[bool, str]:
    """Return whether ALERTS is what the case says, and what promtool says."""
    shown = f'ALERTS{{alertname="{case.alert}",alertstate="firing"'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": v} for name, v in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f"{shown}}}",
                "eval_time": f"{case.minute}m",
                "exp_samples": [{"labels": f"{shown},{case.fires}}}", "value": 1}]
                if case.fires
                else [],
            }
        ],
    }
    file = folder / "test.yaml"
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.why}")
def test_alert(promtool: str, tmp_path: Path, case: Case) -> None:
    right, said = verdict(promtool, case, tmp_path)
    assert right, said


def test_a_wrong_expectation_is_seen(promtool: str, tmp_path: Path) -> None:
    """So the other tests would see an alert that changed."""
    firing, quiet = CASES[0], CASES[1]
    wrong = [
        Case(firing.alert, "", firing.minute, firing.series),
        Case(quiet.alert, "", quiet.minute, quiet.series, ON_NODE),
        Case(firing.alert, "", firing.minute, firing.series, CRITICAL),
    ]
    assert [verdict(promtool, case, tmp_path)[0] for case in wrong] == [False] * 3


def test_the_file_is_valid(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tried_both_ways(alert: str) -> None:
    assert {bool(case.fires) for case in CASES if case.alert == alert} == {True, False}
