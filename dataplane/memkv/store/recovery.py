"""Recovery: from what lies on flash to an index, in one pass from the newest segment to the oldest.

Newest first makes the rules simple. The first record met of a key is its last; older ones lose. A
tombstone always lies later in the log than every record it kills, so it is met before them; it
kills by generation, because a carried tombstone may lie later than a newer put. A key whose last
record has expired stays dead.
"""

import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from memkv._hotpath import slots_of, xxh3_64
from memkv.limits import SECTOR_BYTES
from memkv.store.core import StoreCore
from memkv.store.dead import DeadKeys
from memkv.store.layout import (
    ENTRY,
    ZEROS,
    Kind,
    SegmentHeader,
    Trailer,
    aligned_buffer,
    decode_segment_header,
    decode_trailer,
    footer_sectors,
    record_sectors,
)
from memkv.store.recovery_table import SegmentAction, SegmentFacts, segment_action
from memkv.store.requests import IoKind, IoRequest
from memkv.store.scan import Scanner
from memkv.store.segments import Everyone, Segment, State
from memkv.store.tenants import SHARED_QUEUE

SEGMENTS_AT_ONCE = 256  # headers and trailers read together: 2 MiB of buffers
FOOTERS_AT_ONCE = 16
STAMP_RECOVERED = 0
HORIZON_RECOVERED = 1
DEAD_MEMORY_FRACTION = 0.5  # of memory that holds no blocks yet
DEAD_KEY_BYTES = 256  # measured: 190 in Python's dicts
DEAD_KEYS_MIN = 10_000

Steps = Generator[list[IoRequest], None, None]


@dataclass(slots=True)
class RecoveryReport:
    """What an open found."""

    formatted: bool = False
    incarnation: int = 0
    segments: dict[str, int] = field(default_factory=dict)
    """By what was done: erase, scan, load, unreadable."""
    blocks: int = 0
    tombstones: int = 0
    superseded: int = 0
    """Records with a newer one, a tombstone, or past their expiry."""
    torn: int = 0
    """Records whose payload was not whole, or whose place cannot be."""
    over_capacity: int = 0
    """Blocks left out because the index is too small."""
    tenants_cut: int = 0
    """How often a tenant had more deletes than memory, and lost all it had put before them."""
    duration_ms: int = 0


class _Found:
    """One segment with its header, trailer and footer as read."""

    __slots__ = ("entries", "header", "pages", "segment", "trailer", "unreadable")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.pages = aligned_buffer(2 * SECTOR_BYTES)
        self.header: SegmentHeader | None = None
        self.trailer: Trailer | None = None
        self.entries: bytes | None = None
        self.unreadable = False


