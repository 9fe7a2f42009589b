"""Bodies of the control operations: HELLO, those on keys, STAT, LIST; and status lists."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from memkv import limits
from memkv.status import Status
from memkv.wire.errors import Oversized
from memkv.wire.frame import FrameHeader
from memkv.wire.hints import Hint, decode_hints, encode_hints
from memkv.wire.items import malformed
from memkv.wire.opcodes import (
    HELLO_REQUEST_BYTES,
    HELLO_RESPONSE_BYTES,
    KEYS_PREFIX_BYTES,
    LANE_HELLO_BYTES,
    LANE_TOKEN_BYTES,
    LIST_ENTRY_BYTES,
    LIST_PAGE_BYTES,
    LIST_REQUEST_BYTES,
    STATUS_BYTES,
    Flag,
)

PROTOCOL_MIN = 1
PROTOCOL_MAX = 2
NO_LINEAGE = bytes(16)

_HELLO_REQUEST = struct.Struct("<HH16sHH16sI")
_HELLO_RESPONSE = struct.Struct("<HH16sQ16sQIQI16sIQI")
_KEYS_PREFIX = struct.Struct("<II")
_LIST_REQUEST = struct.Struct("<IIQIIQ")
_LIST_PAGE = struct.Struct("<QII")
_LIST_ENTRY = struct.Struct("<32s16sQQII")
_LIST_COMPLETE = 1
_STATUS_VALUES = frozenset(int(status) for status in Status)

assert _HELLO_REQUEST.size == HELLO_REQUEST_BYTES
assert _HELLO_RESPONSE.size == HELLO_RESPONSE_BYTES
assert _KEYS_PREFIX.size == KEYS_PREFIX_BYTES
assert _LIST_REQUEST.size == LIST_REQUEST_BYTES
assert _LIST_PAGE.size == LIST_PAGE_BYTES
assert _LIST_ENTRY.size == LIST_ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Opens a session, or, on its control connection, asks for fresh lane tokens.

    `lineage`: of the client's shard map; zeros when it has none.
    """

    client_uuid: bytes
    pool: str
    ticket: bytes
    lineage: bytes = NO_LINEAGE
    transports: int = 1
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX

    def encode(self) -> bytes:
        pool = self.pool.encode("utf-8")
        return (
            _HELLO_REQUEST.pack(
                self.protocol_min, self.protocol_max, self.client_uuid, len(pool),
                len(self.ticket), self.lineage, self.transports,
            )
            + pool
            + self.ticket
        )  # fmt: skip

    @classmethod
    def decode(cls, body: bytes) -> "HelloRequest":
        """Raises MalformedBody or Oversized."""
        if len(body) < HELLO_REQUEST_BYTES:
            raise malformed("HELLO", f"{len(body)} bytes are too few")
        low, high, client_uuid, pool_length, ticket_length, lineage, transports = (
            _HELLO_REQUEST.unpack_from(body)
        )
        if pool_length > limits.POOL_NAME_BYTES_MAX or ticket_length > limits.TICKET_BYTES_MAX:
            raise Oversized(
                f"HELLO: pool name of {pool_length} and ticket of {ticket_length} bytes; at most "
                f"{limits.POOL_NAME_BYTES_MAX} and {limits.TICKET_BYTES_MAX}"
            )
        ticket_start = HELLO_REQUEST_BYTES + pool_length
        if len(body) != ticket_start + ticket_length:
            raise malformed("HELLO", "pool name and ticket do not fill the body")
        pool = decode_text("HELLO", body[HELLO_REQUEST_BYTES:ticket_start])
        return cls(client_uuid, pool, body[ticket_start:], lineage, transports, low, high)


