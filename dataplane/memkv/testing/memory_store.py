"""A `memkv.tcp.store_api.BlockStore` in a dictionary, with gates where tests want to wait.

It checks what the real store checks of a put, and counts pinned buffers, so that a server that
forgets to release one fails its test.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from memkv.checksum import verify_payload, verify_root
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.direct import Target
from memkv.store.requests import PutRequest
from memkv.store.statistics import StoreStatistics
from memkv.tenant import TenantScope
from memkv.wire.events import EventsPage, EventsRequest, FeedFlag, FeedKind
from memkv.wire.messages import ListEntry, ListPage, ListRequest, pack_statuses

ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """One stored block."""

    request: PutRequest
    payload: bytes

    @property
    def root(self) -> bytes:
        return self.request.root

    @property
    def sums(self) -> bytes:
        return self.request.sums

    @property
    def expiry_s(self) -> int:
        return self.request.expiry_s

    @property
    def depth(self) -> int:
        return self.request.depth

    @property
    def prefix_id(self) -> bytes:
        return self.request.prefix_id

    @property
    def session_id(self) -> bytes:
        return self.request.session_id


class MemoryResult:
    """One block of a read."""

    def __init__(self, store: "MemoryStore", status: Status, block: MemoryBlock | None) -> None:
        self._store = store
        self.status = status
        self.header = block if status is Status.OK else None
        self.length = block.request.length if block is not None else 0
        self.payload = memoryview(block.payload) if block is not None else memoryview(b"")
        self.source = "dram"
        self.placed = False
        store.pinned += 1

    def release(self) -> None:
        self._store.pinned -= 1


class MemoryReader:
    """Answers in the order of the request, or reversed to be unlike it."""

    def __init__(self, store: "MemoryStore") -> None:
        self._store = store

    def read(
        self,
        tenant: TenantScope,
        ids: bytes,
        max_lengths: Sequence[int],
        deadline_ns: int,
        verify: bool = False,
        background: bool = False,
    ) -> Iterator[tuple[int, MemoryResult]]:
        self._store.reads_verified += verify
        for position in reversed(range(len(max_lengths))):
            block_id = ids[position * ID_BYTES : (position + 1) * ID_BYTES]
            block = self._store.blocks.get((tenant.tag, block_id))
            status = Status.OK
            if block is None:
                status = Status.MISS
            elif block.request.length > max_lengths[position]:
                status = Status.BUFFER_TOO_SMALL
            elif not verify_payload(
                block.payload, block_id, tenant.tag, block.request.length, block.sums, block.root
            ):
                status = Status.CORRUPT
            yield position, MemoryResult(self._store, status, block)

    def read_into(
        self, tenant: TenantScope, ids: bytes, targets: Sequence[Target], deadline_ns: int,
        verify: bool = False, guard_fd: int = -1,
    ) -> Generator[tuple[int, MemoryResult], None, None]:  # fmt: skip
        """There is no flash here."""
        yield from self.read(tenant, ids, [target.room for target in targets], deadline_ns, verify)

    def hit(self, tenant: TenantScope, block_id: bytes, max_length: int) -> MemoryResult | None:
        for _, result in self.read(tenant, block_id, [max_length], 0):
            if result.status is Status.OK:
                return result
            result.release()
        return None

    def close(self) -> None:
        """Nothing to free."""


class MemoryPut:
    """A block being received."""

    def __init__(self, store: "MemoryStore", tenant: TenantScope, request: PutRequest) -> None:
        self._store = store
        self._tenant = tenant
        self._request = request
        self.payload = memoryview(bytearray(request.length))
        store.puts_open += 1

    def commit(self, received_sums: bytes | None = None) -> Status:
        self._store.puts_open -= 1
        request = self._request
        if received_sums != request.sums or not verify_root(
            request.block_id, self._tenant.tag, request.length, request.sums, request.root
        ):
            return Status.CORRUPT
        key = (self._tenant.tag, request.block_id)
        self._store.blocks.setdefault(key, MemoryBlock(request, bytes(self.payload)))
        return Status.OK

    def abort(self) -> None:
        self._store.puts_open -= 1


class MemoryStore:
    """Blocks by (tenant tag, id). `put_gate` and `durable_gate` let calls wait."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[bytes, bytes], MemoryBlock] = {}
        self.pinned = 0
        self.puts_open = 0
        self.reads_verified = 0
        self.waited_durable = 0
        self.put_answer: Status | None = None
        """When set, what `begin_put` answers instead of taking a block."""
        self.delete_gate = threading.Event()
        self.delete_gate.set()
        self.in_delete = threading.Event()

    def exists(self, tenant: TenantScope, ids: bytes, now_s: int) -> bytes:
        return pack_statuses([(tenant.tag, one) in self.blocks for one in _split(ids)])

    def new_reader(self) -> MemoryReader:
        return MemoryReader(self)

    def begin_put(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> MemoryPut | Status:
        if self.put_answer is not None:
            return self.put_answer
        if (tenant.tag, request.block_id) in self.blocks:
            return Status.OK
        return MemoryPut(self, tenant, request)

    def wait_durable(self, puts: Sequence[object], deadline_ns: int) -> list[Status]:
        self.waited_durable += len(puts)
        return [Status.OK] * len(puts)

    def delete(self, tenant: TenantScope, ids: bytes, deadline_ns: int) -> bytes:
        self.in_delete.set()
        self.delete_gate.wait()
        for one in _split(ids):
            self.blocks.pop((tenant.tag, one), None)
        return pack_statuses([Status.OK] * (len(ids) // ID_BYTES))

    def pin(self, tenant: TenantScope, ids: bytes, ttl_s: int) -> bytes:
        return pack_statuses(
            [Status.OK if (tenant.tag, one) in self.blocks else Status.MISS for one in _split(ids)]
        )

    def lease(self, tenant: TenantScope, ids: bytes, lease_ms: int) -> None:
        """Nothing is ever evicted here."""

    def why(self, tenant: TenantScope, ids: bytes) -> bytes:
        """Remembers nothing."""
        present = [(tenant.tag, one) in self.blocks for one in _split(ids)]
        return pack_statuses(
            [MissReason.PRESENT if there else MissReason.NEVER_STORED for there in present]
        )

    def prefetch(self, tenant: TenantScope, ids: bytes) -> bytes:
        """There is no flash here."""
        return pack_statuses([2 * ((tenant.tag, one) in self.blocks) for one in _split(ids)])

    def events_page(self, tenant: TenantScope, request: EventsRequest) -> EventsPage | None:
        """Nothing is kept: always a gap, and an empty snapshot."""
        return EventsPage(1, 0, FeedFlag.GAP if request.kind == FeedKind.EVENTS else FeedFlag.NONE)

    def list_page(self, request: ListRequest) -> ListPage:
        listed = [
            ListEntry(block_id, tag, block.request.length, 0, block.request.depth, 0)
            for (tag, block_id), block in self.blocks.items()
        ]
        end = request.cursor + request.limit
        page = tuple(listed[request.cursor : end])
        return ListPage(request.kind, end if end < len(listed) else 0, page)

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(len(self.blocks), 0, 0, 0, 0, 0, {}, 0, 1 << 30, 0, 0, (), 0, 0)


def _split(ids: bytes) -> list[bytes]:
    return [ids[start : start + ID_BYTES] for start in range(0, len(ids), ID_BYTES)]
