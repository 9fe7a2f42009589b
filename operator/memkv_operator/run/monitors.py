"""Keeps the PodMonitors of pools (spec.monitoring.podMonitor). The kind is another project's, and
the right to make one is the chart's to give: where either is missing the pool says so, and nothing
else waits for it.

The condition `Monitored` in a pool's status remembers that there may be a PodMonitor: one that is
no longer asked for is looked for until it is gone, by whichever operator leads then.
"""

import logging

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Forbidden, NotFound
from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.conditions import Condition, condition, read_conditions
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import POD_MONITORS
from memkv_operator.api.pool import Pool
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.children import unchanged
from memkv_operator.render.monitoring import pod_monitor

log = logging.getLogger("memkv.operator")

MONITORED = "Monitored"
UNAVAILABLE = "MonitoringUnavailable"
FRESH_S = 60.0  # while all is well
AGAIN_S = 5.0  # while something is wrong: people wait for it to go


class Monitors:
    """Of all pools."""

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._known: dict[str, tuple[int, int, Condition]] = {}
        """Pool -> (when to look again, its generation then, what to say of it)."""

    async def look(self, pool: Pool) -> Condition | None:
        """Make, mend or delete the PodMonitor of a pool, at most every FRESH_S. Return the
        condition `Monitored`; None for a pool that has none and wants none."""
        said = read_conditions(Reader({"status": pool.status}).object("status")).get(MONITORED)
        if not pool.spec.pod_monitor and said is None:
            self.forget(pool.key)
            return None
        if pool.spec.paused:
            return said
        now_ns = self._clock.monotonic_ns()
        again_ns, generation, known = self._known.get(pool.key, (0, 0, None))
        if known is not None and generation == pool.meta.generation and now_ns < again_ns:
            return known
        found = await (self._ensure(pool) if pool.spec.pod_monitor else self._withdraw(pool))
        if found is None:
            self.forget(pool.key)
            return None
        pause_s = FRESH_S if found.holds else AGAIN_S
        self._known[pool.key] = now_ns + int(pause_s * 1e9), pool.meta.generation, found
        return found

    def forget(self, key: str) -> None:
        """Drop what is known of a pool that is gone. Its PodMonitor goes with it, by its owner."""
        self._known.pop(key, None)

    async def _ensure(self, pool: Pool) -> Condition:
        child, namespace = pod_monitor(pool), pool.meta.namespace
        try:
            live = await self._objects.get(POD_MONITORS, namespace, child.name)
            if live is not None and pool.meta.uid not in read_meta(Reader(live)).owners:
                message = (
                    f"there is a PodMonitor {child.name} that is not this pool's: delete or rename "
                    "it, or leave spec.monitoring.podMonitor out"
                )
                return condition(MONITORED, False, UNAVAILABLE, message)
            if live is None or not unchanged(live, child):
                await self._objects.apply(POD_MONITORS, namespace, child.name, child.manifest)
        except MemKVError as error:
            log.warning("pool %s: no PodMonitor: %s", pool.key, error)
            return condition(MONITORED, False, UNAVAILABLE, _why(error))
        return condition(MONITORED, True, "PodMonitorMade", f"PodMonitor {child.name}")

    async def _withdraw(self, pool: Pool) -> Condition | None:
        """Delete the PodMonitor of a pool that does not want one any more. Who may not ask for it,
        or lacks its kind, leaves what there may be to a person."""
        name, namespace = pool.meta.name, pool.meta.namespace
        try:
            live = await self._objects.get(POD_MONITORS, namespace, name)
            meta = read_meta(Reader(live)) if live is not None else None
            if meta is not None and pool.meta.uid in meta.owners:
                await self._objects.delete(POD_MONITORS, namespace, name, meta.uid)
        except Forbidden as error:
            log.warning("pool %s: its PodMonitor, if there is one, stays: %s", pool.key, error)
        except MemKVError as error:
            message = f"its PodMonitor is not deleted yet: {error}"
            return condition(MONITORED, False, UNAVAILABLE, message)
        return None


def _why(error: MemKVError) -> str:
    if isinstance(error, NotFound):
        return (
            "spec.monitoring.podMonitor is set, and this cluster has no monitoring.coreos.com/v1: "
            "install the Prometheus operator, or leave podMonitor out and scrape port "
            "`metrics` of the pool's pods in another way"
        )
    if isinstance(error, Forbidden):
        return (
            "spec.monitoring.podMonitor is set, and the operator has no right to make PodMonitors: "
            f"upgrade its chart with metrics.poolPodMonitors.enabled=true ({error})"
        )
    return f"the PodMonitor cannot be made: {error}"