@dataclass(frozen=True, slots=True)
class HelloResponse:
    """What a node grants: the session, its limits, and one-time tokens for lanes.

    `local_path`: of the worker's Unix socket on its own machine, when it has one and was asked.
    """

    protocol: int
    worker_uuid: bytes
    incarnation: int
    session_uuid: bytes
    block_length_max: int
    items_max: int
    credit_bytes: int
    transports: int
    lineage: bytes
    map_term: int
    map_epoch: int
    lane_tokens: tuple[bytes, ...]
    local_path: str = ""

    def encode(self) -> bytes:
        path = self.local_path.encode("utf-8")
        return _HELLO_RESPONSE.pack(
            self.protocol, len(self.lane_tokens), self.worker_uuid, self.incarnation,
            self.session_uuid, self.block_length_max, self.items_max, self.credit_bytes,
            self.transports, self.lineage, self.map_term, self.map_epoch, len(path),
        ) + b"".join(self.lane_tokens) + path  # fmt: skip

    @classmethod
    def decode(cls, body: bytes) -> "HelloResponse":
        """Raises MalformedBody."""
        if len(body) < HELLO_RESPONSE_BYTES:
            raise malformed("HELLO response", f"{len(body)} bytes are too few")
        (
            protocol, token_count, worker_uuid, incarnation, session_uuid, block_max, items_max,
            credit, transports, lineage, term, epoch, path_length,
        ) = _HELLO_RESPONSE.unpack_from(body)  # fmt: skip
        path_start = HELLO_RESPONSE_BYTES + token_count * LANE_TOKEN_BYTES
        if (
            token_count > limits.LANES_PER_SESSION_MAX
            or path_length > limits.LOCAL_PATH_BYTES_MAX
            or len(body) != path_start + path_length
        ):
            what = f"{token_count} tokens and a path of {path_length} bytes in {len(body)} bytes"
            raise malformed("HELLO response", what)
        tokens = tuple(
            body[start : start + LANE_TOKEN_BYTES]
            for start in range(HELLO_RESPONSE_BYTES, path_start, LANE_TOKEN_BYTES)
        )
        path = decode_text("HELLO response", body[path_start:])
        return cls(
            protocol, worker_uuid, incarnation, session_uuid, block_max, items_max, credit,
            transports, lineage, term, epoch, tokens, path,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LaneHello:
    """Binds a fresh connection to a session as a payload lane (flag LANE)."""

    session_uuid: bytes
    token: bytes

    def encode(self) -> bytes:
        return self.session_uuid + self.token

    @classmethod
    def decode(cls, body: bytes) -> "LaneHello":
        """Raises MalformedBody."""
        if len(body) != LANE_HELLO_BYTES:
            raise malformed("lane HELLO", f"{len(body)} bytes instead of {LANE_HELLO_BYTES}")
        return cls(body[:16], body[16:])


class KeysRequest(NamedTuple):
    """EXISTS, DELETE, PIN, PREFETCH or WHY: one number and the ids, 32 bytes each, as one object.

    `argument`: lease_ms (EXISTS), ttl_s (PIN; 0 unpins), else 0.
    """

    argument: int
    block_ids: bytes


def encode_keys(argument: int, block_ids: bytes) -> bytes:
    """Return the body of an operation on keys."""
    return _KEYS_PREFIX.pack(argument, 0) + block_ids


def decode_keys(body: bytes, count: int) -> KeysRequest:
    """Parse a body of an operation on keys without touching single ids. Raises MalformedBody."""
    if count < 1 or len(body) != KEYS_PREFIX_BYTES + count * limits.BLOCK_ID_BYTES:
        raise malformed("key list", f"{count} ids do not take {len(body)} bytes")
    argument, _ = _KEYS_PREFIX.unpack_from(body)
    return KeysRequest(argument, body[KEYS_PREFIX_BYTES:])


class Statuses(NamedTuple):
    """Statuses of a batch as one object of little-endian i32, and where to find what is elsewhere.

    On the wire the hints follow the statuses, and the frame has flag HINTS when there are any.
    """

    values: bytes
    hints: list[Hint]


def encode_statuses(values: bytes, hints: Sequence[Hint] = ()) -> bytes:
    """Return the body of a response to PUT or an operation on keys."""
    return values + encode_hints(hints) if hints else values


def decode_statuses(header: FrameHeader, body: bytes) -> Statuses:
    """Parse the body of a response to PUT or an operation on keys. Raises MalformedBody."""
    end = header.item_count * STATUS_BYTES
    has_hints = bool(header.flags & Flag.HINTS)
    if len(body) < end or (len(body) > end and not has_hints):
        raise malformed("statuses", f"{header.item_count} statuses do not take {len(body)} bytes")
    hints = decode_hints(body[end:]) if has_hints else []
    if any(hint.index >= header.item_count for hint in hints):
        raise malformed("statuses", "a hint names no item of the request")
    return Statuses(body[:end], hints)


def status_of(value: int) -> Status:
    """Map a status from the wire. What this build does not know is INTERNAL when negative: later
    versions may add reasons for not serving, and each of them means a miss or a dropped put."""
    if value in _STATUS_VALUES:
        return Status(value)
    return Status.OK if value > 0 else Status.INTERNAL


def pack_statuses(values: Sequence[int]) -> bytes:
    """Return little-endian i32 for each status."""
    return struct.pack(f"<{len(values)}i", *values)


def unpack_statuses(values: bytes) -> tuple[int, ...]:
    """Return the numbers of `Statuses.values`."""
    return struct.unpack(f"<{len(values) // STATUS_BYTES}i", values)


class ListKind(IntEnum):
    """What LIST pages through."""

    BLOCKS = 0
    TOMBSTONES = 1


@dataclass(frozen=True, slots=True)
class ListRequest:
    """One page of a slot. `cursor`: 0 for the first page, then `ListPage.next_cursor`.

    `since_epoch`, for tombstones: only deletes under maps newer than this one matter.
    """

    slot: int
    kind: int = ListKind.BLOCKS
    cursor: int = 0
    limit: int = limits.ITEMS_PER_FRAME_MAX
    since_epoch: int = 0

    def encode(self) -> bytes:
        return _LIST_REQUEST.pack(
            self.slot, self.kind, self.cursor, self.limit, 0, self.since_epoch
        )

    @classmethod
    def decode(cls, body: bytes) -> "ListRequest":
        """Raises MalformedBody or Oversized."""
        if len(body) != LIST_REQUEST_BYTES:
            raise malformed("LIST", f"{len(body)} bytes instead of {LIST_REQUEST_BYTES}")
        slot, kind, cursor, limit, _, since_epoch = _LIST_REQUEST.unpack(body)
        if kind not in (ListKind.BLOCKS, ListKind.TOMBSTONES):
            raise malformed("LIST", f"kind {kind} is unknown")
        if slot >= limits.SLOTS_MAX or not 1 <= limit <= limits.ITEMS_PER_FRAME_MAX:
            raise Oversized(
                f"LIST: slot {slot} or limit {limit} is out of range; slots are below "
                f"{limits.SLOTS_MAX}, a page has 1 to {limits.ITEMS_PER_FRAME_MAX} entries"
            )
        return cls(slot, kind, cursor, limit, since_epoch)


class ListEntry(NamedTuple):
    """One block or tombstone.

    `length`, `depth` and `expiry_s` (wall time, 0: never) are 0 for a tombstone, `generation` (the
    store's number of the delete) is 0 for a block.
    """

    block_id: bytes
    tenant_tag: bytes
    length: int
    generation: int
    depth: int
    expiry_s: int


@dataclass(frozen=True, slots=True)
class ListPage:
    """Part of a slot's list. `next_cursor` 0: this was the last page.

    `complete` False, for tombstones: some that were asked for may have been forgotten, so what the
    asker holds of the slot must count as missing.
    """

    kind: int
    next_cursor: int
    entries: tuple[ListEntry, ...]
    complete: bool = True

    def encode(self) -> bytes:
        pack = _LIST_ENTRY.pack
        return _LIST_PAGE.pack(self.next_cursor, self.kind, self.complete) + b"".join(
            [pack(*entry) for entry in self.entries]
        )

    @classmethod
    def decode(cls, body: bytes, count: int) -> "ListPage":
        """Raises MalformedBody."""
        if len(body) != LIST_PAGE_BYTES + count * LIST_ENTRY_BYTES:
            raise malformed("LIST response", f"{count} entries do not take {len(body)} bytes")
        next_cursor, kind, flags = _LIST_PAGE.unpack_from(body)
        entries = tuple(
            ListEntry(*fields) for fields in _LIST_ENTRY.iter_unpack(body[LIST_PAGE_BYTES:])
        )
        return cls(kind, next_cursor, entries, bool(flags & _LIST_COMPLETE))


def decode_text(operation: str, data: bytes) -> str:
    """Return UTF-8 text. Raises MalformedBody."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(operation, "text is not UTF-8") from error


def error_text(body: bytes) -> str:
    """Return the explanation in a response whose header status is negative."""
    return body[: limits.ERROR_TEXT_BYTES_MAX].decode("utf-8", "replace")
