"""Operations, flags and the size limits of each operation's frames, as tables.

Rule: a receiver refuses from these tables alone, before it stores one byte of a body.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple

from memkv import limits


class Opcode(IntEnum):
    """Operations of protocols 1 and 2. Numbers are never reused."""

    HELLO = 1
    PUT = 2
    GET = 3
    GET_RANGES = 4
    EXISTS = 5
    DELETE = 6
    PIN = 7
    STAT = 8
    GOODBYE = 9
    LIST = 10
    PULL = 11
    REGISTER = 12
    UNREGISTER = 13
    LOCAL_GET = 14
    LOCAL_PUT = 15
    RDMA_CONNECT = 16
    RDMA_REGISTER = 17
    RDMA_UNREGISTER = 18
    RDMA_GET = 19
    RDMA_PUT = 20
    PREFETCH = 21
    WHY = 22
    EVENTS = 23


class Flag(IntFlag):
    """Bits of the header's flags. A bit outside this set is refused: it may change the meaning."""

    NONE = 0
    RESPONSE = 1
    LAST = 2
    """Final frame of a response, or of a PUT batch."""
    HINTS = 4
    """Hint records follow the statuses (or the item) in the body."""
    VERIFY = 8
    """GET: the node checks payload sums itself; sent again after the consumer found bad bytes."""
    LANE = 16
    """HELLO binds a payload lane to a session."""
    EXPRESS = 32
    """HELLO with LANE: the lane is for small payloads."""


FLAGS_KNOWN = 63


class Transport(IntFlag):
    """Payload transports of HELLO."""

    NONE = 0
    TCP = 1
    RDMA = 2
    LOCAL = 4


class FrameLimits(NamedTuple):
    """Largest frame of one operation in one direction."""

    body_bytes_max: int
    payload_bytes_max: int = 0
    count_max: int = 0


HEADER_BYTES = limits.FRAME_HEADER_BYTES
GET_ITEM_BYTES = 48
GET_RESULT_BYTES = 40
RANGES_ITEM_BYTES = 40
RANGE_BYTES = 16
PUT_ITEM_BYTES = 88
SUM_BYTES = 8
STATUS_BYTES = 4
KEYS_PREFIX_BYTES = 8
HINT_BYTES = 40
HELLO_REQUEST_BYTES = 44
HELLO_RESPONSE_BYTES = 100
LANE_HELLO_BYTES = 48
LANE_TOKEN_BYTES = 32
LIST_REQUEST_BYTES = 32
LIST_PAGE_BYTES = 16
LIST_ENTRY_BYTES = 72
PULL_PREFIX_BYTES = 16
PULL_TAIL_BYTES = 24
REGISTER_BYTES = 24
REGISTERED_BYTES = 4
UNREGISTER_BYTES = 8
LOCAL_GET_ITEM_BYTES = 40
LOCAL_PART_BYTES = 24
RDMA_CONNECT_BYTES = 48
RDMA_CONNECTED_BYTES = 40
RDMA_REGISTER_BYTES = 32
RDMA_UNREGISTER_BYTES = 8
EVENTS_REQUEST_BYTES = 24
EVENTS_PAGE_BYTES = 24
EVENT_BYTES = 32

_ITEMS = limits.ITEMS_PER_FRAME_MAX
_SUMS = limits.CHUNKS_PER_BLOCK_MAX * SUM_BYTES
_HINT = HINT_BYTES + limits.HOST_NAME_BYTES_MAX
_KEYS = FrameLimits(KEYS_PREFIX_BYTES + _ITEMS * limits.BLOCK_ID_BYTES, 0, _ITEMS)
_STATUSES = FrameLimits(_ITEMS * (STATUS_BYTES + _HINT), 0, _ITEMS)

REQUEST_LIMITS: dict[int, FrameLimits] = {
    Opcode.HELLO: FrameLimits(
        HELLO_REQUEST_BYTES + limits.POOL_NAME_BYTES_MAX + limits.TICKET_BYTES_MAX
    ),
    Opcode.PUT: FrameLimits(PUT_ITEM_BYTES + _SUMS, limits.BLOCK_BYTES_MAX, 1),
    Opcode.GET: FrameLimits(_ITEMS * GET_ITEM_BYTES, 0, _ITEMS),
    Opcode.GET_RANGES: FrameLimits(limits.FRAME_BODY_BYTES_MAX, 0, _ITEMS),
    Opcode.EXISTS: _KEYS,
    Opcode.DELETE: _KEYS,
    Opcode.PIN: _KEYS,
    Opcode.STAT: FrameLimits(0),
    Opcode.GOODBYE: FrameLimits(0),
    Opcode.LIST: FrameLimits(LIST_REQUEST_BYTES),
    Opcode.PULL: FrameLimits(PULL_PREFIX_BYTES + _ITEMS * limits.BLOCK_ID_BYTES, 0, _ITEMS),
    Opcode.REGISTER: FrameLimits(REGISTER_BYTES),
    Opcode.UNREGISTER: FrameLimits(UNREGISTER_BYTES),
    Opcode.LOCAL_GET: FrameLimits(limits.FRAME_BODY_BYTES_MAX, 0, _ITEMS),
    Opcode.LOCAL_PUT: FrameLimits(
        PUT_ITEM_BYTES + _SUMS + limits.LOCAL_PARTS_PER_ITEM_MAX * LOCAL_PART_BYTES, 0, 1
    ),
    Opcode.RDMA_CONNECT: FrameLimits(RDMA_CONNECT_BYTES),
    Opcode.RDMA_REGISTER: FrameLimits(RDMA_REGISTER_BYTES),
    Opcode.RDMA_UNREGISTER: FrameLimits(RDMA_UNREGISTER_BYTES),
    Opcode.RDMA_GET: FrameLimits(limits.FRAME_BODY_BYTES_MAX, 0, _ITEMS),
    Opcode.RDMA_PUT: FrameLimits(
        PUT_ITEM_BYTES + _SUMS + limits.LOCAL_PARTS_PER_ITEM_MAX * LOCAL_PART_BYTES, 0, 1
    ),
    Opcode.PREFETCH: _KEYS,
    Opcode.WHY: _KEYS,
    Opcode.EVENTS: FrameLimits(EVENTS_REQUEST_BYTES),
}

