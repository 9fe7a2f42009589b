"""Watching goes on whatever a watch meets."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from memkv.errors import PeerGone
from memkv.metadata.kubernetes.api_server import MERGE, ApiServer
from memkv.metadata.kubernetes.errors import Away
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.testing.api_server import FakeApiServer
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.api.names import NODES, POOLS
from memkv_operator.run.kopf_watch import OnEvent
from memkv_operator.run.view import ClusterView
from memkv_operator.run.watching import Watches
from memkv_operator.testing.cluster import pause
from memkv_operator.testing.passing_api import Call, PassingApi

LIST_AGAIN_S = 300.0
SOON_S = 60.0
POOL: JsonObject = {"kind": "MemKVPool", "metadata": {"name": "a"}}


@dataclass
class DeafWatch:
    """An EventWatch that hears nothing, and ends or does not start when it is told to."""

    starts: bool = True
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        return not self.over.is_set()

    async def start(self) -> None:
        if not self.starts:
            raise PeerGone("it did not begin")

    async def ended(self) -> None:
        await self.over.wait()

    async def stop(self) -> None:
        self.over.set()


class Failing(PassingApi):
    """Answers every request for pools with 500 until it is mended."""

    is_ill = True

    async def send(self, call: Call) -> JsonObject:
        if self.is_ill and call.path.endswith("memkvpools"):
            raise Away("500")
        return await super().send(call)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.25)


async def watching(
    api: ApiServer,
    made: Sequence[DeafWatch],
    test: Callable[[Watches, ClusterView], Awaitable[None]],
) -> None:
    """Run a test beside Watches, whose watches are those of `made`, one after the other."""
    coming = iter(made)

    def make(namespaces: Sequence[str], on_event: OnEvent) -> DeafWatch:
        return next(coming)

    view = ClusterView(lambda key: None)
    watches = Watches(api, view, (), LoopClock(), lambda kind: None, LIST_AGAIN_S, make)
    running = asyncio.create_task(watches.run())
    try:
        await test(watches, view)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_kopf_that_ended_is_started_anew_and_what_it_missed_is_listed() -> None:
    async def main() -> None:
        api, made = FakeApiServer(), [DeafWatch(), DeafWatch()]

        async def test(watches: Watches, view: ClusterView) -> None:
            await until(lambda: watches.synced)
            made[0].over.set()
            assert not watches.alive
            await api.request("POST", POOLS.path("ns"), None, POOL)
            await until(lambda: watches.alive and "ns/a" in view.pools)

        await watching(api, made, test)

    run_simulated(main())


def test_kopf_that_does_not_begin_is_started_anew() -> None:
    async def main() -> None:
        async def test(watches: Watches, view: ClusterView) -> None:
            await until(lambda: watches.synced and watches.alive)

        made = [DeafWatch(starts=False), DeafWatch(starts=False), DeafWatch()]
        await watching(FakeApiServer(), made, test)

    run_simulated(main())


def test_a_first_listing_that_fails_is_tried_again() -> None:
    async def main() -> None:
        api = Failing(FakeApiServer())

        async def test(watches: Watches, view: ClusterView) -> None:
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=5)
            assert not watches.synced
            api.is_ill = False
            await until(lambda: watches.synced)

        await watching(api, [DeafWatch()], test)

    run_simulated(main())


async def touch_node(api: FakeApiServer, mark: int) -> None:
    patch = {"metadata": {"labels": {"mark": str(mark)}}}
    await api.request("PATCH", "/api/v1/nodes/n1", None, patch, MERGE)


def test_a_watch_that_tells_nothing_of_what_changes_is_unhealthy() -> None:
    async def main() -> None:
        api = FakeApiServer()
        await api.request("POST", "/api/v1/nodes", None, {"metadata": {"name": "n1"}})

        async def test(watches: Watches, view: ClusterView) -> None:
            await until(lambda: watches.synced)
            await pause(LIST_AGAIN_S + 1)
            assert watches.trouble == "", "a watch may be quiet where nothing changes"
            await touch_node(api, 1)
            await pause(LIST_AGAIN_S)
            assert "the watch of nodes tells nothing" in watches.trouble

        await watching(api, [DeafWatch()], test)

    run_simulated(main())


def test_a_watch_that_tells_of_changes_late_is_well() -> None:
    async def main() -> None:
        api = FakeApiServer()
        await api.request("POST", "/api/v1/nodes", None, {"metadata": {"name": "n1"}})

        async def test(watches: Watches, view: ClusterView) -> None:
            await until(lambda: watches.synced)
            await pause(1)
            for mark in range(4):
                await touch_node(api, mark)
                await pause(LIST_AGAIN_S)
                watches._from_kopf(NODES, "MODIFIED", api.objects["/api/v1/nodes/n1"])
                await pause(0)
                assert watches.trouble == ""

        await watching(api, [DeafWatch()], test)

    run_simulated(main())
