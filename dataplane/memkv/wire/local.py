"""Bodies of the operations on shared memory: REGISTER, UNREGISTER, LOCAL_GET, LOCAL_PUT.

A region is memory whose file descriptor the client passed with REGISTER. A part is a piece of one:
blocks travel as lists of parts, and no payload follows any of these frames. Nothing here knows how
large a region is: whoever holds the regions checks parts against them.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from memkv import limits
from memkv.wire.errors import Oversized, Truncated
from memkv.wire.items import PutItem, decode_put_item, encode_put_item, malformed
from memkv.wire.opcodes import (
    LOCAL_GET_ITEM_BYTES,
    LOCAL_PART_BYTES,
    PUT_ITEM_BYTES,
    REGISTER_BYTES,
    REGISTERED_BYTES,
    SUM_BYTES,
    UNREGISTER_BYTES,
)

_REGISTER = struct.Struct("<IIQQ")
_REGISTERED = struct.Struct("<I")
_UNREGISTER = struct.Struct("<II")
_GET_ITEM = struct.Struct("<32sII")
_PART = struct.Struct("<IIQQ")
_PUT_LENGTH = struct.Struct("<32xQ")

assert _REGISTER.size == REGISTER_BYTES
assert _REGISTERED.size == REGISTERED_BYTES
assert _UNREGISTER.size == UNREGISTER_BYTES
assert _GET_ITEM.size == LOCAL_GET_ITEM_BYTES
assert _PART.size == LOCAL_PART_BYTES


class Access(IntFlag):
    """What a node may do with a region."""

    NONE = 0
    READ = 1
    """For puts."""
    WRITE = 2
    """For gets."""


ACCESS_KNOWN = 3


class Part(NamedTuple):
    """`length` bytes of a region, from `offset` bytes after the region's start.

    `key`: of the window that an RDMA client opened for this request alone; 0: there is none.
    """

    region: int
    offset: int
    length: int
    key: int = 0


def parts_bytes(parts: Sequence[Part]) -> int:
    """Return the total length of one block's parts."""
    return sum([part.length for part in parts])


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """Shares `size_bytes` of a file from `fd_offset` on under a number of the client's choice."""

    region: int
    access: int
    fd_offset: int
    size_bytes: int

    def encode(self) -> bytes:
        return _REGISTER.pack(self.region, self.access, self.fd_offset, self.size_bytes)

    @classmethod
    def decode(cls, body: bytes) -> "RegisterRequest":
        """Raises MalformedBody."""
        if len(body) != REGISTER_BYTES:
            raise malformed("REGISTER", f"{len(body)} bytes instead of {REGISTER_BYTES}")
        region, access, fd_offset, size_bytes = _REGISTER.unpack(body)
        if not access or access & ~ACCESS_KNOWN:
            raise malformed("REGISTER", f"access {access:#x} is not in protocol 1")
        return cls(region, access, fd_offset, size_bytes)


def encode_registered(is_mapped: bool) -> bytes:
    """Return the body of a REGISTER response: whether the node maps the memory."""
    return _REGISTERED.pack(is_mapped)


def decode_registered(body: bytes) -> bool:
    """Return whether the node maps the memory, and does not copy through the file. MalformedBody"""
    if len(body) != REGISTERED_BYTES:
        raise malformed("REGISTER response", f"{len(body)} bytes instead of {REGISTERED_BYTES}")
    return bool(_REGISTERED.unpack(body)[0] & 1)


def encode_unregister(region: int) -> bytes:
    """Return the body of an UNREGISTER."""
    return _UNREGISTER.pack(region, 0)


def decode_unregister(body: bytes) -> int:
    """Return the number of the region. Raises MalformedBody."""
    if len(body) != UNREGISTER_BYTES:
        raise malformed("UNREGISTER", f"{len(body)} bytes instead of {UNREGISTER_BYTES}")
    region: int = _UNREGISTER.unpack(body)[0]
    return region


class LocalGetItem(NamedTuple):
    """One block wanted, and the parts it is placed in, in their order."""

    block_id: bytes
    parts: tuple[Part, ...]


