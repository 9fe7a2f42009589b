"""A wanted block on its way from the segment being reclaimed to the end of the log.

It is appended only while the index still points at its source, under the lock that orders deletes:
a delete before it wins (the copy is dropped), a delete after it lies later in the log and wins too.
"""

from typing import TYPE_CHECKING, Self

from memkv.limits import SECTOR_BYTES
from memkv.store.arena import Extent
from memkv.store.layout import ENTRY, Kind, RecordHeader, record_sectors, write_record_header
from memkv.store.log import Append
from memkv.store.records import Place, judge, payload_ok
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import Segment

if TYPE_CHECKING:
    from memkv.store.core import StoreCore
    from memkv.store.reclaim import Reclaim, Wanted


class BlockCopy(Append):
    """Reads the block if it is not in DRAM, checks all of it, appends it again."""

    __slots__ = ("_core", "_extent", "_header", "_reclaim", "_source", "_wanted")

    def __init__(
        self, core: "StoreCore", reclaim: "Reclaim", wanted: "Wanted", extent: Extent
    ) -> None:
        super().__init__(wanted.tenant, record_sectors(wanted.entry.length), urgent=True)
        self._core = core
        self._reclaim = reclaim
        self._wanted = wanted
        self._extent = extent
        self._source = wanted.sector
        self._header: RecordHeader | None = None

    @classmethod
    def begin(cls, core: "StoreCore", reclaim: "Reclaim", wanted: "Wanted") -> Self | None:
        """Start a copy; None when there is no memory for it now."""
        handle = core.live_handle(wanted.tenant.number, wanted.entry.block_id, wanted.sector)
        buffer = core.index.buffer(handle) if handle >= 0 else -1
        if buffer >= 0:
            extent = core.arena.get(buffer)
            assert extent.header is not None
            if not payload_ok(extent.view, extent.header):
                # What was read went bad, or was read badly; what lies on flash may be whole.
                core.counters.corrupt += 1
                core.drop_buffer(extent)
                buffer = -1
        if buffer >= 0:
            core.arena.hold(extent)
        else:
            sectors = record_sectors(wanted.entry.length)
            found = core.arena.allocate(sectors, wanted.tenant.number) or core.take_reserve()
            if found is None:
                return None
            extent = found
        copy = cls(core, reclaim, wanted, extent)
        reclaim.copies_in_flight += 1
        if handle < 0:
            copy._end()
        elif buffer >= 0:
            copy._header = extent.header
            core.log.add(copy)
        else:
            request = IoRequest(
                IoKind.READ, wanted.sector * SECTOR_BYTES,
                [extent.view[: copy.sectors * SECTOR_BYTES]],
                lambda ok, _error: copy._read(ok),
            )  # fmt: skip
            core.log.request(request)
        return copy

    def _read(self, ok: bool) -> None:
        core, entry = self._core, self._wanted.entry
        source = core.table.at_sector(self._source)
        place = Place(self._source * SECTOR_BYTES, source.sequence, source.nonce)
        found = (
            judge(
                self._extent.view[: self.sectors * SECTOR_BYTES], place, core.config.checks,
                block_id=entry.block_id, tenant_tag=entry.tenant_tag, payload=True,
            )
            if ok
            else None
        )  # fmt: skip
        if isinstance(found, RecordHeader):
            self._header = found
            core.log.add(self)
            return
        core.counters.read_errors += not ok
        core.counters.corrupt += ok
        self._reclaim.evict(self._wanted)
        self._end()

    def _live(self) -> int:
        entry = self._wanted.entry
        return self._core.live_handle(self._wanted.tenant.number, entry.block_id, self._source)

    def check(self) -> None:
        """Cancel the copy when its block was deleted, just before a place is given."""
        if self._live() < 0:
            self.cancelled = True

    def encode(self, segment: Segment, sector: int) -> tuple[memoryview, bytes]:
        """Write the header for the new place, all else as it was."""
        assert self._header is not None
        header = self._header._replace(
            sequence=segment.sequence, nonce=segment.nonce, device_offset=sector * SECTOR_BYTES
        )
        self._header = self._extent.header = header
        write_record_header(self._extent.view, header)
        entry = ENTRY.pack(
            header.block_id, header.tenant_tag, header.generation, sector - segment.base_sector,
            header.length, header.expiry_s, header.depth, header.tenant_generation, Kind.BLOCK,
        )  # fmt: skip
        return self._extent.view[: self.sectors * SECTOR_BYTES], entry

    def written(self, ok: bool, error: int) -> None:
        """Point the index at the new place, unless the block was deleted meanwhile."""
        if ok:
            handle = self._live()
            if handle >= 0:
                self._core.index.relocate(handle, self.sector)
            self._reclaim.copied()
            self._core.counters.reappended_blocks += 1
            self._core.counters.reappended_bytes += self.sectors * SECTOR_BYTES
        elif not self.cancelled:
            self._reclaim.evict(self._wanted)
        self._end()

    def _end(self) -> None:
        self._reclaim.copies_in_flight -= 1
        self._core.give_back(self._extent)

    def durable(self, ok: bool) -> None:
        """A failed flush: the source is still whole, point back at it."""
        if ok:
            return
        self._reclaim.copy_lost()
        entry = self._wanted.entry
        handle = self._core.live_handle(self._wanted.tenant.number, entry.block_id, self.sector)
        if handle >= 0:
            self._core.index.relocate(handle, self._source)
