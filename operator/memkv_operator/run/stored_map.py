"""The MemKVShardMap of one pool: read once at take-over, then written by compare-and-swap."""

import logging

from memkv.errors import ConfigError, RetryLater
from memkv.metadata.kubernetes.errors import Conflict, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv.metadata.kubernetes.shardmap_object import pool_uid_of, spec_of, state_of
from memkv.metadata.publisher import PublisherState
from memkv_operator.api.meta import child_meta, read_meta
from memkv_operator.api.names import COMPONENT_METADATA, POOLS, SHARD_MAPS, pool_labels
from memkv_operator.api.pool import Pool
from memkv_operator.kube.leadership import LeadershipLost
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.map")


class StoredMap:
    """What is stored of a pool's map."""

    def __init__(self, pool: Pool, objects: Objects) -> None:
        self._pool = pool
        self._objects = objects
        self._version = ""
        self._last: Manifest | None = None
        """The spec that was stored last, as far as is known."""

    async def read(self) -> PublisherState | None:
        """Return the stored state, None where there is none. ConfigError when it is damaged.

        The map of an earlier pool of this name is deleted first, with RetryLater.
        """
        found = await self._read()
        if found is None:
            self._version, self._last = "", None
            return None
        if pool_uid_of(found) != self._pool.meta.uid:
            meta = read_meta(Reader(found))
            await self._objects.delete(SHARD_MAPS, meta.namespace, meta.name, meta.uid)
            raise RetryLater(f"the map of an earlier pool {self._pool.key} is being deleted")
        try:
            state = state_of(found)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. Restore it from a copy; or delete the MemKVShardMap "
                f"{self._pool.meta.name}, and the pool starts a new lineage: nodes keep their "
                "blocks, and deletes that a node missed while it was away are forgotten"
            ) from error
        self._remember(found)
        return state

    async def write(self, state: PublisherState) -> None:
        """Store a state. LeadershipLost when another operator has published since.

        RetryLater: it may be stored or not; write the same state again.
        """
        spec = spec_of(state, self._pool.meta.uid)
        try:
            stored = await self._swap(spec)
        except Conflict:
            stored = await self._after_conflict(spec)
        self._remember(stored)

    async def _swap(self, spec: Manifest) -> JsonObject:
        pool = self._pool.meta
        labels = pool_labels(pool.name, COMPONENT_METADATA)
        meta = child_meta(POOLS, pool, pool.name, labels)
        manifest: Manifest = {
            "apiVersion": SHARD_MAPS.api_version,
            "kind": SHARD_MAPS.kind,
            "metadata": meta,
            "spec": spec,
        }
        if not self._version:
            return await self._objects.create(SHARD_MAPS, pool.namespace, manifest)
        meta["resourceVersion"] = self._version
        try:
            return await self._objects.replace(SHARD_MAPS, pool.namespace, pool.name, manifest)
        except NotFound:
            # Somebody deleted it. The history is here, so it goes on.
            self._version = ""
            del meta["resourceVersion"]
            return await self._objects.create(SHARD_MAPS, pool.namespace, manifest)

    async def _after_conflict(self, spec: Manifest) -> JsonObject:
        """Find out who wrote: ourselves, a person who touched labels, or another operator."""
        found = await self._read()
        if found is None:
            self._version = ""
            raise RetryLater("the MemKVShardMap vanished while it was written")
        there = Reader(found).object("spec").value
        if there == spec:
            return found  # an earlier try that had no answer came through
        if self._last is not None and there == self._last:
            self._remember(found)
            raise RetryLater("the MemKVShardMap was touched by somebody; writing again")
        raise LeadershipLost(
            f"another operator published a map of {self._pool.key}; this one stops"
        )

    async def _read(self) -> JsonObject | None:
        meta = self._pool.meta
        return await self._objects.get(SHARD_MAPS, meta.namespace, meta.name)

    def _remember(self, manifest: JsonObject) -> None:
        self._version = read_meta(Reader(manifest)).resource_version
        self._last = dict(Reader(manifest).object("spec").value)
