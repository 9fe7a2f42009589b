"""Each alert fires when the real exporters are in its state, and not while all is well."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memkv.metadata.kubernetes.json_values import JsonValue
from memkv.node.facts import Phase
from memkv.node.statistics import ConnectionCounts
from memkv.rdma.rails import RailStatistics
from memkv.store.statistics import Counters
from memkv.testing.clock import ManualClock
from memkv_operator.api.cluster import KubeNode, Rollout
from memkv_operator.api.names import POOLS
from memkv_operator.api.pool import read_pool
from memkv_operator.plan.actions import WritePoolStatus
from memkv_operator.plan.drives import Drive, DriveState
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.planner import Observed, plan
from memkv_operator.run.metrics import OperatorMetrics
from memkv_operator.testing import exporters
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.crds import objects, read_yaml
from memkv_operator.testing.exporters import Scrape
from memkv_operator.testing.pool_model import BAD_TAG, PoolModel
from memkv_operator.testing.promtool import RULES, Case, verdict

ALERTS = {
    str(rule["alert"]): str(rule["expr"])
    for group in objects(read_yaml(RULES), "groups")
    for rule in objects(group, "rules")
}
NAME = re.compile(r"\bmemkv_\w+")
DAY_S = 24 * 3600
ON_NODE = (
    'severity="warning",namespace="inference",pool="pool-a",node="n1",job="pools",instance="n1"'
)
ON_WORKER = f'{ON_NODE},worker="0"'
OF_POOL = 'severity="warning",namespace="inference",pool="pool-a"'
NO_RAIL = RailStatistics(problems={"mlx5_0/1": "it is DOWN"})

Scene = tuple[Scrape, int]
"""What is served, and how often it is scraped."""
STEPS_MINUTES = {"MemKVVersionsDiffer": 10}
"""Between scrapes, where it is not one: a day of minutes takes long."""


def served_pool(nodes: int = 4) -> PoolModel:
    """A pool that has served for a while."""
    model = PoolModel(64, 5)
    for number in range(nodes):
        model.join("abcdefgh"[number])
    model.pass_time(30, finished=True)
    assert model.condition("Ready")[0] == "True"
    return model


def with_lost_nodes(*names: str) -> PoolModel:
    model = served_pool()
    for name in names:
        model.die(name)
    model.pass_time(30, finished=True)
    return model


def with_a_silent_node() -> PoolModel:
    """Kubelet says that it is well, so its slots stay with it."""
    model = served_pool()
    model.silent.add("a")
    model.pass_time(30, finished=True)
    return model


def with_a_bad_image() -> PoolModel:
    model = served_pool()
    model.spec["image"] = {"tag": BAD_TAG}
    model.pass_time(120, finished=True)
    return model


def status_of(**observed: Any) -> Mapping[str, JsonValue]:
    """The status that a plan writes for one node."""
    meta: dict[str, JsonValue] = {"name": "pool-a", "namespace": "inference", "uid": "u"}
    pool = read_pool({"metadata": meta, "spec": {**SPEC, **observed.pop("spec", {})}})
    nodes = {"n1": KubeNode("n1", {"memkv.io/node": "true"}, True, False, {})}
    planned = plan(Observed(pool, nodes, metadata=Rollout(1, 1, 1, True), **observed), "memkv:1", 0)
    [status] = [a.status for a in planned.actions if isinstance(a, WritePoolStatus)]
    return status


def with_a_faulted_drive() -> Mapping[str, JsonValue]:
    drive = Drive("d", "/dev/disk/by-id/d", 1, "f", DriveState.FAULTED, "read-only", position=0)
    group = {**SPEC["nodeGroups"][0], "storage": {"devicePaths": ["/dev/disk/by-id/d"]}}
    drives = {"n1": NodeDrives("pool-a-1", "inference", (drive,))}
    return status_of(spec={"nodeGroups": [group]}, drives=drives)


def over_tcp() -> Mapping[str, JsonValue]:
    network = {"mode": "HostNetwork", "rdma": {"mode": "Preferred", "resources": [{"name": "r/a"}]}}
    worker = WorkerFacts(0, "0a" * 16, 1, "Ready", "h", 7070, 1 << 30, 0, 0, 0, "")
    facts = NodeFacts("1", False, 0, "", (worker,), (), frozenset({"tcp"}), True)
    return status_of(spec={"network": network}, seen={"n1": NodeSeen("u", facts)})


def of_two_versions() -> Mapping[str, JsonValue]:
    model = served_pool()
    seen = {name: model.seen(name, True) for name in model.pods}
    facts = seen["a"].facts
    assert facts is not None
    seen["a"] = replace(seen["a"], facts=replace(facts, version="2"))
    [status] = [a.status for a in model.decide(seen).actions if isinstance(a, WritePoolStatus)]
    return status


def growing(make: Callable[[int], Scrape], minutes: int) -> list[Scene]:
    return [(make(minute), 1) for minute in range(minutes)]


def operator(change: Callable[[OperatorMetrics], object], wall_s: int = 0) -> Scrape:
    """What an operator that leads serves of itself."""
    metrics = OperatorMetrics(ManualClock(wall_s))
    metrics.leader.set(1)
    change(metrics)
    return exporters.scrape(metrics.registry, exporters.OPERATOR)


def bugs(minute: int) -> Scrape:
    return operator(lambda metrics: metrics.reconciles.labels("bug").inc(minute))


def map_behind() -> Scrape:
    shard_map = served_pool().shard_map
    assert shard_map is not None
    newest = exporters.metadata(exporters.at_epoch(shard_map, 9))
    return exporters.merged([newest, exporters.node(epoch=7)])


def stored(minute: int, **counts: int) -> Scrape:
    return exporters.node(store=Counters(**{name: n * minute for name, n in counts.items()}))


def pool(model: PoolModel) -> Scrape:
    return exporters.pools(model.status)


STATES: dict[str, Callable[[], tuple[list[Scene], str]]] = {
    "MemKVWorkerNotReady": lambda: ([(exporters.node(Phase.BACKOFF), 30)], ON_WORKER),
    "MemKVWorkerRestarting": lambda: (
        growing(lambda minute: exporters.node(restarts=minute), 40), ON_WORKER,
    ),
    "MemKVDriveErrors": lambda: (
        [(stored(0), 5), (stored(1, corrupt=1), 8)], ON_WORKER,
    ),
    "MemKVDriveFaulted": lambda: (
        [(exporters.node(), 5), (exporters.node(drive_state="faulted"), 8)],
        ON_WORKER.replace("warning", "critical") + ',state="faulted"',
    ),
    "MemKVDriveWorn": lambda: (
        [(exporters.agent(95), 90)],
        'severity="warning",namespace="memkv-system",node="n1",job="agents",instance="n1",'
        'drive="nvme-1"',
    ),
    "MemKVMassLossSuspected": lambda: (
        [(exporters.merged([exporters.metadata(None), pool(with_lost_nodes(*"abc"))]), 9)],
        OF_POOL.replace("warning", "critical"),
    ),
    "MemKVMetadataUnreachable": lambda: ([(exporters.node(connected=False), 20)], ON_NODE),
    "MemKVMapBehind": lambda: ([(map_behind(), 20)], ON_WORKER),
    "MemKVPutsRefused": lambda: (
        growing(lambda minute: stored(minute, puts_refused=5), 40), ON_WORKER,
    ),
    "MemKVPeersDisagree": lambda: (
        growing(lambda m: exporters.node(events=ConnectionCounts(protocol_errors=m)), 40),
        ON_WORKER,
    ),
    "MemKVCertificateExpires": lambda: (
        [(operator(lambda o: o.show_ends("inference/pool-a", {"node": 13.0 * DAY_S})), 90)],
        f'{OF_POOL},certificate="node",pod="operator-0",job="operator",instance="o0"',
    ),
    "MemKVPoolNotReady": lambda: ([(pool(with_lost_nodes("a")), 2),
                                   (pool(with_lost_nodes(*"abcd")), 30)], OF_POOL),
    "MemKVSlotsUnserved": lambda: ([(pool(with_a_silent_node()), 30)], OF_POOL),
    "MemKVNodesLost": lambda: ([(pool(with_lost_nodes("a")), 30)], OF_POOL),
    "MemKVOperatorWithoutLeader": lambda: (
        [(operator(lambda o: o.leader.set(0)), 30)], 'severity="warning"',
    ),
    "MemKVReconcilesFail": lambda: (growing(bugs, 60), 'severity="warning"'),
    "MemKVWatchSilent": lambda: (
        [(operator(lambda o: o.heard_of(POOLS)), 50)],
        'severity="warning",namespace="memkv-system",pod="operator-0",job="operator",'
        'instance="o0",resource="memkvpools"',
    ),
    "MemKVDrivesNotReady": lambda: (
        [(exporters.pools(with_a_faulted_drive()), 30)], f'{OF_POOL},reason="DriveFaulted"',
    ),
    "MemKVUpdateStuck": lambda: (
        [(pool(with_a_bad_image()), 30)], f'{OF_POOL},reason="UpdatePaused"',
    ),
    "MemKVRDMAFallback": lambda: (
        [(exporters.pools(over_tcp()), 30)], f'{OF_POOL},reason="FallbackToTCP"',
    ),
    "MemKVRDMARailLost": lambda: (
        [(exporters.node(), 5), (exporters.node(rails=NO_RAIL), 20)], ON_WORKER,
    ),
    "MemKVVersionsDiffer": lambda: ([(exporters.pools(of_two_versions()), 150)], OF_POOL),
}  # fmt: skip


def all_well() -> Scrape:
    """What is served while nothing is wrong."""
    model = served_pool()
    assert model.shard_map is not None
    ends = {"node": 90.0 * DAY_S}
    return exporters.merged(
        [
            exporters.node(epoch=model.shard_map.version.epoch),
            exporters.metadata(model.shard_map),
            exporters.agent(),
            pool(model),
            operator(lambda o: o.show_ends("inference/pool-a", ends)),
            operator(lambda o: o.heard_of(POOLS), wall_s=DAY_S),
        ]
    )


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_in_the_state_it_is_for(promtool: str, tmp_path: Path, alert: str) -> None:
    scenes, fires = STATES[alert]()
    step = STEPS_MINUTES.get(alert, 1)
    minute = step * (sum(times for _, times in scenes) - 1)
    names = set(NAME.findall(ALERTS[alert]))
    series = exporters.story(scenes)
    read = {one: values for one, values in series.items() if exporters.labels_of(one)[0] in names}
    case = Case(alert, "", minute, read, fires, step)
    right, said = verdict(promtool, [case], tmp_path)
    assert right, said


def test_no_alert_fires_while_all_is_well(promtool: str, tmp_path: Path) -> None:
    series = exporters.story([(all_well(), 100)])
    right, said = verdict(promtool, [Case("", "", 99, series)], tmp_path)
    assert right, said