def encode_parts(parts: Sequence[Part]) -> bytes:
    """Return 24 bytes a part."""
    pack = _PART.pack
    return b"".join([pack(region, key, offset, length) for region, offset, length, key in parts])


def encode_local_get(items: Sequence[LocalGetItem]) -> bytes:
    """Return the body of a LOCAL_GET."""
    pieces: list[bytes] = []
    for block_id, parts in items:
        pieces.append(_GET_ITEM.pack(block_id, len(parts), 0))
        pieces.append(encode_parts(parts))
    return b"".join(pieces)


def local_get_bytes(part_count: int) -> int:
    """Return how much of a body an item with so many parts takes."""
    return LOCAL_GET_ITEM_BYTES + part_count * LOCAL_PART_BYTES


def decode_local_get(
    body: bytes, count: int, operation: str = "LOCAL_GET"
) -> list[LocalGetItem]:
    """Parse a LOCAL_GET body, or one like it. Raises MalformedBody, Truncated or Oversized.

    No part is empty and an item's parts sum to at most one block.
    """
    items: list[LocalGetItem] = []
    position = 0
    for _ in range(count):
        if position + LOCAL_GET_ITEM_BYTES > len(body):
            raise _truncated(operation, len(items), count)
        block_id, part_count, _ = _GET_ITEM.unpack_from(body, position)
        position += LOCAL_GET_ITEM_BYTES
        end = position + part_count * LOCAL_PART_BYTES
        if end > len(body):
            raise _truncated(operation, len(items), count)
        items.append(LocalGetItem(block_id, _decode_parts(operation, body[position:end])))
        position = end
    if count < 1 or position != len(body):
        raise malformed(operation, f"{count} items end at byte {position} of {len(body)}")
    return items


def encode_local_put(item: PutItem, parts: Sequence[Part]) -> bytes:
    """Return the body of one LOCAL_PUT frame."""
    return encode_put_item(item) + encode_parts(parts)


def decode_local_put(
    body: bytes, operation: str = "LOCAL_PUT"
) -> tuple[PutItem, tuple[Part, ...]]:
    """Parse the body of one LOCAL_PUT frame, or one like it. Raises MalformedBody or Oversized.

    The parts sum to the block's length.
    """
    if len(body) < PUT_ITEM_BYTES:
        raise malformed(operation, f"{len(body)} bytes hold no item")
    (length,) = _PUT_LENGTH.unpack_from(body)
    chunks = -(-min(length, limits.BLOCK_BYTES_MAX) // limits.CHUNK_BYTES)
    item_bytes = PUT_ITEM_BYTES + chunks * SUM_BYTES
    item = decode_put_item(body[:item_bytes], length)
    if (len(body) - item_bytes) % LOCAL_PART_BYTES:
        raise malformed(operation, f"{len(body)} bytes do not end with whole parts")
    parts = _decode_parts(operation, body[item_bytes:])
    if parts_bytes(parts) != length:
        raise malformed(operation, f"parts of {parts_bytes(parts)} bytes for {length}")
    return item, parts


def _decode_parts(operation: str, data: bytes) -> tuple[Part, ...]:
    parts = tuple(
        [
            Part(region, offset, length, key)
            for region, key, offset, length in _PART.iter_unpack(data)
        ]
    )
    if not 1 <= len(parts) <= limits.LOCAL_PARTS_PER_ITEM_MAX:
        raise Oversized(
            f"{operation}: {len(parts)} parts in one item, allowed are 1 to "
            f"{limits.LOCAL_PARTS_PER_ITEM_MAX}; use fewer pieces, or another transport"
        )
    if any(part.length < 1 for part in parts) or parts_bytes(parts) > limits.BLOCK_BYTES_MAX:
        raise Oversized(
            f"{operation}: parts are empty or sum to {parts_bytes(parts)} bytes; one block has 1 "
            f"to {limits.BLOCK_BYTES_MAX}; fix the caller's layout"
        )
    return parts


def _truncated(operation: str, seen: int, count: int) -> Truncated:
    return Truncated(
        f"{operation}: the body ends after {seen} of {count} items: the peer has a bug; compare "
        "the versions of both sides"
    )
