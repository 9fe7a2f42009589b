"""A pool's map from its MemKVShardMap: what `memkv metadata --kubernetes` serves.

With the API server away the last map is served for ever. A deleted MemKVShardMap changes nothing
either: its pool is going, and until then an old map is better than none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from memkv.clock import Clock
from memkv.errors import ConfigError
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.metadata.kubernetes.listing import Listing
from memkv.metadata.kubernetes.reflector import Reflector
from memkv.metadata.kubernetes.shardmap_object import collection_path, map_of
from memkv.shardmap import ShardMap

log = logging.getLogger("memkv.metadata")


class ShardMapSource:
    """Follows one MemKVShardMap and hands over each newer map."""

    def __init__(
        self,
        api: ApiServer,
        pool: str,
        on_map: Callable[[ShardMap], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """`pool`: "namespace/name". The source closes `api` when it ends."""
        namespace, _, self._name = pool.partition("/")
        self._on_map = on_map
        self._api = api
        self._news = asyncio.Event()
        self._latest: ShardMap | None = None
        query = {"fieldSelector": f"metadata.name={self._name}"}
        self._reflector = Reflector(api, collection_path(namespace), query, self, clock)

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await asyncio.gather(self._reflector.run(), self._hand_over())
        finally:
            await self._api.close()

    async def _hand_over(self) -> None:
        """Give the newest map; those that came while one was given are skipped."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._latest is not None:
                await self._on_map(self._latest)

    def replaced(self, listing: Listing) -> None:
        """As Listener."""
        for item in listing.items:
            self.changed(item)
        if not listing.items and self._latest is None:
            log.info("there is no MemKVShardMap %s yet; waiting for the operator", self._name)

    def changed(self, item: JsonObject) -> None:
        """As Listener. A map that is damaged or older than the one in use changes nothing."""
        if Reader(item).object("metadata").text("name") != self._name:
            return
        try:
            shard_map = map_of(item)
        except ConfigError as error:
            log.error("%s; the last map stays in use", error)
            return
        latest = self._latest
        if (
            latest is not None
            and latest.version.same_lineage(shard_map.version)
            and not shard_map.version.newer_than(latest.version)
        ):
            return
        self._latest = shard_map
        log.info("map %s", shard_map.version)
        self._news.set()

    def deleted(self, item: JsonObject) -> None:
        """As Listener."""
        log.warning("the MemKVShardMap %s was deleted; its last map stays in use", self._name)
