"""Every map that a server ever stored for its pools, and what must be true of them together."""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.errors import Away
from memkv.metadata.kubernetes.shardmap_object import map_of
from memkv.shardmap import UNASSIGNED, ShardMap, unpack_owners
from memkv_operator.testing.tasks import end_task

Histories = dict[str, list[ShardMap]]
"""By namespace, in the order in which they were stored."""


@asynccontextmanager
async def histories_of(api: ApiServer, path: str) -> AsyncIterator[Histories]:
    """Follow the MemKVShardMaps of a path meanwhile; one pool in each namespace."""
    heard: Histories = defaultdict(list)
    listing: Any = await api.request("GET", path)
    version = listing["metadata"]["resourceVersion"]
    following = asyncio.create_task(_follow(api, path, version, heard))
    try:
        yield heard
        assert not following.done()
    finally:
        await end_task(following)


async def _follow(api: ApiServer, path: str, version: str, heard: Histories) -> None:
    """Go on from where a watch ended, as one does that hears nothing for a while."""
    query = {"resourceVersion": version}
    while True:
        with contextlib.suppress(Away):
            async for event in api.watch(path, query):
                item: Any = event["object"]
                if event["type"] in ("ADDED", "MODIFIED"):
                    heard[item["metadata"]["namespace"]].append(map_of(item))
                    query["resourceVersion"] = item["metadata"]["resourceVersion"]


def check_history(heard: Sequence[ShardMap]) -> None:
    """Versions grow and never name two maps, and each slot has exactly one owner in each map."""
    assert heard
    for before, after in itertools.pairwise(heard):
        if before.version == after.version:
            assert before.digest == after.digest
            continue
        assert after.version.newer_than(before.version)
        assert after.version.epoch > before.version.epoch
    for shard_map in heard:
        owners = unpack_owners(shard_map.owners)
        assert UNASSIGNED not in owners
        assert set(owners) <= set(range(len(shard_map.workers)))
