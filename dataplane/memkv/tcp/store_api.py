"""What transports and nodes need of a store, as Protocols. `memkv.store` is the real one.

All calls are thread-safe but those of a `StoreReader` and a `PendingPut`, which belong to the
thread that got them. Deadlines are monotonic ns.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

from memkv.status import Status
from memkv.store.direct import Target
from memkv.store.requests import PutRequest
from memkv.store.statistics import StoreStatistics
from memkv.tenant import TenantScope
from memkv.wire.events import EventsPage, EventsRequest
from memkv.wire.messages import ListPage, ListRequest


class BlockHeader(Protocol):
    """What is stored beside a block's bytes."""

    @property
    def root(self) -> bytes: ...
    @property
    def sums(self) -> bytes:
        """8 bytes a chunk."""

    @property
    def expiry_s(self) -> int:
        """Wall time, 0: never."""

    @property
    def depth(self) -> int: ...
    @property
    def prefix_id(self) -> bytes: ...
    @property
    def session_id(self) -> bytes: ...


class ReadResult(Protocol):
    """One block of a read. When `status` is OK, `payload` is pinned until `release`."""

    @property
    def status(self) -> Status: ...
    @property
    def length(self) -> int:
        """Of the block, when OK and for BUFFER_TOO_SMALL."""

    @property
    def header(self) -> BlockHeader | None:
        """Set when OK."""

    @property
    def payload(self) -> memoryview: ...
    @property
    def source(self) -> str:
        """ "dram" or "flash"."""

    @property
    def placed(self) -> bool:
        """With OK of `read_into`: the bytes lie in the target already; `payload` is empty."""

    def release(self) -> None:
        """Unpin. To be called once for every result, whatever its status."""


class StoreReader(Protocol):
    """One thread's way to read blocks."""

    def read(
        self,
        tenant: TenantScope,
        ids: bytes,
        max_lengths: Sequence[int],
        deadline_ns: int,
        verify: bool = False,
        background: bool = False,
    ) -> Iterator[tuple[int, ReadResult]]:
        """Yield (position, result) once for each id, in order of completion.

        `verify`: check payload sums, reading again what fails. `background`: leave recency and
        DRAM as they are. Closing the iterator early gives
        back what was not yielded yet.
        """

    def read_into(
        self,
        tenant: TenantScope,
        ids: bytes,
        targets: Sequence[Target],
        deadline_ns: int,
        verify: bool = False,
        guard_fd: int = -1,
    ) -> Generator[tuple[int, ReadResult], None, None]:
        """As `read`; blocks on flash may be read straight into their target.

        Nothing is written into a target after its result, nor after the iterator ended; it may
        take longer than the deadline for that. `guard_fd` is held open while a drive may write.
        """

    def hit(self, tenant: TenantScope, block_id: bytes, max_length: int) -> ReadResult | None:
        """Return a block that is in DRAM and fits, with what `read` would do for it, or None.

        None says nothing about the block and leaves no trace: `read` is asked instead.
        """

    def close(self) -> None: ...


class PendingPut(Protocol):
    """A block being received. Ends with `commit` or `abort`."""

    @property
    def payload(self) -> memoryview:
        """Writable, exactly the block's length."""

    def commit(self, received_sums: bytes | None = None) -> Status:
        """Check sums and root; make visible and queue for flash. CORRUPT when they differ."""

    def abort(self) -> None:
        """Forget it; nothing becomes visible."""


class BlockStore(Protocol):
    """The store of one worker."""

    def lease(self, tenant: TenantScope, ids: bytes, lease_ms: int) -> None:
        """Protect blocks from eviction for a moment, best effort."""

    def exists(self, tenant: TenantScope, ids: bytes, now_s: int) -> bytes:
        """Return an i32 of 1 or 0 for each id."""

    def why(self, tenant: TenantScope, ids: bytes) -> bytes:
        """Return an i32 of a `MissReason` for each id."""

    def prefetch(self, tenant: TenantScope, ids: bytes) -> bytes:
        """Have blocks brought from flash into DRAM, best effort, and return at once an i32 for
        each id: a `Prefetched`, or BUSY where it will not be done."""

    def new_reader(self) -> StoreReader: ...
    def begin_put(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> PendingPut | Status:
        """Reserve memory, waiting until the deadline; OK when the block is present already, MISS
        for a copy of what was deleted here."""

    def wait_durable(self, puts: Sequence[PendingPut], deadline_ns: int) -> list[Status]:
        """Wait until committed puts are behind a completed flush."""

    def delete(self, tenant: TenantScope, ids: bytes, deadline_ns: int) -> bytes:
        """Return an i32 status for each id once its tombstone is durable."""

    def pin(self, tenant: TenantScope, ids: bytes, ttl_s: int) -> bytes:
        """Return an i32 status for each id; `ttl_s` 0 unpins."""

    def events_page(self, tenant: TenantScope, request: EventsRequest) -> EventsPage | None:
        """Return a page of what came and went of a tenant's blocks, or of what is there; None: too
        many tenants are watched."""

    def list_page(self, request: ListRequest) -> ListPage:
        """Return a page of a slot's blocks or tombstones."""

    def statistics(self) -> StoreStatistics: ...
