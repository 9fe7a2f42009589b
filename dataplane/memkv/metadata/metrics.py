"""Metrics of a metadata process, read from its parts when Prometheus asks."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memkv.metadata.server import ServerStatistics
from memkv.shardmap import ShardMap, WorkerState


@dataclass(frozen=True, slots=True)
class MetadataFigures:
    """Everything the metrics are made of."""

    server: ServerStatistics
    shard_map: ShardMap | None
    mass_loss_suspected: bool
    slots_waiting: int
    polls: int
    poll_failures: int


class MetadataCollector(Collector):
    """Turns figures into metric families."""

    def __init__(self, figures: Callable[[], MetadataFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        figures = self._figures()
        server = figures.server
        yield _gauge("memkv_metadata_watchers", "Open watches", server.watchers)
        yield _counter("memkv_metadata_snapshots", "Maps sent", server.snapshots)
        yield _counter("memkv_metadata_bookmarks", "Bookmarks sent", server.bookmarks)
        yield _counter("memkv_metadata_tickets", "Tickets given", server.tickets)
        yield _counter("memkv_metadata_refused", "Calls refused", server.refused)
        yield _counter("memkv_metadata_polls", "Polls of nodes", figures.polls)
        yield _counter("memkv_metadata_poll_failures", "Polls that failed", figures.poll_failures)
        yield _gauge(
            "memkv_metadata_mass_loss_suspected",
            "1 while the map is frozen because too many workers vanished at once",
            int(figures.mass_loss_suspected),
        )
        yield _gauge(
            "memkv_metadata_slots_waiting",
            "Slots that wait to move until others have moved",
            figures.slots_waiting,
        )
        if figures.shard_map is not None:
            yield from _map_families(figures.shard_map)


def _map_families(shard_map: ShardMap) -> Iterator[Metric]:
    yield _gauge("memkv_metadata_map_term", "Term of the map", shard_map.version.term)
    yield _gauge("memkv_metadata_map_epoch", "Epoch of the map", shard_map.version.epoch)
    yield _gauge("memkv_metadata_slots", "Slots of the map", shard_map.slots)
    yield _gauge("memkv_metadata_slots_moving", "Slots with previous owners", len(shard_map.moving))
    yield _gauge(
        "memkv_metadata_slots_fenced", "Slots whose owner must drop blocks", len(shard_map.fenced)
    )
    counts = Counter(worker.state for worker in shard_map.workers)
    family = GaugeMetricFamily(
        "memkv_metadata_workers", "Workers of the map by state", labels=["state"]
    )
    for state in WorkerState:
        family.add_metric([state.name.lower()], counts[state])
    yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
