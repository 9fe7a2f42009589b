"""Holds the Lease while work goes on, and ends the work when it cannot be held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Conflict
from memkv_operator.api.names import LEASES
from memkv_operator.api.times import rfc3339_micro
from memkv_operator.kube.lease import Election, LeaseConfig, Step, read_lease
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.lease")


class LeadershipLost(MemKVError):
    """Somebody else may lead now. The process ends; it stands by when it starts again."""


class Leadership:
    """One candidate."""

    def __init__(self, config: LeaseConfig, objects: Objects, clock: Clock) -> None:
        self._config = config
        self._objects = objects
        self._clock = clock
        self._election = Election(config)
        self._acquired = ""

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return bool(self._acquired) and self._election.leads

    @property
    def is_leader_late(self) -> bool:
        """Whether another operator leads and was not heard of lately."""
        return self._election.is_late(self._now_ms())

    async def lead(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Wait to be elected, then do `work`, given the number of transitions of the Lease.

        Returns when the work ends. LeadershipLost when the Lease was, with the work cancelled. When
        cancelled itself, the work is cancelled first and the Lease released after it.
        """
        while not await self._try():
            await asyncio.sleep(self._config.retry_ms / 1000)
        assert self._election.view is not None
        transitions = self._election.view.transitions
        log.info("%s leads, transition %d", self._config.identity, transitions)
        working = asyncio.ensure_future(work(transitions))
        keeping = asyncio.create_task(self._keep())
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Work ends before anybody else is let in.
            for task in (working, keeping):
                task.cancel()
            await asyncio.gather(working, keeping, return_exceptions=True)
            lost = keeping.done() and not keeping.cancelled()
            if not lost:
                await self._release()
            self._acquired = ""
        if lost:
            keeping.result()
        working.result()

    async def _keep(self) -> None:
        """Renew for ever; raise LeadershipLost when that fails for too long."""
        while True:
            left_ms = self._config.renew_within_ms - self._since_ms()
            if left_ms <= 0:
                raise LeadershipLost("the Lease could not be renewed in time")
            await asyncio.sleep(min(self._config.retry_ms, left_ms) / 1000)
            left_ms = self._config.renew_within_ms - self._since_ms()
            try:
                # Half of the time for one try: a connection may be dead, and the next one well.
                try_ms = min(left_ms, self._config.renew_within_ms // 2)
                async with asyncio.timeout(max(0.0, try_ms / 1000)):
                    leads = await self._try()
            except TimeoutError:
                leads = True  # nobody answered: the time decides
            if not leads:
                raise LeadershipLost("another operator holds the Lease")

    async def _try(self) -> bool:
        """Look at the Lease, and write it if it is ours to write. Return whether we lead, as far
        as is known: a request that failed says nothing, and the time decides."""
        config = self._config
        try:
            if not self.leads:
                await self._look()
            step = self._election.next_step(self._now_ms())
            if step is Step.WAIT:
                return False
            try:
                await self._write(step)
            except Conflict:
                # Somebody wrote it first, or our own write came through without an answer.
                await self._look()
                return self.leads
        except MemKVError as error:
            log.warning("Lease %s/%s: %s", config.namespace, config.name, error)
            return self.leads  # a Lease of ours from a write without an answer is not enough
        return True

    async def _look(self) -> None:
        """Read the Lease."""
        found = await self._objects.get(LEASES, self._config.namespace, self._config.name)
        view = read_lease(found) if found is not None else None
        self._election = self._election.observed(view, self._now_ms())

    async def _write(self, step: Step) -> None:
        config, sent_ms = self._config, self._now_ms()
        time = rfc3339_micro(self._clock.wall_s())
        acquired = self._acquired if step is Step.RENEW and self._acquired else time
        manifest = self._election.manifest(step, time, acquired)
        if step is Step.CREATE:
            written = await self._objects.create(LEASES, config.namespace, manifest)
        else:
            written = await self._objects.replace(LEASES, config.namespace, config.name, manifest)
        self._election = self._election.wrote(read_lease(written), sent_ms)
        self._acquired = acquired

    async def _release(self) -> None:
        """Let another one lead at once. A failure costs the others one lease time."""
        config, time = self._config, rfc3339_micro(self._clock.wall_s())
        try:
            async with asyncio.timeout(config.retry_ms / 1000):
                await self._objects.replace(
                    LEASES,
                    config.namespace,
                    config.name,
                    self._election.release(time, self._acquired),
                )
        except (MemKVError, TimeoutError) as error:
            log.info("the Lease was not released: %s", error)

    def _since_ms(self) -> int:
        return self._now_ms() - self._election.seen_ms

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000
