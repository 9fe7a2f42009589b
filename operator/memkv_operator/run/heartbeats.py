"""Reads the Leases of kubelets whose nodes do not answer the operator. One for the process."""

import asyncio
import logging
from collections.abc import Callable, Collection

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import LEASES, NODE_LEASES_NAMESPACE
from memkv_operator.bugs import BugLog
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.heartbeats import Heartbeats, read_beat

log = logging.getLogger("memkv.operator.map")

LOOK_S = 2.0
IDLE_S = 0.5  # while there is nothing to read
GETS_MAX = 8  # more nodes are read by one list of all


class HeartbeatReader:
    """Reads them again and again while there are any to read. On one event loop."""

    def __init__(
        self, objects: Objects, clock: Clock, suspects: Callable[[], Collection[str]]
    ) -> None:
        """`suspects` returns the nodes to look at now."""
        self.heartbeats = Heartbeats()
        self._objects = objects
        self._clock = clock
        self._suspects = suspects
        self._failed = False
        self._bugs = BugLog(log)

    async def run(self) -> None:
        """Go on until cancelled. No error ends it."""
        while True:
            pause_s = IDLE_S
            try:
                suspects = frozenset(self._suspects())
                self.heartbeats.keep(suspects)
                if suspects:
                    pause_s = LOOK_S
                    await self._look(suspects)
                self._bugs.over("")
            except Exception as error:
                self.heartbeats.interrupted(self._now_ms())
                self._bugs.say(
                    "",
                    error,
                    "this is a bug in the operator, please report it; lost nodes stay longer",
                )
            await asyncio.sleep(pause_s)

    async def _look(self, nodes: frozenset[str]) -> None:
        try:
            found = await self._read(nodes)
        except MemKVError as error:
            self.heartbeats.interrupted(self._now_ms())
            if not self._failed:
                log.warning("Leases of kubelets cannot be read, lost nodes stay longer: %s", error)
            self._failed = True
            return
        self._failed = False
        wall_ms = self._clock.wall_s() * 1000
        for node in nodes:
            lease = found.get(node)
            beat = read_beat(lease) if lease is not None else None
            self.heartbeats.looked(node, beat, self._now_ms(), wall_ms)

    async def _read(self, nodes: frozenset[str]) -> dict[str, JsonObject]:
        if len(nodes) > GETS_MAX:
            listed = await self._objects.list(LEASES, NODE_LEASES_NAMESPACE)
            return {read_meta(Reader(lease)).name: lease for lease in listed.items}
        found = {n: await self._objects.get(LEASES, NODE_LEASES_NAMESPACE, n) for n in nodes}
        return {node: lease for node, lease in found.items() if lease is not None}

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000
