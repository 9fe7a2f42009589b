"""Every alert of the chart fires when it should and is quiet when not, by promtool's own rules.

A case is figures as Prometheus would have scraped them, one a minute (`1x4 0x9`: five times 1, then
ten times 0), and the minute at which ALERTS is looked at.
"""

from pathlib import Path

import pytest

from memkv_operator.testing.crds import objects, read_yaml
from memkv_operator.testing.promtool import RULES, Case, run_promtool, verdict

GROUPS = objects(read_yaml(RULES), "groups")
ALERTS = [str(rule["alert"]) for group in GROUPS for rule in objects(group, "rules")]

NODE = '{namespace="ns",pool="a",node="n1"}'
SHOWN_NODE = 'namespace="ns",pool="a",node="n1"'
POOL = 'namespace="ns",pool="a"'
WARNING, CRITICAL = 'severity="warning"', 'severity="critical"'
DAY_S = 24 * 3600
ENDS = f'memkv_tls_cert_expiry_timestamp_seconds{{{POOL},certificate="node"}}'
READY = f'memkv_pool_condition{{{POOL},type="Ready",status="True"}}'
REASON_LOST = 'reason="MassLossSuspected"'
FROZEN = f'memkv_pool_condition{{{POOL},type="ShardMapPublished",status="False",{REASON_LOST}}}'
PAUSED = f'memkv_pool_condition{{{POOL},type="Paused",status="True",reason="PausedBySpec"}}'
WORN = 'memkv_agent_drive_wear_ratio{namespace="ns",node="n1",drive="d"}'
VERSIONS = f"memkv_pool_versions{{{POOL}}}"
FAILED = 'memkv_operator_reconcile_total{result="failed"}'
BUGS = 'memkv_operator_reconcile_total{result="bug"}'


def counter(name: str, values: str) -> dict[str, str]:
    return {f"memkv_{name}_total{NODE}": values}


def on_node(name: str, values: str) -> dict[str, str]:
    return {f"memkv_{name}{NODE}": values}


def drive(state: str) -> str:
    return f'memkv_store_drive_state{{{NODE[1:-1]},state="{state}"}}'


def rails(usable: str, unusable: str) -> dict[str, str]:
    return {
        **on_node("rdma_rails_usable", usable), **on_node("rdma_rails_unusable", unusable),
    }


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
    return {
        f"memkv_operator_leader{{{of_operator(o)}}}": v for o, v in (("a", first), ("b", second))
    }


def of_operator(instance: str) -> str:
    return f'job="operator",instance="{instance}"'


def heard(leader: str, other: str, resource: str = "nodes") -> dict[str, str]:
    """Of two replicas; a leads."""
    name = "memkv_operator_last_watch_event_timestamp_seconds"
    series = {
        f'{name}{{{of_operator(o)},resource="{resource}"}}': v
        for o, v in (("a", leader), ("b", other))
    }
    return {**series, **leaders("1x99", "0x99")}


