"""A watch that is silent because nothing happens is told from one that is dead."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.testing.api_server import FakeApiServer
from memkv_operator.api.names import DAEMON_SETS, MEMKV_NODES, NODES, POOLS, Resource
from memkv_operator.run.kopf_watch import OnEvent
from memkv_operator.run.view import ClusterView
from memkv_operator.run.watching import Watches
from memkv_operator.testing.cluster import PATH, pause

NODE = "/api/v1/nodes"
IN_TIME_S = 60.0


class SilentWatch:
    """An EventWatch that tells nothing by itself."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.alive = True

    async def start(self) -> None:
        """As EventWatch."""

    async def ended(self) -> None:
        """As EventWatch."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """As EventWatch."""


class Bench:
    """Watches over an API server, and how often each kind was heard of."""

    def __init__(self) -> None:
        self.api = FakeApiServer()
        self.heard: dict[Resource, int] = {}
        self.view = ClusterView(lambda key: None)
        self.silent: SilentWatch | None = None

    def make(self, namespaces: Sequence[str], on_event: OnEvent) -> SilentWatch:
        self.silent = SilentWatch(on_event)
        return self.silent

    def hear(self, resource: Resource) -> None:
        self.heard[resource] = self.heard.get(resource, 0) + 1

    def count(self, resource: Resource) -> int:
        return self.heard.get(resource, 0)

    async def until_listed(self, resource: Resource, times: int) -> None:
        """Wait until a kind was listed so many times more, and what followed was taken in."""
        path = resource.path()
        before = self.listed(path)
        while self.listed(path) < before + times + 1:
            await pause(0.01)

    def listed(self, path: str) -> int:
        return sum(one.method == "GET" and one.path == path for one in self.api.requests)


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        watches = Watches(bench.api, bench.view, (), SystemClock(), bench.hear, 0.05, bench.make)
        running = asyncio.create_task(watches.run())
        try:
            async with asyncio.timeout(IN_TIME_S):
                while not watches.synced:
                    await pause(0.01)
                await test(bench)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_kinds_of_which_nothing_changes_are_heard_of_with_each_listing() -> None:
    async def test(bench: Bench) -> None:
        before = dict(bench.heard)
        await bench.until_listed(NODES, 3)
        for resource in (POOLS, MEMKV_NODES, NODES, DAEMON_SETS):
            assert bench.count(resource) >= before.get(resource, 0) + 2

    run(test)


def test_a_watch_that_missed_something_is_heard_of_when_it_speaks_again() -> None:
    async def test(bench: Bench) -> None:
        await bench.api.request("POST", NODE, None, {"kind": "Node", "metadata": {"name": "n1"}})
        await bench.until_listed(NODES, 2)
        assert set(bench.view.kube_nodes) == {"n1"}  # the listing mends what the watch missed
        silent_since, pools = bench.count(NODES), bench.count(POOLS)
        await bench.until_listed(NODES, 3)
        assert bench.count(NODES) == silent_since
        assert bench.count(POOLS) > pools
        assert bench.silent is not None
        bench.silent.on_event(NODES, "MODIFIED", bench.api.objects[f"{NODE}/n1"])
        await bench.until_listed(NODES, 3)
        assert bench.count(NODES) > silent_since + 1

    run(test)


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_listing_has_of_news_counts(gone: bool) -> None:
    async def test(bench: Bench) -> None:
        manifest: JsonObject = {"kind": "MemKVPool", "metadata": {"name": "p"}, "spec": {}}
        made = await bench.api.request("POST", f"{PATH}/memkvpools", None, manifest)
        assert bench.silent is not None
        bench.silent.on_event(POOLS, "ADDED", made)
        await bench.until_listed(POOLS, 2)
        if gone:
            await bench.api.request("DELETE", f"{PATH}/memkvpools/p")
            await bench.until_listed(POOLS, 2)
        silent_since = bench.count(POOLS)
        await bench.until_listed(POOLS, 3)
        assert (bench.count(POOLS) == silent_since) is gone

    run(test)
