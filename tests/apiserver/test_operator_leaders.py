"""Operators that die in the middle of publishing, and operators that compete, on a real API server.

MEMKV_LEADER_KILLS says how many leaders are killed: as many of them as MEMKV_LEADER_KILLS_S
seconds have time for, and 12 at least.
"""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.api_server import ApiServer, Observer, connect_api_server
from memkv.metadata.kubernetes.errors import Away
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.shardmap_object import map_of
from memkv.shardmap import UNASSIGNED, ShardMap, unpack_owners
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
KILLS_MIN = 12
KILLS = int(os.environ.get("MEMKV_LEADER_KILLS", str(KILLS_MIN)))
KILLS_S = float(os.environ.get("MEMKV_LEADER_KILLS_S", "240"))
LEASE_MS = 1000


class Mortal:
    """An ApiServer that its process can no longer reach after it was killed."""

    def __init__(self, api: ApiServer, dies_after_the_write: bool) -> None:
        self._api = api
        self._after = dies_after_the_write
        self.dead = asyncio.Event()

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        publishes = "memkvshardmaps" in path and method in ("PUT", "POST")
        if publishes and not self._after:
            self.dead.set()
        self._check()
        answer = await self._api.request(method, path, query, body, content_type)
        if publishes:
            self.dead.set()
        self._check()
        return answer

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        async for event in self._api.watch(path, query):
            self._check()
            yield event

    async def close(self) -> None:
        await self._api.close()

    def _check(self) -> None:
        if self.dead.is_set():
            raise Away("this process is dead")


async def follow_versions(api: ApiServer, path: str, version: str, heard: list[ShardMap]) -> None:
    """Watch what holds the map, from before there was one; on from there when a watch ends, as one
    does that hears nothing for a while."""
    query = {"resourceVersion": version}
    while True:
        with contextlib.suppress(Away):
            async for event in api.watch(path, query):
                item: Any = event["object"]
                if event["type"] in ("ADDED", "MODIFIED"):
                    heard.append(map_of(item))
                    query["resourceVersion"] = item["metadata"]["resourceVersion"]


async def lead_and_die(real: RealApi, name: str, after_the_write: bool) -> None:
    mortals: list[Mortal] = []

    async def connect(observer: Observer) -> ApiServer:
        mortals.append(Mortal(await connect_api_server(observer), after_the_write))
        return mortals[-1]

    async def died() -> bool:
        return real.has_ended() or (bool(mortals) and mortals[-1].dead.is_set())

    async with real.operator(name, LEASE_MS, connect=connect):
        await real.until(died)


@pytest.mark.timeout(900)
def test_versions_stay_monotonic_when_leaders_die_in_mid_publish(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(3)
        await real.make_pool()
        heard: list[ShardMap] = []
        maps = f"{real.root}/memkvshardmaps"
        listing: Any = await real.api.request("GET", maps)
        assert not listing["items"]
        version = listing["metadata"]["resourceVersion"]
        following = asyncio.create_task(follow_versions(real.api, maps, version, heard))
        clock, kills = SystemClock(), 0
        begun_ns = clock.monotonic_ns()

        def passed_s() -> float:
            return (clock.monotonic_ns() - begun_ns) / 1e9

        while kills < KILLS and (kills < KILLS_MIN or passed_s() < KILLS_S):
            await lead_and_die(real, f"operator-{kills}", kills % 2 == 1)
            kills += 1
        print(f"{kills} leaders killed in mid-publish in {passed_s():.0f} s")
        async with real.operator("last", 15_000):
            await real.until(real.is_ready)
        assert not following.done()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        check_history(heard, kills)
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
            if ended is None:
                return  # the one that leads goes on; the other test has take-overs
            before = await real.map()
            assert before is not None

            async def took_over() -> bool:
                found = await real.map()
                assert found is not None
                return other.leads and found.version.term > before.version.term

            await real.until(took_over)
            await real.until(real.is_ready)

    on_real_api(test)


def check_history(heard: list[ShardMap], kills: int) -> None:
    assert heard
    for before, after in itertools.pairwise(heard):
        if before.version == after.version:
            assert before.digest == after.digest
            continue
        assert after.version.newer_than(before.version)
        assert after.version.epoch > before.version.epoch
    assert heard[-1].version.term > kills // 4
    for shard_map in heard:
        assert UNASSIGNED not in unpack_owners(shard_map.owners)
