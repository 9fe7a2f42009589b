"""The real exporters of every role as Prometheus scrapes them: what alerts and dashboards read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from memkv.agent.metrics import AgentCollector, AgentView
from memkv.io.nvme_health import Health
from memkv.metadata.kubernetes.json_values import JsonValue
from memkv.metadata.metrics import MetadataCollector, MetadataFigures
from memkv.metadata.server import ServerStatistics
from memkv.node.drive_health import health_samples
from memkv.node.facts import NodeView, Phase, WorkerView
from memkv.node.messages import Report
from memkv.node.metrics import NodeCollector
from memkv.node.moves.keeper import MoveStatistics
from memkv.node.moves.pull_slot import PullCounts
from memkv.node.samples import move_samples, rail_samples, server_samples, store_samples
from memkv.node.statistics import LATENCY_BUCKETS, ConnectionCounts, WorkerStatistics
from memkv.rdma.rails import RailStatistics
from memkv.shardmap import ShardMap
from memkv.status import Status
from memkv.store.statistics import (
    Counters,
    StoreStatistics,
    TenantStatistics,
    counters_as_dict,
)
from memkv.wire.opcodes import Opcode
from memkv_operator.api.names import POOLS
from memkv_operator.run.metrics import PoolCollector
from memkv_operator.run.view import ClusterView
from memkv_operator.testing.cluster import NAMESPACE, POOL
from memkv_proto import agent_admin_pb2
from memkv_proto import node_admin_pb2 as pb

POD = {"namespace": NAMESPACE, "pool": POOL, "node": "n1", "job": "pools", "instance": "n1"}
"""Labels that the chart's PodMonitor gives the figures of a pool's pods."""
AGENT = {"namespace": "memkv-system", "node": "n1", "job": "agents", "instance": "n1"}
OPERATOR = {"namespace": "memkv-system", "pod": "operator-0", "job": "operator", "instance": "o0"}
"""Of its ServiceMonitor; labels of a figure itself go before these (honorLabels)."""

ONE_RAIL = RailStatistics(("mlx5_0/1",))

Scrape = Mapping[str, float]
"""Series, as PromQL writes it -> its value."""
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def scrape(exporter: Collector | CollectorRegistry, target: Mapping[str, str]) -> Scrape:
    """Return what an exporter serves, with the labels of its target."""
    registry = exporter
    if not isinstance(registry, CollectorRegistry):
        registry = CollectorRegistry()
        registry.register(exporter)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        _series(sample.name, {**target, **sample.labels}): sample.value
        for family in families
        for sample in family.samples
    }


def labels_of(series: str) -> tuple[str, dict[str, str]]:
    """Return name and labels of a series."""
    return series.partition("{")[0], dict(_LABEL.findall(series))


def story(scenes: Iterable[tuple[Scrape, int]]) -> dict[str, str]:
    """Return series and values as promtool takes them: each scene is scraped so many times."""
    told = list(scenes)
    names = {name: None for scene, _ in told for name in scene}
    return {
        name: " ".join(
            f"{scene[name]:.9g}x{times - 1}" if name in scene else f"_x{times}"
            for scene, times in told
        )
        for name in names
    }


def _series(name: str, labels: Mapping[str, str]) -> str:
    return f"{name}{{{','.join(f'{k}={v!r}' for k, v in sorted(labels.items()))}}}".replace(
        "'", '"'
    )


# --- exporters -----------------------------------------------------------------------------------


def node(
    phase: Phase = Phase.READY,
    restarts: int = 0,
    epoch: int = 7,
    *,
    connected: bool = True,
    store: Counters | None = None,
    events: ConnectionCounts | None = None,
    drive_state: str = "healthy",
    wear_percent: int = 1,
    rails: RailStatistics = ONE_RAIL,
) -> Scrape:
    """Return what a node with one worker serves."""
    buckets = (1,) * LATENCY_BUCKETS
    served = WorkerStatistics(
        1, 1, 1, {(Opcode.GET, Status.OK): 1}, {Opcode.GET: buckets}, 1, 1,
        events or ConnectionCounts(),
    )  # fmt: skip
    tenant = TenantStatistics("t", b"t" * 16, 1, 1, 0, 0)
    counters = counters_as_dict(store or Counters())
    stored = StoreStatistics(
        1, 1, 1, 1, 1, 1, {"free": 1}, 1, 1, 0, 0, (tenant,), 1, 1, counters,
        drive_state,
    )  # fmt: skip
    moves = MoveStatistics(b"", epoch, frozenset(), 0, 0, PullCounts())
    samples = (
        *server_samples(served), *store_samples(stored), *move_samples(moves),
        *rail_samples(rails), *health_samples("nvme-1", Health(wear_percent, 0)),
    )  # fmt: skip
    report = Report("0a" * 16, 1, 7070, applied_epoch=epoch, samples=samples)
    worker = WorkerView(0, phase, report, 42, restarts)
    view = NodeView([worker], pb.NODE_STATE_ACTIVE, 1, "r", connected, True)
    return scrape(NodeCollector(lambda: view), POD)


def metadata(shard_map: ShardMap | None, *, mass_loss: bool = False) -> Scrape:
    """Return what a metadata service serves; only one that publishes itself suspects a loss."""
    figures = MetadataFigures(ServerStatistics(), shard_map, mass_loss, 0, 0, 0)
    return scrape(MetadataCollector(lambda: figures), {**POD, "node": "m1", "instance": "m1"})


def at_epoch(shard_map: ShardMap, epoch: int) -> ShardMap:
    """Return the same map of another epoch."""
    return replace(shard_map, version=replace(shard_map.version, epoch=epoch))


def agent(wear_percent: int = 1) -> Scrape:
    """Return what an agent with one drive serves."""
    disk = agent_admin_pb2.AgentDisk(id="nvme-1", health_known=True, wear_percent=wear_percent)
    view = AgentView(agent_admin_pb2.AgentFacts(disks=[disk]))
    return scrape(AgentCollector(lambda: view), AGENT)


def pools(*statuses: Mapping[str, JsonValue]) -> Scrape:
    """Return what the operator says of pools with these statuses; the first is POOL."""
    view = ClusterView(lambda key: None)
    for number, status in enumerate(statuses):
        name = f"{POOL}{number or ''}"
        meta = {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": "1"}
        view.changed(POOLS, {"metadata": {**meta}, "spec": {}, "status": dict(status)})
    return scrape(PoolCollector(view), OPERATOR)


def merged(scrapes: Sequence[Scrape]) -> Scrape:
    """Return several scrapes of one moment as one."""
    return {series: value for one in scrapes for series, value in one.items()}
