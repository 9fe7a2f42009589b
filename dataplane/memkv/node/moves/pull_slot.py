"""Copying one slot from one previous owner.

What keeps a deleted block deleted. A delete is acknowledged when every owner and previous owner
took it. So what the peer still lists was not deleted before it was listed; and what is deleted
after that is deleted here as well, where `PutRequest.unless_deleted_since` refuses it: either the
delete comes first and the copy is refused, or the copy comes first and the delete takes it away.
The generation to name is one from before the first delete that this worker accepted for the slot.
And a peer answers only by a map that knows of the move: an older one would take deletes of which
this worker is not told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from memkv import limits
from memkv.checksum import verify_root
from memkv.clock import Clock, deadline_after_ms
from memkv.node.moves.peer import Payload, Peer
from memkv.status import Status
from memkv.store.api import PendingPut
from memkv.store.requests import PutRequest
from memkv.tenant import TaggedTenant, TenantScope
from memkv.wire.items import PullResult
from memkv.wire.messages import ListEntry, ListKind

_RETRY = frozenset({Status.BUSY, Status.TIMEOUT, Status.UNAVAILABLE, Status.INTERNAL})


class PullStore(Protocol):
    """The part of a store that pulls use."""

    def exists(self, tenant: TenantScope, ids: bytes, now_s: int | None = None) -> bytes:
        """Return an i32 of 1 or 0 for each id."""

    def begin_put(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> PendingPut | Status:
        """Return a buffer to fill, or a status."""


@dataclass(slots=True)
class PullCounts:
    """What pulls did since start. Written by one thread."""

    blocks: int = 0
    bytes: int = 0
    refused: int = 0
    """Deleted or expired meanwhile, or no room for them."""
    corrupt: int = 0
    """Failed their sums on arrival, or at the peer."""
    failures: int = 0
    """Pulls of a slot that broke off and are tried again."""


class SlotPull:
    """One pull of one slot. `run` once."""

    def __init__(
        self, peer: Peer, store: PullStore, slot: int, since: int, counts: PullCounts, clock: Clock
    ) -> None:
        """`since`: generation of the store from before it accepted a delete of the slot."""
        self._peer = peer
        self._store = store
        self._slot = slot
        self._since = since
        self._counts = counts
        self._clock = clock
        self._retry = False
        self._bytes = 0

    def run(self, may_go_on: Callable[[int], bool]) -> bool:
        """Copy what is missing; return whether all of it is here or not wanted.

        `may_go_on(bytes)` is called after each page and each batch with what was received since: it
        may wait, and ends the pull by False. Raises RetryLater when the peer fails.
        """
        for page in self._peer.pages(self._slot, ListKind.BLOCKS):
            for tag, batch in batches(self._missing(page.entries)):
                statuses = self._peer.pull(tag, batch, partial(self._take, tag))
                self._retry = self._retry or not _RETRY.isdisjoint(statuses)
                self._counts.corrupt += statuses.count(Status.CORRUPT)
                if not self._paused(may_go_on):
                    return False
            if not self._paused(may_go_on):
                return False
        return not self._retry

    def _paused(self, may_go_on: Callable[[int], bool]) -> bool:
        received, self._bytes = self._bytes, 0
        return may_go_on(received)

    def _missing(self, entries: tuple[ListEntry, ...]) -> list[ListEntry]:
        """Return what is not here yet and still has time to live."""
        now_s = self._clock.wall_s()
        alive = [one for one in entries if not one.expiry_s or one.expiry_s > now_s]
        by_tag: dict[bytes, list[ListEntry]] = {}
        for entry in alive:
            by_tag.setdefault(entry.tenant_tag, []).append(entry)
        missing: list[ListEntry] = []
        for tag, group in by_tag.items():
            ids = b"".join([entry.block_id for entry in group])
            present = self._store.exists(TaggedTenant(tag), ids, now_s)
            missing += [entry for at, entry in enumerate(group) if not present[4 * at]]
        return missing

    def _take(self, tag: bytes, block_id: bytes, result: PullResult, payload: Payload) -> None:
        """Receive one block into the store's memory, so a pull holds one block at a time."""
        block = result.block
        self._bytes += block.length
        admitted: PendingPut | Status = Status.CORRUPT
        if verify_root(block_id, tag, block.length, block.sums, block.root):
            request = PutRequest(
                block_id, block.length, block.root, block.sums, depth=result.depth,
                prefix_id=result.prefix_id, session_id=result.session_id,
                expiry_s=result.expiry_s, unless_deleted_since=self._since,
            )  # fmt: skip
            # Little patience for memory: puts of clients want it too.
            deadline_ns = deadline_after_ms(self._clock, limits.PULL_MEMORY_WAIT_MS)
            admitted = self._store.begin_put(TaggedTenant(tag), request, deadline_ns)
        if isinstance(admitted, Status):
            payload.drop()
            self._count(admitted, 0)
            return
        committed = False
        try:
            sums = payload.into(admitted.payload)
            committed = True
            status = admitted.commit(sums)
        finally:
            if not committed:
                admitted.abort()
        self._count(status, block.length)

    def _count(self, status: Status, stored_bytes: int) -> None:
        if status is Status.OK:
            self._counts.blocks += stored_bytes > 0
            self._counts.bytes += stored_bytes
        elif status is Status.CORRUPT:
            self._counts.corrupt += 1
        elif status in _RETRY:
            self._retry = True
        else:
            self._counts.refused += 1


def batches(entries: list[ListEntry]) -> Iterator[tuple[bytes, list[bytes]]]:
    """Cut into requests of one tenant each, within limits.PULL_BATCH_BYTES and PULL_ITEMS_MAX; a
    block longer than that goes alone. `entries` are grouped by tenant."""
    batch: list[bytes] = []
    tag, size_bytes = b"", 0
    for entry in entries:
        full = size_bytes + entry.length > limits.PULL_BATCH_BYTES
        if batch and (entry.tenant_tag != tag or full or len(batch) == limits.PULL_ITEMS_MAX):
            yield tag, batch
            batch, size_bytes = [], 0
        tag = entry.tenant_tag
        batch.append(entry.block_id)
        size_bytes += entry.length
    if batch:
        yield tag, batch
