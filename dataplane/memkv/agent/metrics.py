"""Metrics of an agent."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memkv_proto import agent_admin_pb2 as pb


@dataclass(frozen=True, slots=True)
class AgentView:
    """What an agent knows of itself."""

    facts: pb.AgentFacts
    erased: int = 0
    """Disks that it erased since it was started."""
    registrations: int = 0


def state_of(disk: pb.AgentDisk) -> str:
    """Return what a disk is to pools, in one word."""
    if disk.assigned:
        return "assigned"
    if disk.unusable_reason:
        return "denied"
    if disk.content == pb.DRIVE_CONTENT_UNSPECIFIED:
        return "unreadable"
    return pb.DriveContent.Name(disk.content).removeprefix("DRIVE_CONTENT_").lower()


class AgentCollector(Collector):
    """Serves the metrics."""

    def __init__(self, view: Callable[[], AgentView]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        view = self._view()
        disks = view.facts.disks
        counted = GaugeMetricFamily(
            "memkv_agent_disks", "Disks of the node, by what they are to pools", labels=["state"]
        )
        for state, count in sorted(Counter(map(state_of, disks)).items()):
            counted.add_metric([state], count)
        yield counted
        wear = GaugeMetricFamily(
            "memkv_agent_drive_wear_ratio", "Used share of a drive's rated life", labels=["drive"]
        )
        errors = CounterMetricFamily(
            "memkv_agent_drive_media_errors", "Errors of the medium", labels=["drive"]
        )
        for disk in disks:
            if disk.health_known:
                wear.add_metric([disk.id], disk.wear_percent / 100)
                errors.add_metric([disk.id], disk.media_errors)
        yield from (wear, errors)
        ready = GaugeMetricFamily(
            "memkv_agent_resource_ready", "1 while kubelet can give the resource to a pod",
            labels=["resource"],
        )  # fmt: skip
        for assignment in view.facts.assignments:
            ready.add_metric([assignment.resource], int(assignment.healthy))
        yield ready
        yield CounterMetricFamily(
            "memkv_agent_erased_disks", "Disks erased, as approved", value=view.erased
        )
        yield CounterMetricFamily(
            "memkv_agent_registrations", "Times a resource was made known to kubelet",
            value=view.registrations,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "memkv_agent_problems", "What else is wrong on the node", value=len(view.facts.problems)
        )
