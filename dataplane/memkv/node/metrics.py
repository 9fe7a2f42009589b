"""Metrics of a node: each worker sends samples, the supervisor merges them for Prometheus.

Names start with memkv_, carry base units, and every sample says which worker it is from. Counters
start at zero with each worker process, which Prometheus takes for what it is: a restart.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from memkv.node.facts import NodeView, Phase, WorkerView
from memkv.node.messages import Sample


def gauge(name: str, text: str, value: float, **labels: str) -> Sample:
    """Return a sample of something that goes up and down."""
    return Sample(name, text, labels, value)


def counter(name: str, text: str, value: float, **labels: str) -> Sample:
    """Return a sample of something that only grows."""
    return Sample(name, text, labels, value, counter=True)


def node_samples(workers: Iterable[WorkerView]) -> Iterator[Sample]:
    """Yield what the supervisor itself knows of its workers."""
    for worker in workers:
        label = {"worker": str(worker.position)}
        ready = int(worker.phase is Phase.READY)
        yield gauge("memkv_worker_ready", "1 while the worker serves", ready, **label)
        text = "Times the worker was started again"
        yield counter("memkv_worker_restarts", text, worker.restarts, **label)
        if worker.report is not None:
            epoch = worker.report.applied_epoch
            yield gauge("memkv_worker_map_epoch", "Epoch of the map in use", epoch, **label)


class NodeCollector(Collector):
    """Merges the samples of a node into metric families."""

    def __init__(self, view: Callable[[], NodeView]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield all families, by name."""
        view = self._view()
        samples = list(node_samples(view.workers))
        for worker in view.workers:
            if worker.report is not None and worker.phase is Phase.READY:
                for sample in worker.report.samples:
                    labels = {"worker": str(worker.position), **sample.labels}
                    samples.append(replace(sample, labels=labels))
        connected = int(view.metadata_connected)
        text = "1 while a stream to the metadata service is open"
        samples.append(gauge("memkv_node_metadata_connected", text, connected))
        yield from families(samples)


def families(samples: Iterable[Sample]) -> Iterator[Metric]:
    """Yield the samples grouped into families. Samples of one name have the same label names."""
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.name, []).append(sample)
    for name in sorted(grouped):
        first = grouped[name][0]
        label_names = sorted(first.labels)
        family = _family(first, label_names)
        for sample in grouped[name]:
            values = [sample.labels.get(label, "") for label in label_names]
            if isinstance(family, HistogramMetricFamily):
                buckets = [(_bound(bound), count) for bound, count in sample.buckets]
                family.add_metric(values, buckets, sample.value)
            else:
                family.add_metric(values, sample.value)
        yield family


def _family(
    sample: Sample, labels: Sequence[str]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    if sample.buckets:
        return HistogramMetricFamily(sample.name, sample.help, labels=labels)
    if sample.counter:
        return CounterMetricFamily(sample.name, sample.help, labels=labels)
    return GaugeMetricFamily(sample.name, sample.help, labels=labels)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)
