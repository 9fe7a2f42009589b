"""Scan of a segment without a footer: every record that proves itself, and nothing else.

Records in flight together reach flash in any order, so a scan looks across gaps; not further than
the writes in flight could reach, for a flushed record has no larger gap before it.
"""

from collections.abc import Generator

from memkv.limits import MIB, SECTOR_BYTES
from memkv.store.checks import Checks
from memkv.store.layout import (
    ENTRY,
    RECORD_MAGIC,
    TOMBSTONE,
    Kind,
    RecordHeader,
    aligned_buffer,
    decode_record_header,
    record_sectors,
)
from memkv.store.log import WRITE_BYTES_IN_FLIGHT_MAX
from memkv.store.records import Flaw, Place, judge
from memkv.store.recovery_table import RECORD_CASES, RecordAction
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import Segment

WINDOW_BYTES = 4 * MIB  # one sequential read


class Scanner:
    """Reads one segment after another through one window. `entries` are those of the last scan."""

    def __init__(self, segment_bytes: int, block_bytes_max: int, checks: Checks) -> None:
        record = record_sectors(block_bytes_max) * SECTOR_BYTES
        self._segment_sectors = segment_bytes // SECTOR_BYTES
        self._window = aligned_buffer(min(segment_bytes, max(WINDOW_BYTES, 2 * record)))
        self._gap_sectors_max = (WRITE_BYTES_IN_FLIGHT_MAX + record) // SECTOR_BYTES
        self._checks = checks
        self._first = 0  # the window's sectors in the segment
        self._end = 0
        self._failed = False
        self.entries = bytearray()
        self.torn = 0
        self.unreadable = False
        """Whether sectors of the last scan could not be read; what lies there may show again."""
        self.next_sector = 1

    def scan(self, segment: Segment) -> Generator[list[IoRequest], None, None]:
        """Collect the entries of a segment in log order."""
        self.entries = bytearray()
        self.unreadable = False
        self.next_sector = sector = 1
        self._first = self._end = 0
        while sector < self._segment_sectors:
            if sector - self.next_sector > self._gap_sectors_max:
                return
            if sector >= self._end:
                yield from self._load(segment, sector)
            page = self._at(sector)
            if page[:8] != RECORD_MAGIC:
                sector += 1
                continue
            header = decode_record_header(page)
            size = 1 if header is None or header.kind != Kind.BLOCK else self._size(header)
            if sector + size > self._end and sector > self._first:
                yield from self._load(segment, sector)
            sector += self._take(segment, sector)

    def _size(self, header: RecordHeader) -> int:
        return min(record_sectors(header.length), len(self._window) // SECTOR_BYTES)

    def _at(self, sector: int) -> memoryview:
        return self._window[
            (sector - self._first) * SECTOR_BYTES : (self._end - self._first) * SECTOR_BYTES
        ]

    def _take(self, segment: Segment, sector: int) -> int:
        """Judge the record at `sector`; return how many sectors to go on."""
        place = Place(segment.offset + sector * SECTOR_BYTES, segment.sequence, segment.nonce)
        record = self._at(sector)
        found = judge(record, place, self._checks, payload=True)
        action = RECORD_CASES[found if isinstance(found, Flaw) else Kind(found.kind)]
        if action is RecordAction.STEP:
            return 1
        if isinstance(found, Flaw):
            self.torn += 1
            header = decode_record_header(record)
            return 1 if header is None else self._size(header)
        self._adopt(found, sector)
        size = record_sectors(found.length) if found.kind == Kind.BLOCK else 1
        self.next_sector = sector + size
        return size

    def _adopt(self, h: RecordHeader, sector: int) -> None:
        if h.kind == Kind.BLOCK:
            self.entries += ENTRY.pack(
                h.block_id, h.tenant_tag, h.generation, sector, h.length, h.expiry_s, h.depth,
                h.tenant_generation, Kind.BLOCK,
            )  # fmt: skip
            return
        for block_id, generation in TOMBSTONE.iter_unpack(h.sums):
            self.entries += ENTRY.pack(
                block_id, h.tenant_tag, generation, sector, 0, 0, 0, 0, Kind.TOMBSTONES
            )

    def _load(
        self, segment: Segment, sector: int
    ) -> Generator[list[IoRequest], None, None]:
        """Move the window so that it starts at `sector`."""
        size = min(len(self._window) // SECTOR_BYTES, self._segment_sectors - sector)
        self._first, self._end = sector, sector + size
        self._failed = False
        buffer = self._window[: size * SECTOR_BYTES]
        offset = segment.offset + sector * SECTOR_BYTES
        yield [IoRequest(IoKind.READ, offset, [buffer], self._note)]
        if not self._failed:
            return
        # A bad spot: read sector by sector, so that only what lies on it is lost.
        buffer[:] = bytes(len(buffer))
        for start in range(0, len(buffer), SECTOR_BYTES):
            page = buffer[start : start + SECTOR_BYTES]
            self._failed = False
            yield [IoRequest(IoKind.READ, offset + start, [page], self._note)]
            if self._failed:
                self.unreadable = True
                page[:] = bytes(SECTOR_BYTES)

    def _note(self, ok: bool, _error: int) -> None:
        self._failed = self._failed or not ok
