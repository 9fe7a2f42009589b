"""Bodies of the payload operations: GET, GET_RANGES, PUT. These are on the path of every block.

Lists of ids travel as one bytes object of 32 bytes each; nothing here makes an object per id
except where the operation needs one.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from memkv import limits
from memkv.wire.errors import MalformedBody, Oversized, Truncated
from memkv.wire.hints import Hint, decode_hints, encode_hints
from memkv.wire.opcodes import (
    GET_ITEM_BYTES,
    GET_RESULT_BYTES,
    PULL_PREFIX_BYTES,
    PULL_TAIL_BYTES,
    PUT_ITEM_BYTES,
    RANGE_BYTES,
    RANGES_ITEM_BYTES,
    SUM_BYTES,
)

ID_BYTES = limits.BLOCK_ID_BYTES
NO_ROOT = bytes(limits.ROOT_BYTES)

_GET_ITEM = struct.Struct("<32sQII")
_GET_RESULT = struct.Struct("<IiQ16sII")
_PULL_TAIL = struct.Struct("<II8s8s")
_RANGES_ITEM = struct.Struct("<32sII")
_RANGE = struct.Struct("<QQ")
_PUT_ITEM = struct.Struct("<32sQ16s8s8sIIII")

assert _GET_ITEM.size == GET_ITEM_BYTES
assert _GET_RESULT.size == GET_RESULT_BYTES
assert _PULL_TAIL.size == PULL_TAIL_BYTES
assert limits.TENANT_TAG_BYTES == PULL_PREFIX_BYTES
assert _RANGES_ITEM.size == RANGES_ITEM_BYTES
assert _RANGE.size == RANGE_BYTES
assert _PUT_ITEM.size == PUT_ITEM_BYTES


class Source(IntEnum):
    """Where a block came from."""

    DRAM = 0
    FLASH = 1


class Durability(IntEnum):
    """When a put is acknowledged."""

    CACHED = 0
    """Visible and queued for flash; lost by a crash before the write."""
    DURABLE = 1
    """On flash behind a completed flush."""
    COPY = 2
    """As CACHED, for a block found at a previous owner of a moving slot: refused with MISS when it
    was deleted here since the slot moved, so that a late copy brings nothing back."""


_DURABILITIES = frozenset(int(durability) for durability in Durability)


class GetRequest(NamedTuple):
    """Blocks wanted, and the most bytes the caller has room for, in the same order."""

    block_ids: bytes
    max_lengths: list[int]


def encode_get_request(block_ids: bytes, max_lengths: Sequence[int]) -> bytes:
    """Return the body of a GET: one 48-byte item for each 32-byte id."""
    pack = _GET_ITEM.pack
    return b"".join(
        [
            pack(block_ids[start : start + ID_BYTES], length, 0, 0)
            for start, length in zip(range(0, len(block_ids), ID_BYTES), max_lengths, strict=True)
        ]
    )


def decode_get_request(body: bytes, count: int) -> GetRequest:
    """Parse a GET body. Raises MalformedBody."""
    if count < 1 or len(body) != count * GET_ITEM_BYTES:
        raise malformed("GET", f"{count} items do not take {len(body)} bytes")
    if count == 1:  # the commonest request of a latency-bound caller
        block_id, max_length, _, _ = _GET_ITEM.unpack(body)
        return GetRequest(block_id, [max_length])
    items = list(_GET_ITEM.iter_unpack(body))
    return GetRequest(b"".join([item[0] for item in items]), [item[1] for item in items])


@dataclass(frozen=True, slots=True)
class GetResult:
    """One block of a GET or GET_RANGES response; `length` bytes of payload follow when OK.

    `status` is raw: `memkv.wire.messages.status_of` maps it. `sums` holds 8 bytes a chunk (GET) or
    a range (GET_RANGES). `length` is also filled when the status is BUFFER_TOO_SMALL.
    """

    index: int
    status: int
    length: int = 0
    root: bytes = NO_ROOT
    sums: bytes = b""
    source: int = Source.DRAM
    hint: Hint | None = None


def encode_get_result(
    index: int,
    status: int,
    length: int = 0,
    root: bytes = NO_ROOT,
    sums: bytes = b"",
    source: int = 0,
) -> bytes:
    """Return the body of one GET response frame. Called once a block: no object, no check."""
    return _GET_RESULT.pack(index, status, length, root, len(sums) // SUM_BYTES, source) + sums


def decode_get_result(body: bytes, *, hints: bool) -> GetResult:
    """Parse the body of one GET or GET_RANGES response frame. Raises MalformedBody.

    `hints`: the frame has the HINTS flag, so one hint record follows.
    """
    if len(body) < GET_RESULT_BYTES:
        raise malformed("GET response", f"{len(body)} bytes hold no item")
    index, status, length, root, chunk_count, source = _GET_RESULT.unpack_from(body)
    end = GET_RESULT_BYTES + chunk_count * SUM_BYTES
    if chunk_count > limits.RANGES_PER_ITEM_MAX or len(body) < end:
        raise malformed("GET response", f"{chunk_count} sums do not fit {len(body)} bytes")
    records = decode_hints(body[end:]) if hints else []
    if (hints and len(records) != 1) or (not hints and len(body) != end):
        raise malformed("GET response", "what follows the sums is not one hint record")
    return GetResult(
        index, status, length, root, body[GET_RESULT_BYTES:end], source,
        records[0] if records else None,
    )  # fmt: skip


def encode_get_result_with_hint(index: int, status: int, hint: Hint) -> bytes:
    """Return the body of a refused item that says where to go; the frame needs flag HINTS."""
    return encode_get_result(index, status) + encode_hints([hint])


class PullRequest(NamedTuple):
    """Whole blocks of one tenant, wanted by the worker that owns their slot now."""

    tenant_tag: bytes
    block_ids: bytes


def encode_pull_request(tenant_tag: bytes, block_ids: bytes) -> bytes:
    """Return the body of a PULL."""
    return tenant_tag + block_ids


def decode_pull_request(body: bytes, count: int) -> PullRequest:
    """Parse a PULL body. Raises MalformedBody."""
    if count < 1 or len(body) != PULL_PREFIX_BYTES + count * ID_BYTES:
        raise malformed("PULL", f"{count} ids do not take {len(body)} bytes")
    return PullRequest(body[:PULL_PREFIX_BYTES], body[PULL_PREFIX_BYTES:])


@dataclass(frozen=True, slots=True)
class PullResult:
    """One block of a PULL response: as of a GET, and what else is stored beside the bytes."""

    block: GetResult
    expiry_s: int
    """Wall time, 0: never."""
    depth: int
    prefix_id: bytes
    session_id: bytes


def encode_pull_result(get_result: bytes, tail: tuple[int, int, bytes, bytes]) -> bytes:
    """Return the body of one PULL response frame; `tail`: expiry_s, depth, prefix and session."""
    return get_result + _PULL_TAIL.pack(*tail)


def decode_pull_result(body: bytes) -> PullResult:
    """Parse the body of one PULL response frame. Raises MalformedBody."""
    if len(body) < GET_RESULT_BYTES + PULL_TAIL_BYTES:
        raise malformed("PULL response", f"{len(body)} bytes hold no item")
    block = decode_get_result(body[:-PULL_TAIL_BYTES], hints=False)
    return PullResult(block, *_PULL_TAIL.unpack(body[-PULL_TAIL_BYTES:]))


@dataclass(frozen=True, slots=True)
class RangesItem:
    """Parts wanted of one block: (offset, length) in bytes, sent back to back in this order."""

    block_id: bytes
    ranges: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Bytes of payload when the block is there."""
        return sum(length for _, length in self.ranges)


