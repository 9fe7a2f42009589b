"""Format 1 on flash, as structs. Every number is little-endian; docs/store-format.md draws it.

Rule 1: nothing outside this file knows an offset inside a sector.
Rule 2: a change of any struct is a new FORMAT_VERSION.
Every sector of metadata ends with the xxh3_64 sum of the bytes before it. A record's sum is checked
by `records.judge`, which is why decoding a record header does not check it.
"""

import mmap
import struct
import threading
from enum import IntEnum
from typing import NamedTuple

from memkv._hotpath import xxh3_64
from memkv.limits import (
    BLOCK_ID_BYTES,
    CHUNKS_PER_BLOCK_MAX,
    MIB,
    ROOT_BYTES,
    SECTOR_BYTES,
    TENANT_TAG_BYTES,
)

FORMAT_VERSION = 1
SUPERBLOCK_AREA_BYTES = 1 * MIB  # two copies, and room for what later formats need
SUM_OFFSET = SECTOR_BYTES - 8
ZEROS = bytes(SECTOR_BYTES)

SUPERBLOCK_MAGIC = b"MKVSUPER"
SEGMENT_MAGIC = b"MKVSEGMT"
RECORD_MAGIC = b"MKVRECRD"
TRAILER_MAGIC = b"MKVTRAIL"

_SUPERBLOCK = struct.Struct("<8sHHI16s16sQQQI")
_SEGMENT = struct.Struct("<8sHHI16sQQ")
_TRAILER = struct.Struct("<8sHHI16sQQIIIQ")
_RECORD = struct.Struct(
    f"<8sHBBI{BLOCK_ID_BYTES}s{TENANT_TAG_BYTES}sIIQQQQQII8s8s{ROOT_BYTES}s"
)
ENTRY = struct.Struct(f"<{BLOCK_ID_BYTES}s{TENANT_TAG_BYTES}sQIIIIIB3x")
LIST_OFFSET = 256  # chunk sums of a block, or the list of a tombstone record
TOMBSTONE = struct.Struct(f"<{BLOCK_ID_BYTES}sQ")  # id, generation of the delete
TOMBSTONES_PER_RECORD_MAX = 60

assert _SUPERBLOCK.size == 76
assert _SEGMENT.size == 48
assert _TRAILER.size == 68
assert _RECORD.size == 152 <= LIST_OFFSET
assert ENTRY.size == 80
assert LIST_OFFSET + 8 * CHUNKS_PER_BLOCK_MAX <= SUM_OFFSET
assert LIST_OFFSET + TOMBSTONE.size * TOMBSTONES_PER_RECORD_MAX <= SUM_OFFSET


class Kind(IntEnum):
    """What a record is."""

    BLOCK = 1
    TOMBSTONES = 2


class Superblock(NamedTuple):
    """Who this drive is; one more incarnation at each open."""

    device_uuid: bytes
    worker_uuid: bytes
    incarnation: int
    capacity_bytes: int
    segment_bytes: int
    segment_count: int


class SegmentHeader(NamedTuple):
    """First sector of a segment. `nonce` is secret to the drive: payload cannot forge a record."""

    device_uuid: bytes
    segment: int
    sequence: int
    nonce: int


class Trailer(NamedTuple):
    """Last sector of a segment: its identity once more, and when it is full where the list of its
    records lies, and its sum. `footer_sector` is 0 until then: the header lies there."""

    device_uuid: bytes
    segment: int
    sequence: int
    nonce: int
    footer_sector: int
    entry_count: int
    data_end_sector: int
    footer_sum: int


class RecordHeader(NamedTuple):
    """First sector of a record."""

    kind: int
    block_id: bytes
    tenant_tag: bytes
    tenant_generation: int
    depth: int
    generation: int
    sequence: int
    nonce: int
    device_offset: int
    length: int
    expiry_s: int
    list_count: int
    prefix_id: bytes
    session_id: bytes
    root: bytes
    sums: bytes  # chunk sums, or packed TOMBSTONEs


class Entry(NamedTuple):
    """One line of a footer; tombstone records have one for each id."""

    block_id: bytes
    tenant_tag: bytes
    generation: int
    sector: int  # in the segment
    length: int
    expiry_s: int
    depth: int
    tenant_generation: int
    kind: int


class _Pages:
    """Small aligned buffers cut from one mapping after another; a mapping goes with its last."""

    CUT_BYTES_MAX = 4 * SECTOR_BYTES
    MAPPING_BYTES = 64 * SECTOR_BYTES

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = memoryview(b"")

    def cut(self, size_bytes: int) -> memoryview:
        """Return `size_bytes`, at most CUT_BYTES_MAX, of memory that was never used before."""
        step = sectors_for(size_bytes) * SECTOR_BYTES
        with self._lock:
            if len(self._rest) < step:
                self._rest = memoryview(mmap.mmap(-1, self.MAPPING_BYTES))
            cut, self._rest = self._rest[:size_bytes], self._rest[step:]
        return cut


_PAGES = _Pages()


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return zeroed memory that starts at a page, as direct I/O wants it."""
    if size_bytes <= _Pages.CUT_BYTES_MAX:
        return _PAGES.cut(size_bytes)
    return memoryview(mmap.mmap(-1, size_bytes))


def sectors_for(size_bytes: int) -> int:
    """Return how many sectors hold `size_bytes`."""
    return -(-size_bytes // SECTOR_BYTES)


def record_sectors(length: int) -> int:
    """Return the sectors of a block's record: a header and the padded payload."""
    return 1 + sectors_for(length)


