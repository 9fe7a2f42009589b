"""A put on its way: a buffer being filled, a place in the queue, a write, a flush.

    FILLING -> QUEUED -> WRITTEN -> DURABLE
       |         |----------|----> FAILED
       |-> ABORTED / PRESENT

The block is visible from QUEUED on (its bytes are in DRAM). The index entry belongs to the put
until it is durable; a delete takes it away and cancels the write if that has not begun.
"""

from enum import Enum
from typing import TYPE_CHECKING

from memkv.checksum import chunk_count
from memkv.limits import SECTOR_BYTES
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.arena import Extent
from memkv.store.layout import ENTRY, ZEROS, Kind, RecordHeader, record_sectors, write_record_header
from memkv.store.log import Append
from memkv.store.requests import PutRequest
from memkv.store.segments import Segment
from memkv.store.tenants import TenantState

if TYPE_CHECKING:
    from memkv.store.core import StoreCore

ENOSPC = 28


class PutState(Enum):
    """How far a put has come."""

    FILLING = "filling"
    QUEUED = "queued"
    WRITTEN = "written"
    DURABLE = "durable"
    FAILED = "failed"
    ABORTED = "aborted"
    PRESENT = "present"


class Put(Append):
    """One block being stored. Everything here happens under the store's lock."""

    __slots__ = ("alias", "core", "extent", "failure", "handle", "header", "request", "state")

    def __init__(
        self, core: "StoreCore", tenant: TenantState, request: PutRequest, extent: Extent
    ) -> None:
        super().__init__(tenant, record_sectors(request.length))
        self.core = core
        self.request = request
        self.extent = extent
        self.state = PutState.FILLING
        self.handle = -1
        self.header: RecordHeader | None = None
        self.alias: Put | None = None
        self.failure = Status.UNAVAILABLE

    def status(self) -> Status | None:
        """Return the result of waiting for durability, None while there is none."""
        if self.state is PutState.PRESENT:
            return Status.OK if self.alias is None else self.alias.status()
        if self.state is PutState.DURABLE:
            return Status.OK
        if self.state is PutState.FAILED:
            return self.failure
        if self.state is PutState.ABORTED:
            return Status.INVALID
        return None

    def status_or(self, unknown: Status) -> Status:
        """Return the result, `unknown` while there is none."""
        status = self.status()
        return unknown if status is None else status

    def prepare(self, generation: int, expiry_s: int) -> None:
        """Make the header, all but its place, and clear the padding behind the payload."""
        r = self.request
        self.header = RecordHeader(
            Kind.BLOCK, r.block_id, self.tenant.tag, 0, r.depth, generation, 0, 0, 0, r.length,
            expiry_s, chunk_count(r.length), r.prefix_id, r.session_id, r.root, r.sums,
        )  # fmt: skip
        self.extent.header = self.header
        end = SECTOR_BYTES + r.length
        self.extent.view[end:] = ZEROS[: self.sectors * SECTOR_BYTES - end]

    def encode(self, segment: Segment, sector: int) -> tuple[memoryview, bytes]:
        """Complete the header with its place."""
        assert self.header is not None
        h = self.header = self.header._replace(
            sequence=segment.sequence, nonce=segment.nonce, device_offset=sector * SECTOR_BYTES
        )
        self.extent.header = h
        write_record_header(self.extent.view, h)
        entry = ENTRY.pack(
            h.block_id, h.tenant_tag, h.generation, sector - segment.base_sector, h.length,
            h.expiry_s, h.depth, 0, Kind.BLOCK,
        )  # fmt: skip
        return self.extent.view, entry

    def owns_entry(self) -> bool:
        """Say whether the index entry is still this put's."""
        return self.core.undurable.get(self.handle) is self

    def written(self, ok: bool, error: int) -> None:
        """The block can be read from flash from now on, or it is lost."""
        if ok:
            self.state = PutState.WRITTEN
            if self.owns_entry():
                self.core.index.relocate(self.handle, self.sector)
            if self.request.durable:
                self.core.log.flush_wanted = True
        else:
            self._fail(Status.NO_SPACE if error == ENOSPC else Status.UNAVAILABLE)
        self.core.arena.release(self.extent)

    def durable(self, ok: bool) -> None:
        """The flush's verdict."""
        if not ok:
            self._fail(Status.UNAVAILABLE)
            return
        self.state = PutState.DURABLE
        if self.owns_entry():
            del self.core.undurable[self.handle]

    def _fail(self, status: Status) -> None:
        self.state = PutState.FAILED
        self.failure = status
        if not self.cancelled:
            self.core.counters.puts_failed += 1
        if self.owns_entry():
            self.core.remove_entry(self.handle)
            self.core.left(self.tenant, self.request.block_id, MissReason.LOST)