class Recovery:
    """Fills a core's table and index. `steps` yields I/O and ends when all is known."""

    def __init__(self, core: StoreCore) -> None:
        self._core = core
        self._checks = core.config.checks
        self._now_s = core.clock.wall_s()
        room = int(core.config.memory_bytes * DEAD_MEMORY_FRACTION) // DEAD_KEY_BYTES
        self._dead = DeadKeys(max(DEAD_KEYS_MIN, room))
        self.report = RecoveryReport(incarnation=core.superblock.incarnation)

    def steps(self) -> Steps:
        """Read the drive."""
        table = self._core.table
        found: list[_Found] = []
        for first in range(0, len(table.all), SEGMENTS_AT_ONCE):
            part = [_Found(segment) for segment in table.all[first : first + SEGMENTS_AT_ONCE]]
            yield from self._read_ends(part)
            found += part
        live = [f for f in found if self._identify(f)]
        live.sort(key=lambda f: f.segment.sequence, reverse=True)
        scanner: Scanner | None = None
        for first in range(0, len(live), FOOTERS_AT_ONCE):
            part = live[first : first + FOOTERS_AT_ONCE]
            yield from self._read_footers(part)
            for f in part:
                facts = SegmentFacts(
                    f.header is not None, f.trailer is not None, self._lists(f),
                    f.entries is not None,
                )  # fmt: skip
                action = segment_action(facts)
                self._count(action.value)
                if action is SegmentAction.SCAN:
                    scanner = scanner or Scanner(
                        table.segment_bytes, self._core.block_bytes_max, self._checks
                    )
                    yield from scanner.scan(f.segment)
                    self._scanned(f, scanner)
                else:
                    self._loaded(f)
        self._core.access_clock = HORIZON_RECOVERED + 1
        self.report.torn += scanner.torn if scanner else 0
        self.report.tenants_cut = self._dead.tenants_cut

    def _count(self, action: str) -> None:
        self.report.segments[action] = self.report.segments.get(action, 0) + 1

    # --- headers, trailers, footers ----------------------------------------------------------

    def _read_ends(self, part: list[_Found]) -> Steps:
        requests = []
        last = self._core.table.segment_bytes - SECTOR_BYTES
        for f in part:
            first_page, last_page = f.pages[:SECTOR_BYTES], f.pages[SECTOR_BYTES:]
            for offset, page in ((0, first_page), (last, last_page)):
                requests.append(
                    IoRequest(IoKind.READ, f.segment.offset + offset, [page], self._reader(f, page))
                )
        yield requests
        check_sum = self._checks.header_sum
        for f in part:
            header = decode_segment_header(f.pages[:SECTOR_BYTES], check_sum)
            trailer = decode_trailer(f.pages[SECTOR_BYTES:], check_sum)
            f.header = header if self._ours(f, header) else None
            f.trailer = trailer if self._ours(f, trailer) else None
            f.pages = f.pages[:0]

    def _reader(self, f: _Found, page: memoryview) -> Callable[[bool, int], None]:
        def done(ok: bool, _error: int) -> None:
            if not ok:
                f.unreadable = True
                page[:] = ZEROS

        return done

    def _ours(self, f: _Found, end: SegmentHeader | Trailer | None) -> bool:
        return (
            end is not None
            and end.device_uuid == self._core.superblock.device_uuid
            and end.segment == f.segment.number
        )

    def _identify(self, f: _Found) -> bool:
        """Take the segment's identity from its header, else from its trailer; False for none."""
        segment, table = f.segment, self._core.table
        end = f.header or f.trailer
        if end is None and f.unreadable:
            self._count("unreadable")
            segment.tenants = Everyone()
            table.adopt(segment, State.RETIRED)
            return False
        if end is None:
            self._count(segment_action(SegmentFacts(False, False, False, False)).value)
            return False
        segment.sequence, segment.nonce = end.sequence, end.nonce
        table.sequence_last = max(table.sequence_last, end.sequence)
        return True

    def _lists(self, f: _Found) -> bool:
        t, h = f.trailer, f.header
        if t is None or not t.footer_sector:
            return False
        return (
            h is None
            or (t.sequence, t.nonce) == (h.sequence, h.nonce)
            or not self._checks.generation
        )

    def _read_footers(self, part: list[_Found]) -> Steps:
        sectors = self._core.table.sectors
        reads: list[tuple[_Found, memoryview]] = []
        requests = []
        for f in part:
            t = f.trailer
            if t is None or not self._lists(f):
                continue
            if t.footer_sector != sectors - footer_sectors(t.entry_count) or t.footer_sector < 1:
                continue
            buffer = aligned_buffer(max(1, sectors - t.footer_sector) * SECTOR_BYTES)
            reads.append((f, buffer))
            offset = f.segment.offset + t.footer_sector * SECTOR_BYTES
            requests.append(IoRequest(IoKind.READ, offset, [buffer], lambda _ok, _error: None))
        if requests:
            yield requests
        for f, buffer in reads:
            assert f.trailer is not None
            entries = bytes(buffer[: f.trailer.entry_count * ENTRY.size])
            if not self._checks.header_sum or xxh3_64(entries) == f.trailer.footer_sum:
                f.entries = entries

    # --- what to make of it ------------------------------------------------------------------

    def _loaded(self, f: _Found) -> None:
        segment, trailer = f.segment, f.trailer
        assert trailer is not None
        assert f.entries is not None
        self._core.table.adopt(segment, State.SEALED)
        segment.entry_count = trailer.entry_count
        segment.footer_sector = trailer.footer_sector
        segment.next_sector = trailer.data_end_sector
        self._apply(segment, f.entries)
        f.entries = None

    def _scanned(self, f: _Found, scanner: Scanner) -> None:
        core, segment = self._core, f.segment
        if not scanner.entries and not scanner.unreadable:
            # Stays BLANK: it gets a new identity before it is used. Until then the trailer of an
            # earlier life may be all that is left of its ends, by a write that is torn.
            if f.trailer is not None and f.trailer.sequence != segment.sequence:
                segment.sequence, segment.tenants = 0, Everyone()
            return
        segment.entries = scanner.entries
        segment.entry_count = len(scanner.entries) // ENTRY.size
        segment.next_sector = scanner.next_sector
        core.table.adopt(segment, State.SEALING)
        self._apply(segment, bytes(scanner.entries))
        if scanner.unreadable:
            segment.tenants = Everyone()
        if segment.next_sector + footer_sectors(segment.entry_count) <= core.table.sectors:
            core.log.seal_when_durable(segment)
        else:
            core.table.move(segment, State.FAULTY)

    def _apply(self, segment: Segment, packed: bytes) -> None:
        core, dead, report = self._core, self._dead, self.report
        segment.horizon = HORIZON_RECOVERED
        entries = list(ENTRY.iter_unpack(packed))
        ids = b"".join([entry[0] for entry in entries])
        slots = struct.unpack(f"<{len(entries)}H", slots_of(ids, core.config.slots))
        insert, base, now_s = core.index.insert, segment.base_sector, self._now_s
        floors, tenant_floors = core.slot_floors, core.tenant_floors
        added: dict[int, list[int]] = {}
        numbers: dict[bytes, int] = {}
        for i in range(len(entries) - 1, -1, -1):
            block_id, tag, generation, sector, length, expiry_s, depth, _, kind = entries[i]
            number = numbers.get(tag)
            if number is None:
                number = numbers[tag] = core.tenants.get(tag).number
                added[number] = [0, 0]
            if kind != Kind.BLOCK:
                if dead.add(tag, block_id, generation):
                    core.tombstones.recovered(tag, block_id, generation)
                report.tombstones += 1
                continue
            if dead and dead.kills(tag, block_id, generation):
                report.superseded += 1
                continue
            if generation <= floors.get(slots[i], -1) or generation <= tenant_floors.get(tag, -1):
                report.superseded += 1  # purged; whatever is older of this key is so too
                continue
            if expiry_s and expiry_s <= now_s:
                dead.add(tag, block_id, generation + 1)
                report.superseded += 1
                continue
            sectors = record_sectors(length)
            if sector + sectors > core.table.sectors:
                report.torn += 1
                continue
            handle = insert(
                number, block_id, slots[i], base + sector, sectors, expiry_s, depth,
                STAMP_RECOVERED,
            )  # fmt: skip
            if handle >= 0:
                counts = added[number]
                counts[0] += 1
                counts[1] += sectors * SECTOR_BYTES
            elif handle == -2:
                report.superseded += 1
            else:
                report.over_capacity += 1
        for number, (count, size_bytes) in added.items():
            core.tenants.add_block(core.tenants.all[number], size_bytes, count)
            report.blocks += count
        segment.tenants = set(added)
        segment.queue = SHARED_QUEUE  # until those with a quota join their queues
