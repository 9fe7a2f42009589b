"""Operators that die in the middle of publishing, and operators that compete, on a real API server.

MEMKV_LEADER_KILLS says how many leaders are killed, 100 by default: as many of them as
MEMKV_LEADER_KILLS_S seconds have time for, 180 by default, and 12 at least.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.api_server import ApiServer, Observer, connect_api_server
from memkv.metadata.kubernetes.errors import Away
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.kube.leadership import LeadershipLost
from memkv_operator.testing.map_history import check_history, histories_of
from memkv_operator.testing.passing_api import Call, PassingApi
from memkv_operator.testing.real_api import RealApi
from memkv_operator.testing.tasks import end_task

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
KILLS_MIN = 12
KILLS = int(os.environ.get("MEMKV_LEADER_KILLS", "100"))
KILLS_S = float(os.environ.get("MEMKV_LEADER_KILLS_S", "180"))
LEASE_MS = 1000
LEASE_MS_MAX = 8000
LOST_MAX = 5  # Leases in a row, until a machine counts as too busy for such short ones
LAST_LEASE_MS = 30_000  # the last one must not lose it on a busy machine
STANDING = 3  # the one that leads or will, and those that are being started


class Mortal(PassingApi):
    """An ApiServer that its process can no longer reach after it was killed."""

    def __init__(self, api: ApiServer, dies_after_the_write: bool) -> None:
        super().__init__(api)
        self._after = dies_after_the_write
        self.dead = asyncio.Event()

    async def send(self, call: Call) -> JsonObject:
        if call.writes_map and not self._after:
            self.dead.set()
        self._check()
        answer = await super().send(call)
        if call.writes_map:
            self.dead.set()
        self._check()
        return answer

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        async for event in super().watch(path, query):
            self._check()
            yield event

    def _check(self) -> None:
        if self.dead.is_set():
            raise Away("this process is dead")


class Candidate:
    """An operator process that is killed while it publishes, once it leads."""

    def __init__(self, real: RealApi, number: int, lease_ms: int) -> None:
        self._mortals: list[Mortal] = []
        self._after = number % 2 == 1
        operator = real.make_operator(f"operator-{number}", lease_ms, connect=self._connect)
        self._running = asyncio.create_task(operator.run())

    @property
    def was_killed(self) -> bool:
        return any(mortal.dead.is_set() for mortal in self._mortals)

    @property
    def has_ended(self) -> bool:
        """Whether it went by itself: it lost its Lease."""
        return self._running.done()

    async def reap(self) -> None:
        if self.has_ended and not self.was_killed:
            assert isinstance(self._running.exception(), LeadershipLost)
        await end_task(self._running)

    async def _connect(self, observer: Observer) -> ApiServer:
        self._mortals.append(Mortal(await connect_api_server(observer), self._after))
        return self._mortals[-1]


@dataclass
class Killer:
    """Kills one leader after the other; others stand by meanwhile, as replicas do."""

    real: RealApi
    started: int = 0
    killed: int = 0
    lost: int = 0
    """Those that lost their Lease before they published."""
    lost_in_a_row: int = 0
    lease_ms: int = LEASE_MS
    standing: list[Candidate] = field(default_factory=list)
    reaping: list[asyncio.Task[None]] = field(default_factory=list)

    async def kill_next(self) -> None:
        while len(self.standing) < STANDING:
            self.standing.append(Candidate(self.real, self.started, self.lease_ms))
            self.started += 1

        async def one_is_over() -> bool:
            return any(one.was_killed or one.has_ended for one in self.standing)

        await self.real.until(one_is_over)
        for one in [one for one in self.standing if one.was_killed or one.has_ended]:
            self.killed += one.was_killed
            self.lost += not one.was_killed
            self.lost_in_a_row = 0 if one.was_killed else self.lost_in_a_row + 1
            self.standing.remove(one)
            self.reaping.append(asyncio.create_task(one.reap()))
        if self.lost_in_a_row >= LOST_MAX:
            self.lease_ms, self.lost_in_a_row = min(2 * self.lease_ms, LEASE_MS_MAX), 0

    async def reap_all(self) -> None:
        await asyncio.gather(*self.reaping, *(one.reap() for one in self.standing))


@pytest.mark.timeout(300 + 2 * KILLS_S)
def test_versions_stay_monotonic_when_leaders_die_in_mid_publish(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(3)
        async with histories_of(real.api, f"{real.root}/memkvshardmaps") as histories:
            await real.make_pool()
            clock, killer = SystemClock(), Killer(real)
            begun_ns = clock.monotonic_ns()

            def passed_s() -> float:
                return (clock.monotonic_ns() - begun_ns) / 1e9

            try:
                while killer.killed < KILLS:
                    await killer.kill_next()
                    if killer.killed >= KILLS_MIN and passed_s() > KILLS_S:
                        break
            finally:
                await killer.reap_all()
            print(
                f"{killer.killed} leaders killed in mid-publish in {passed_s():.0f} s, "
                f"{killer.lost} more lost their Lease of {LEASE_MS} to {killer.lease_ms} ms"
            )
            async with real.operator("last", LAST_LEASE_MS) as last:

                async def is_ready_under_it() -> bool:  # Ready may be left over from others
                    return last.leads and await real.is_ready()

                await real.until(is_ready_under_it)
            heard = histories[real.namespace]
        check_history(heard)
        # A leader that dies before its write leaves no trace: half of them.
        assert heard[-1].version.term > killer.killed // 4
        found = await real.map()
        assert found is not None
        assert found.version == heard[-1].version

    on_real_api(test)


def test_of_two_operators_one_leads_and_the_other_takes_over(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(2)
        await real.make_pool()
        async with real.operator("b") as second:
            async with real.operator("a") as first:
                await real.until(real.is_ready)
                assert first.leads != second.leads
                ended, other = (first, second) if first.leads else (None, first)
                before = await real.map()  # the other one may be quicker than the end of this one
            if ended is None:
                return  # the one that leads goes on; the other test has take-overs
            assert before is not None

            async def took_over() -> bool:
                found = await real.map()
                assert found is not None
                return other.leads and found.version.term > before.version.term

            await real.until(took_over)
            await real.until(real.is_ready)

    on_real_api(test)
