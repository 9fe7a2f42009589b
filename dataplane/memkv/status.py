"""Results of calls, one closed set shared by the wire, the store and the client.

A value >= 0 is success. A negative value says what the caller should do, not who failed: an engine
treats every negative get as a miss and recomputes, and every negative put as a dropped store.
"""

from enum import IntEnum


class Status(IntEnum):
    """Result of one key of one call."""

    OK = 0
    MISS = -1
    """Not stored, evicted, expired or deleted. Recompute; not an error."""
    CORRUPT = -2
    """Bytes failed a check and were not returned. Recompute; counted."""
    TIMEOUT = -3
    """The deadline passed. The buffer is free again."""
    BUSY = -4
    """Over a configured limit. A miss for a get, a dropped put; trying again later may work."""
    UNAVAILABLE = -5
    """The owner could not be reached, or did not answer for a delete."""
    QUARANTINED = -6
    """The buffer may still be written; `completions()` gives it back."""
    TOO_LARGE = -7
    """The block is longer than this pool takes."""
    INVALID = -8
    """The caller's arguments are wrong; the message or the log says how."""
    WRONG_OWNER = -9
    """Another worker owns the slot now (on the wire; a client resolves it)."""
    NO_SPACE = -10
    """Nothing could be evicted for this block."""
    DENIED = -11
    """The ticket does not allow this."""
    PROTOCOL = -12
    """The peer broke the protocol; the connection was closed."""
    CLOSED = -13
    """The client, session or store is closed."""
    INTERNAL = -14
    """A bug in MemKV; please report it."""
    BUFFER_TOO_SMALL = -15
    """The stored block is longer than the buffer; its length is reported where the call can."""
    QUOTA = -16
    """The tenant's pins or bytes are at their limit."""
    UNSUPPORTED = -17
    """The node is of an older version and does not know this operation (never on the wire)."""


HIT_STATUSES: frozenset[Status] = frozenset({Status.OK})