def encode_ranges_request(items: Sequence[RangesItem]) -> bytes:
    """Return the body of a GET_RANGES."""
    parts: list[bytes] = []
    for item in items:
        parts.append(_RANGES_ITEM.pack(item.block_id, len(item.ranges), 0))
        parts.extend(_RANGE.pack(offset, length) for offset, length in item.ranges)
    return b"".join(parts)


def decode_ranges_request(body: bytes, count: int) -> list[RangesItem]:
    """Parse a GET_RANGES body. Raises MalformedBody, Truncated or Oversized.

    Every range ends within the largest block and an item's ranges sum to at most one block, so
    a short request cannot ask for endless payload.
    """
    items: list[RangesItem] = []
    position = 0
    for _ in range(count):
        if position + RANGES_ITEM_BYTES > len(body):
            raise _truncated_ranges(len(items), count)
        block_id, range_count, _ = _RANGES_ITEM.unpack_from(body, position)
        position += RANGES_ITEM_BYTES
        if not 1 <= range_count <= limits.RANGES_PER_ITEM_MAX:
            raise Oversized(
                f"GET_RANGES: {range_count} ranges in one item, allowed are 1 to "
                f"{limits.RANGES_PER_ITEM_MAX}; name the block in several items"
            )
        end = position + range_count * RANGE_BYTES
        if end > len(body):
            raise _truncated_ranges(len(items), count)
        ranges = tuple(_RANGE.iter_unpack(body[position:end]))
        position = end
        items.append(_checked(RangesItem(block_id, ranges)))
    if count < 1 or position != len(body):
        raise malformed("GET_RANGES", f"{count} items end at byte {position} of {len(body)}")
    return items