def footer_sectors(entry_count: int) -> int:
    """Return the sectors a segment must keep free at its end: the list and the trailer."""
    return sectors_for(entry_count * ENTRY.size) + 1


def seal_sector(page: memoryview) -> None:
    """Write the sum of a sector into its last 8 bytes."""
    page[SUM_OFFSET:] = xxh3_64(page[:SUM_OFFSET]).to_bytes(8, "little")


def sector_sum_ok(page: memoryview) -> bool:
    """Say whether a sector's sum is right."""
    return xxh3_64(page[:SUM_OFFSET]) == int.from_bytes(page[SUM_OFFSET:SECTOR_BYTES], "little")


def _sealed(packed: bytes) -> memoryview:
    page = aligned_buffer(SECTOR_BYTES)
    page[: len(packed)] = packed
    seal_sector(page)
    return page


def encode_superblock(superblock: Superblock) -> memoryview:
    """Return one sector."""
    s = superblock
    return _sealed(
        _SUPERBLOCK.pack(
            SUPERBLOCK_MAGIC, FORMAT_VERSION, 0, 0, s.device_uuid, s.worker_uuid, s.incarnation,
            s.capacity_bytes, s.segment_bytes, s.segment_count,
        )
    )  # fmt: skip


def decode_superblock(page: memoryview) -> tuple[int, Superblock] | None:
    """Return (format version, superblock) of a sector with the right magic and sum, or None."""
    if page[:8] != SUPERBLOCK_MAGIC or not sector_sum_ok(page):
        return None
    _, version, _, _, *fields = _SUPERBLOCK.unpack_from(page)
    return version, Superblock(*fields)


def encode_segment_header(header: SegmentHeader) -> memoryview:
    """Return one sector."""
    h = header
    return _sealed(
        _SEGMENT.pack(
            SEGMENT_MAGIC, FORMAT_VERSION, 0, h.segment, h.device_uuid, h.sequence, h.nonce
        )
    )


def decode_segment_header(page: memoryview, check_sum: bool = True) -> SegmentHeader | None:
    """Return the header, or None where magic, version or sum are wrong."""
    magic, version, _, segment, device_uuid, sequence, nonce = _SEGMENT.unpack_from(page)
    if magic != SEGMENT_MAGIC or version != FORMAT_VERSION:
        return None
    if check_sum and not sector_sum_ok(page):
        return None
    return SegmentHeader(device_uuid, segment, sequence, nonce)


def write_trailer(page: memoryview, trailer: Trailer) -> None:
    """Fill one sector."""
    t = trailer
    _TRAILER.pack_into(
        page, 0, TRAILER_MAGIC, FORMAT_VERSION, 0, t.segment, t.device_uuid, t.sequence, t.nonce,
        t.footer_sector, t.entry_count, t.data_end_sector, t.footer_sum,
    )  # fmt: skip
    seal_sector(page)


def decode_trailer(page: memoryview, check_sum: bool = True) -> Trailer | None:
    """Return the trailer, or None where magic, version or sum are wrong."""
    fields = _TRAILER.unpack_from(page)
    magic, version, _, segment, device_uuid, *rest = fields
    if magic != TRAILER_MAGIC or version != FORMAT_VERSION:
        return None
    if check_sum and not sector_sum_ok(page):
        return None
    return Trailer(device_uuid, segment, *rest)


def write_record_header(page: memoryview, header: RecordHeader) -> None:
    """Fill a record's first sector, sum included. What the header does not use becomes zero."""
    h = header
    _RECORD.pack_into(
        page, 0, RECORD_MAGIC, FORMAT_VERSION, h.kind, 0, SECTOR_BYTES, h.block_id, h.tenant_tag,
        h.tenant_generation, h.depth, h.generation, h.sequence, h.nonce, h.device_offset, h.length,
        h.expiry_s, h.list_count, h.prefix_id, h.session_id, h.root,
    )  # fmt: skip
    end = LIST_OFFSET + len(h.sums)
    page[_RECORD.size : LIST_OFFSET] = ZEROS[_RECORD.size : LIST_OFFSET]
    page[LIST_OFFSET:end] = h.sums
    page[end:SUM_OFFSET] = ZEROS[end:SUM_OFFSET]
    seal_sector(page[:SECTOR_BYTES])


def decode_record_header(page: memoryview) -> RecordHeader | None:
    """Return the fields, or None where magic, version or a count is out of range.

    The sum is not looked at: `records.judge` does that.
    """
    magic, version, kind, _, _, *fields = _RECORD.unpack_from(page)
    if magic != RECORD_MAGIC or version != FORMAT_VERSION:
        return None
    count = fields[10]
    if kind == Kind.BLOCK and count <= CHUNKS_PER_BLOCK_MAX:
        width = 8
    elif kind == Kind.TOMBSTONES and count <= TOMBSTONES_PER_RECORD_MAX:
        width = TOMBSTONE.size
    else:
        return None
    items = bytes(page[LIST_OFFSET : LIST_OFFSET + width * count])
    return RecordHeader._make((kind, *fields, items))