# Every response may instead carry the text of a frame-level error.
_TEXT = limits.ERROR_TEXT_BYTES_MAX
RESPONSE_LIMITS: dict[int, FrameLimits] = {
    Opcode.HELLO: FrameLimits(
        max(
            _TEXT,
            HELLO_RESPONSE_BYTES
            + limits.LANES_PER_SESSION_MAX * LANE_TOKEN_BYTES
            + limits.LOCAL_PATH_BYTES_MAX,
        )
    ),
    Opcode.PUT: _STATUSES,
    Opcode.GET: FrameLimits(GET_RESULT_BYTES + _SUMS + _HINT, limits.BLOCK_BYTES_MAX, 1),
    Opcode.GET_RANGES: FrameLimits(
        GET_RESULT_BYTES + limits.RANGES_PER_ITEM_MAX * SUM_BYTES + _HINT,
        limits.BLOCK_BYTES_MAX,
        1,
    ),
    Opcode.EXISTS: _STATUSES,
    Opcode.DELETE: _STATUSES,
    Opcode.PIN: _STATUSES,
    Opcode.STAT: FrameLimits(limits.STATISTICS_BYTES_MAX),
    Opcode.GOODBYE: FrameLimits(_TEXT),
    Opcode.LIST: FrameLimits(LIST_PAGE_BYTES + _ITEMS * LIST_ENTRY_BYTES, 0, _ITEMS),
    Opcode.PULL: FrameLimits(
        max(_TEXT, GET_RESULT_BYTES + _SUMS + PULL_TAIL_BYTES), limits.BLOCK_BYTES_MAX, 1
    ),
    Opcode.REGISTER: FrameLimits(max(_TEXT, REGISTERED_BYTES)),
    Opcode.UNREGISTER: FrameLimits(_TEXT),
    Opcode.LOCAL_GET: FrameLimits(max(_TEXT, GET_RESULT_BYTES + _SUMS + _HINT), 0, 1),
    Opcode.LOCAL_PUT: _STATUSES,
    Opcode.RDMA_CONNECT: FrameLimits(max(_TEXT, RDMA_CONNECTED_BYTES)),
    Opcode.RDMA_REGISTER: FrameLimits(_TEXT),
    Opcode.RDMA_UNREGISTER: FrameLimits(_TEXT),
    Opcode.RDMA_GET: FrameLimits(max(_TEXT, GET_RESULT_BYTES + _SUMS + _HINT), 0, 1),
    Opcode.RDMA_PUT: _STATUSES,
    Opcode.PREFETCH: _STATUSES,
    Opcode.WHY: _STATUSES,
    Opcode.EVENTS: FrameLimits(
        EVENTS_PAGE_BYTES + limits.FEED_PAGE_MAX * EVENT_BYTES, 0, limits.FEED_PAGE_MAX
    ),
}

# What HELLO must have chosen before a client may send it: an older node closes the connection.
PROTOCOL_OF_OPCODE: dict[int, int] = {Opcode.PREFETCH: 2, Opcode.WHY: 2, Opcode.EVENTS: 2}

# A lane's first read of a request may take this much: no PUT frame has fewer bytes before its
# payload, so payload never lands in the frame buffer, and a GET of one block is one system call.
LANE_READ_BYTES = HEADER_BYTES + PUT_ITEM_BYTES + SUM_BYTES

assert set(REQUEST_LIMITS) == set(RESPONSE_LIMITS) == set(Opcode)
assert all(
    limit.body_bytes_max <= limits.FRAME_BODY_BYTES_MAX
    for table in (REQUEST_LIMITS, RESPONSE_LIMITS)
    for limit in table.values()
)
assert LANE_READ_BYTES >= HEADER_BYTES + GET_ITEM_BYTES
assert sum(flag.value for flag in Flag) == FLAGS_KNOWN
