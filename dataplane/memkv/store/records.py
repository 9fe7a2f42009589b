"""Records: how a block becomes bytes on flash, and the single exit that judges bytes read back.

Rule 1: every byte that came from flash passes `judge` before anything believes it; there is no
other way from a buffer to a header.
Rule 2: `judge` says what is wrong, the caller decides what that means for it.
"""

from enum import Enum
from typing import NamedTuple

from memkv import _hotpath
from memkv.checksum import chunk_count
from memkv.limits import BLOCK_BYTES_MAX, SECTOR_BYTES
from memkv.store.checks import Checks
from memkv.store.layout import Kind, RecordHeader, decode_record_header, sector_sum_ok


class Flaw(Enum):
    """Why bytes are not the record that was looked for."""

    HEADER = "header"
    """No record header, or its sum is wrong."""
    GENERATION = "generation"
    """A record of another life of the segment."""
    OFFSET = "offset"
    """A record that belongs elsewhere."""
    OTHER_BLOCK = "other_block"
    """A sound record of another id or tenant: two ids share a tag. A miss, not damage."""
    LENGTH = "length"
    """The record does not fit where it lies."""
    PAYLOAD = "payload"
    """Chunk sums or root do not fit the payload."""


class Place(NamedTuple):
    """Where a record was read, and in which life of its segment."""

    device_offset: int
    sequence: int
    nonce: int


def judge(
    record: memoryview, place: Place, checks: Checks, *, block_id: bytes | None = None,
    tenant_tag: bytes = b"", payload: bool = False,
) -> RecordHeader | Flaw:  # fmt: skip
    """Return the header of the record in `record` (from its first sector on), or its flaw.

    With `block_id` the record must be that block of `tenant_tag`. With `payload` the bytes after
    the header are summed too.
    """
    header = decode_record_header(record)
    if header is None or (checks.header_sum and not sector_sum_ok(record[:SECTOR_BYTES])):
        return Flaw.HEADER
    if checks.generation and (header.sequence, header.nonce) != (place.sequence, place.nonce):
        return Flaw.GENERATION
    if checks.offset and header.device_offset != place.device_offset:
        return Flaw.OFFSET
    if block_id is not None:
        if header.kind != Kind.BLOCK:
            return Flaw.HEADER
        if checks.block_id and header.block_id != block_id:
            return Flaw.OTHER_BLOCK
        if checks.tenant and header.tenant_tag != tenant_tag:
            return Flaw.OTHER_BLOCK
    if header.kind == Kind.BLOCK:
        if not 1 <= header.length <= BLOCK_BYTES_MAX:
            return Flaw.LENGTH
        if header.list_count != chunk_count(header.length):
            return Flaw.LENGTH
        if payload and header.length > len(record) - SECTOR_BYTES:
            return Flaw.LENGTH
        if payload and checks.payload_sum and not payload_ok(record, header):
            return Flaw.PAYLOAD
    return header


def payload_ok(record: memoryview, header: RecordHeader) -> bool:
    """Say whether the payload has the header's sums and these the header's root."""
    h = header
    if _hotpath.chunk_sums(record[SECTOR_BYTES : SECTOR_BYTES + h.length]) != h.sums:
        return False
    return _hotpath.block_root(h.block_id, h.tenant_tag, h.length, h.sums) == h.root