def _checked(item: RangesItem) -> RangesItem:
    block_max = limits.BLOCK_BYTES_MAX
    for offset, length in item.ranges:
        if length < 1 or offset > block_max or length > block_max - offset:
            raise Oversized(
                f"GET_RANGES: range of {length} bytes at {offset} is empty or ends beyond the "
                f"largest block of {block_max} bytes; fix the caller's layout"
            )
    if item.length > block_max:
        raise Oversized(
            f"GET_RANGES: ranges of one item sum to {item.length} bytes, more than the largest "
            f"block of {block_max}; name the block in several items"
        )
    return item


@dataclass(frozen=True, slots=True)
class PutItem:
    """Everything about one block of a PUT but its bytes. `prefix_id`, `session_id` and `depth`
    are hints of the engine; zeros mean none."""

    block_id: bytes
    length: int
    root: bytes
    sums: bytes
    prefix_id: bytes = bytes(8)
    session_id: bytes = bytes(8)
    ttl_s: int = 0
    depth: int = 0
    durability: int = Durability.CACHED


def encode_put_item(item: PutItem) -> bytes:
    """Return the body of one PUT frame."""
    return (
        _PUT_ITEM.pack(
            item.block_id, item.length, item.root, item.prefix_id, item.session_id, item.ttl_s,
            item.depth, item.durability, len(item.sums) // SUM_BYTES,
        )
        + item.sums
    )  # fmt: skip


def decode_put_item(body: bytes, payload_bytes: int) -> PutItem:
    """Parse the body of one PUT frame against the payload its header announces.

    Raises MalformedBody: a length other than the payload's, sums that do not match the length, a
    durability this version does not have. A length of 0 passes: the node answers it with INVALID.
    """
    if len(body) < PUT_ITEM_BYTES:
        raise malformed("PUT", f"{len(body)} bytes hold no item")
    (
        block_id, length, root, prefix_id, session_id, ttl_s, depth, durability, chunk_count,
    ) = _PUT_ITEM.unpack_from(body)  # fmt: skip
    if length != payload_bytes:
        raise malformed("PUT", f"a block of {length} bytes with a payload of {payload_bytes}")
    if chunk_count != -(-length // limits.CHUNK_BYTES):
        raise malformed("PUT", f"{chunk_count} sums for a block of {length} bytes")
    if len(body) != PUT_ITEM_BYTES + chunk_count * SUM_BYTES:
        raise malformed("PUT", f"{chunk_count} sums do not take {len(body)} bytes with the item")
    if durability not in _DURABILITIES:
        raise malformed("PUT", f"durability {durability} is not in protocol 1")
    return PutItem(
        block_id, length, root, body[PUT_ITEM_BYTES:], prefix_id, session_id, ttl_s, depth,
        durability,
    )  # fmt: skip


def malformed(operation: str, what: str) -> MalformedBody:
    """Return the error for a body that contradicts itself or its header."""
    return MalformedBody(
        f"{operation}: {what}: the peer is of another release or has a bug; compare the versions "
        "of both sides"
    )


def _truncated_ranges(seen: int, count: int) -> Truncated:
    return Truncated(
        f"GET_RANGES: the body ends after {seen} of {count} items: the peer has a bug; compare "
        "the versions of both sides"
    )