def stated(type_: str, reason: str, values: str) -> dict[str, str]:
    """A condition of a pool that is False."""
    labels = f'{POOL},type="{type_}",status="False",reason="{reason}"'
    return {f"memkv_pool_condition{{{labels}}}": values}


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
        "MemKVDriveFaulted", "faulted", 8, {drive("faulted"): "0x4 1x20"},
        f'{CRITICAL},{SHOWN_NODE},state="faulted"',
    ),
    Case("MemKVDriveFaulted", "suspect", 8, {drive("suspect"): "1x20", drive("faulted"): "0x20"}),
    Case(
        "MemKVMassLossSuspected", "frozen", 5,
        on_node("metadata_mass_loss_suspected", "0x2 1x20"), f"{CRITICAL},{SHOWN_NODE}",
    ),
    Case(
        "MemKVMassLossSuspected", "a moment", 6,
        on_node("metadata_mass_loss_suspected", "0x2 1 0x20"),
    ),
    Case(
        "MemKVMassLossSuspected", "said by the operator", 5, {FROZEN: "0x2 1x20"},
        f"{CRITICAL},{POOL}",
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
    Case("MemKVSlotsUnserved", "some", 15, of_pool("slots", "unserved", "0x2 8x20"), OF_POOL),
    Case("MemKVSlotsUnserved", "moved", 15, of_pool("slots", "unserved", "0x2 8x3 0x20")),
    Case("MemKVSlotsUnserved", "moving", 15, of_pool("slots", "moving", "8x20")),
    Case("MemKVNodesLost", "one", 10, of_pool("nodes", "lost", "0x2 1x20"), OF_POOL),
    Case("MemKVNodesLost", "came back", 10, of_pool("nodes", "lost", "0x2 1x3 0x20")),
    Case("MemKVOperatorWithoutLeader", "nobody", 10, leaders("0x20", "0x20"), WARNING),
    Case("MemKVOperatorWithoutLeader", "no pod is left", 10, {}, WARNING),
    Case("MemKVOperatorWithoutLeader", "no pod any more", 20, leaders("1x4", "0x4"), WARNING),
    Case("MemKVOperatorWithoutLeader", "taken over", 12, leaders("1x4 0x20", "0x6 1x20")),
    Case("MemKVReconcilesFail", "always", 45, {FAILED: "0+1x60"}, WARNING),
    Case("MemKVReconcilesFail", "for a while", 45, {FAILED: "0+1x15 15x60"}),
    Case("MemKVReconcilesFail", "a bug", 45, {BUGS: "0+1x60"}, WARNING),
    Case(
        "MemKVWatchSilent", "dead", 50, heard("0+60x5 300x60", "0+60x60"),
        f'{WARNING},{of_operator("a")},resource="nodes"',
    ),
    Case(
        "MemKVWatchSilent", "dead, of pools", 50, heard("0+60x5 300x60", "0+60x60", "memkvpools"),
        f'{WARNING},{of_operator("a")},resource="memkvpools"',
    ),
    Case("MemKVWatchSilent", "lives", 50, heard("0+60x60", "0+60x60")),
    Case("MemKVWatchSilent", "dead where nobody leads", 50, heard("0+60x60", "300x60")),
    Case(
        "MemKVDriveWorn", "nearly", 70, {WORN: "0.95x90"},
        f'{WARNING},namespace="ns",node="n1",drive="d"',
    ),
    Case(
        "MemKVDriveWorn", "said by the node", 70,
        {f'memkv_drive_wear_ratio{{{NODE[1:-1]},drive="d"}}': "0.95x90"},
        f'{ON_NODE},drive="d"',
    ),
    Case("MemKVDriveWorn", "half", 70, {WORN: "0.5x90"}),
    Case(
        "MemKVDrivesNotReady", "faulted", 20, stated("DrivesReady", "DriveFaulted", "1x30"),
        f'{OF_POOL},reason="DriveFaulted"',
    ),
    Case("MemKVDrivesNotReady", "ready", 20, stated("DrivesReady", "AllReady", "0x30")),
    Case(
        "MemKVUpdateStuck", "stopped", 20, stated("UpToDate", "DrainTimeout", "1x30"),
        f'{OF_POOL},reason="DrainTimeout"',
    ),
    Case("MemKVUpdateStuck", "goes on", 20, stated("UpToDate", "RollingUpdate", "1x30")),
    Case(
        "MemKVUpdateStuck", "paused by a person", 20,
        {**stated("UpToDate", "UpdatePaused", "1x30"), PAUSED: "1x30"},
    ),
    Case(
        "MemKVRDMAFallback", "over TCP", 20, stated("RDMAReady", "FallbackToTCP", "1x30"),
        f'{OF_POOL},reason="FallbackToTCP"',
    ),
    Case("MemKVRDMARailLost", "down", 30, rails("2x9 1x40", "0x9 1x40"), ON_NODE),
    Case("MemKVRDMARailLost", "just down", 20, rails("2x9 1x40", "0x9 1x40")),
    Case("MemKVRDMARailLost", "back", 40, rails("2x9 1x5 2x40", "0x9 1x5 0x40")),
    Case("MemKVRDMARailLost", "never plugged in", 30, rails("1x50", "1x50")),
    Case("MemKVRDMARailLost", "turned off", 30, rails("2x9 0x40", "0x50")),
    Case("MemKVRDMAFallback", "not asked yet", 20, stated("RDMAReady", "WaitingForNodes", "1x30")),
    Case("MemKVVersionsDiffer", "a day", 1450, {VERSIONS: "2x150"}, OF_POOL, 10),
    Case("MemKVVersionsDiffer", "an update", 1450, {VERSIONS: "1x20 2x60 1x90"}, "", 10),
    Case(
        "MemKVCertificateExpires", "soon", 70, {ENDS: f"{13 * DAY_S}x90"},
        f'{WARNING},{POOL},certificate="node"',
    ),
    Case("MemKVCertificateExpires", "not soon", 70, {ENDS: f"{15 * DAY_S}x90"}),
    Case("MemKVCertificateExpires", "renewed", 70, {ENDS: f"{13 * DAY_S}x30 {90 * DAY_S}x60"}),
]  # fmt: skip


@pytest.mark.parametrize("alert", ALERTS)
def test_alert(promtool: str, tmp_path: Path, alert: str) -> None:
    right, said = verdict(promtool, [case for case in CASES if case.alert == alert], tmp_path)
    assert right, said


def test_a_wrong_expectation_is_seen(promtool: str, tmp_path: Path) -> None:
    """So the other tests would see an alert that changed."""
    firing, quiet = CASES[0], CASES[1]
    wrong = [
        Case(firing.alert, "", firing.minute, firing.series),
        Case(quiet.alert, "", quiet.minute, quiet.series, ON_NODE),
        Case(firing.alert, "", firing.minute, firing.series, CRITICAL),
    ]
    assert [verdict(promtool, [case], tmp_path)[0] for case in wrong] == [False] * 3
    assert not verdict(promtool, [firing, quiet, wrong[0]], tmp_path)[0]


def test_the_file_is_valid(promtool: str) -> None:
    valid, said = run_promtool(promtool, "check", "rules", str(RULES))
    assert valid, said


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tried_both_ways(alert: str) -> None:
    assert {bool(case.fires) for case in CASES if case.alert == alert} == {True, False}
