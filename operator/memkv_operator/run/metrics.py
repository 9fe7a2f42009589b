"""memkv_operator_* and what the operator knows of its pools, for Prometheus."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memkv.clock import Clock
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.conditions import read_conditions
from memkv_operator.api.names import Resource
from memkv_operator.run.view import ClusterView


class OperatorMetrics:
    """Counters of one process."""

    def __init__(self, clock: Clock) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self.reconciles = Counter(
            "memkv_operator_reconcile",
            "Looks at a pool, by how they ended; bug: also of its publisher.",
            ["result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "memkv_operator_reconcile_duration_seconds",
            "Time of a look at a pool, writes included.",
            registry=self.registry,
        )
        self.late = Histogram(
            "memkv_operator_event_loop_late_seconds",
            "How late the event loop comes to what is due: it also renews the Lease.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=self.registry,
        )
        self.depth = Gauge(
            "memkv_operator_queue_depth", "Pools that wait for a look.", registry=self.registry
        )
        self.leader = Gauge(
            "memkv_operator_leader", "1 while this process leads.", registry=self.registry
        )
        self.requests = Counter(
            "memkv_operator_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "code"],
            registry=self.registry,
        )
        self.heard = Gauge(
            "memkv_operator_last_watch_event_timestamp_seconds",
            "When a watch was heard last, or a listing found that it had missed nothing.",
            ["resource"],
            registry=self.registry,
        )

        self.certificate_ends = Gauge(
            "memkv_tls_cert_expiry_timestamp_seconds",
            "When a certificate of a pool ends.",
            ["namespace", "pool", "certificate"],
            registry=self.registry,
        )
        self._with_certificates: dict[str, set[str]] = {}

    def show_ends(self, pool: str, ends: Mapping[str, float]) -> None:
        """Show when a pool's certificates end; none: the pool is gone."""
        namespace, _, name = pool.partition("/")
        for gone in self._with_certificates.get(pool, set()) - ends.keys():
            self.certificate_ends.remove(namespace, name, gone)
        self._with_certificates[pool] = set(ends)
        for certificate, end_s in ends.items():
            self.certificate_ends.labels(namespace, name, certificate).set(end_s)

    def requested(self, verb: str, code: int) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, str(code)).inc()

    def heard_of(self, resource: Resource) -> None:
        """Note a sign of life of a watch."""
        self.heard.labels(resource.plural).set(self._clock.wall_s())


class PoolCollector(Collector):
    """What the status of each pool says, as metrics."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all pools."""
        epoch = GaugeMetricFamily(
            "memkv_pool_epoch", "Epoch of the published map.", labels=["namespace", "pool"]
        )
        slots = GaugeMetricFamily(
            "memkv_pool_slots", "Slots by state.", labels=["namespace", "pool", "state"]
        )
        nodes = GaugeMetricFamily(
            "memkv_pool_nodes", "Nodes by state.", labels=["namespace", "pool", "state"]
        )
        conditions = GaugeMetricFamily(
            "memkv_pool_condition",
            "1 for the status that a condition has, with its reason.",
            labels=["namespace", "pool", "type", "status", "reason"],
        )
        versions = GaugeMetricFamily(
            "memkv_pool_versions",
            "Different versions of MemKV that the nodes run.",
            labels=["namespace", "pool"],
        )
        for key, manifest in list(self._view.pools.items()):
            namespace, _, name = key.partition("/")
            status = Reader(manifest).object("status")
            shard_map = status.object("shardMap")
            epoch.add_metric([namespace, name], shard_map.integer("epoch"))
            for state, field in (("moving", "movingSlots"), ("unserved", "unservedSlots")):
                slots.add_metric([namespace, name, state], shard_map.integer(field))
            for state in ("desired", "ready", "draining", "lost", "fallback"):
                nodes.add_metric([namespace, name, state], status.integer(f"{state}Nodes"))
            said = status.text("version")
            versions.add_metric([namespace, name], len(said.split(", ")) if said else 0)
            self._add_conditions(conditions, namespace, name, status.value)
        yield from (epoch, slots, nodes, versions, conditions)

    def _add_conditions(
        self, family: GaugeMetricFamily, namespace: str, name: str, status: JsonObject
    ) -> None:
        for type_, condition in read_conditions(Reader(status)).items():
            for value in ("True", "False", "Unknown"):
                labels = [namespace, name, type_, value, condition.reason]
                family.add_metric(labels, condition.status == value)
