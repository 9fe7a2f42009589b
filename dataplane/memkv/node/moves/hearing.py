"""Asking previous owners for the deletes of slots that a worker gets back."""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from memkv.clock import Clock, deadline_after_ms
from memkv.errors import RetryLater
from memkv.node.moves.peer import Connect, Peer
from memkv.shardmap import ShardMap
from memkv.status import Status
from memkv.wire.messages import ListKind, ListPage

log = logging.getLogger("memkv.node")

DELETE_TIMEOUT_MS = 10_000  # as long as a drive may take for a flush that is not lost
_OK = int(Status.OK).to_bytes(4, "little", signed=True)


class DeletingStore(Protocol):
    """The part of a store that takes deletes of others over."""

    def delete_tagged(self, tenant_tag: bytes, ids: bytes, deadline_ns: int) -> bytes:
        """Return an i32 status for each id once its tombstone is durable."""


class Hearing:
    """Takes the deletes of slots over; for one thread."""

    def __init__(self, store: DeletingStore, connect: Connect, clock: Clock) -> None:
        self._store = store
        self._connect = connect
        self._clock = clock

    def run(
        self,
        shard_map: ShardMap,
        slots: Mapping[int, tuple[int, ...]],
        since_epochs: Mapping[int, int],
        heard: Callable[[int, bool], bool],
    ) -> None:
        """Ask for each slot the workers of `shard_map` whose indexes it has.

        `heard(slot, complete)` is called for each slot that all of them answered for; not complete:
        somebody forgot some deletes. It returns whether to go on. Slots whose peers fail are left.
        """
        peers: dict[int, Peer] = {}
        failed: set[int] = set()
        try:
            for slot, previous in slots.items():
                if not failed.isdisjoint(previous):
                    continue
                complete = True
                try:
                    for index in previous:
                        if index not in peers:
                            worker = shard_map.workers[index]
                            peers[index] = self._connect(worker, shard_map.version)
                        complete = complete and self._ask(peers[index], slot, since_epochs[slot])
                except RetryLater as error:
                    log.info("slot %d stays closed, trying again: %s", slot, error)
                    failed.add(index)
                    continue
                if not heard(slot, complete):
                    return
        finally:
            for peer in peers.values():
                peer.close()

    def _ask(self, peer: Peer, slot: int, since_epoch: int) -> bool:
        for page in peer.pages(slot, ListKind.TOMBSTONES, since_epoch):
            if not page.complete:
                return False
            self._delete(page)
        return True

    def _delete(self, page: ListPage) -> None:
        by_tag: dict[bytes, list[bytes]] = {}
        for entry in page.entries:
            by_tag.setdefault(entry.tenant_tag, []).append(entry.block_id)
        for tag, ids in by_tag.items():
            deadline_ns = deadline_after_ms(self._clock, DELETE_TIMEOUT_MS)
            if self._store.delete_tagged(tag, b"".join(ids), deadline_ns) != _OK * len(ids):
                raise RetryLater("the drive did not take a delete in time")
