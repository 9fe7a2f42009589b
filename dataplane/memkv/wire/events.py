"""Bodies of EVENTS: what came and went of a tenant's blocks on one worker."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from memkv import limits
from memkv.wire.errors import Oversized
from memkv.wire.items import malformed
from memkv.wire.opcodes import EVENT_BYTES, EVENTS_PAGE_BYTES, EVENTS_REQUEST_BYTES

_REQUEST = struct.Struct("<IIQQ")
_PAGE = struct.Struct("<QQII")
_EVENT = struct.Struct("<16s8sII")

assert _REQUEST.size == EVENTS_REQUEST_BYTES
assert _PAGE.size == EVENTS_PAGE_BYTES
assert _EVENT.size == EVENT_BYTES


class FeedKind(IntEnum):
    """What a page is of."""

    EVENTS = 0
    BLOCKS = 1
    """A snapshot: what is there, as if it had just been stored."""


class FeedFlag(IntFlag):
    """Of a page."""

    NONE = 0
    GAP = 1
    """Events that were asked for are not kept any more: take a snapshot, then go on from here."""
    MORE = 2
    """Of a snapshot: there is another page."""


class Event(NamedTuple):
    """One block. `digest`: the first 16 bytes of its id; `kind`: 0 stored, 1 removed. The prefix_id
    of a removed block, and of one in a snapshot, is zeros."""

    digest: bytes
    prefix_id: bytes
    depth: int
    kind: int


@dataclass(frozen=True, slots=True)
class EventsRequest:
    """Asks for a page. `cursor`: number of an event of this `generation`, or a place in the
    snapshot, 0 first."""

    kind: int
    generation: int = 0
    cursor: int = 0
    limit: int = limits.FEED_PAGE_MAX

    def encode(self) -> bytes:
        return _REQUEST.pack(self.kind, self.limit, self.generation, self.cursor)

    @classmethod
    def decode(cls, body: bytes) -> "EventsRequest":
        """Raises MalformedBody or Oversized."""
        if len(body) != EVENTS_REQUEST_BYTES:
            raise malformed("EVENTS", f"{len(body)} bytes instead of {EVENTS_REQUEST_BYTES}")
        kind, limit, generation, cursor = _REQUEST.unpack(body)
        if kind not in (FeedKind.EVENTS, FeedKind.BLOCKS):
            raise malformed("EVENTS", f"kind {kind} is unknown")
        if not 1 <= limit <= limits.FEED_PAGE_MAX or cursor >= 1 << 63:
            raise Oversized(
                f"EVENTS: limit {limit} or cursor {cursor} is out of range; a page has 1 to "
                f"{limits.FEED_PAGE_MAX} events"
            )
        return cls(kind, generation, cursor, limit)


@dataclass(frozen=True, slots=True)
class EventsPage:
    """The answer. `events` are packed; `iterate` unpacks them."""

    generation: int
    cursor: int
    flags: int
    events: bytes = b""

    @property
    def count(self) -> int:
        return len(self.events) // EVENT_BYTES

    def encode(self) -> bytes:
        return _PAGE.pack(self.generation, self.cursor, self.flags, 0) + self.events

    @classmethod
    def decode(cls, body: bytes) -> "EventsPage":
        """Raises MalformedBody."""
        if len(body) < EVENTS_PAGE_BYTES or (len(body) - EVENTS_PAGE_BYTES) % EVENT_BYTES:
            raise malformed("EVENTS response", f"{len(body)} bytes are no whole events")
        generation, cursor, flags, _ = _PAGE.unpack_from(body)
        return cls(generation, cursor, flags, body[EVENTS_PAGE_BYTES:])

    def iterate(self) -> Iterator[Event]:
        """Yield its events."""
        return (Event(*fields) for fields in _EVENT.iter_unpack(self.events))
