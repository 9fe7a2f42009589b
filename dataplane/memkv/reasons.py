"""Why a lookup did not hit, one closed set shared by nodes, clients and integrations.

A `Status` says what the caller should do; a `MissReason` says why, for people and counters. Numbers
are on the wire (WHY) and never change their meaning.
"""

from __future__ import annotations

from enum import IntEnum

from memkv.status import Status


class MissReason(IntEnum):
    """Why there was no hit."""

    PRESENT = 0
    """It is there: no miss."""
    NEVER_STORED = 1
    """Nothing is remembered of it: never put here, or so long ago that it was forgotten."""
    NOT_ADMITTED = 2
    """A put came, and the node did not take it: no room, over a quota or another limit."""
    EVICTED = 3
    """It was there, and made room for others."""
    EXPIRED = 4
    """Its time to live is over."""
    DELETED = 5
    """Somebody deleted it."""
    LOST = 6
    """Its drive failed, or a crash came before it was on flash."""
    CORRUPT = 7
    """Bytes failed a check and were not returned."""
    TIMEOUT = 8
    """No answer by the deadline."""
    BUSY = 9
    """The node is over a limit."""
    UNAVAILABLE = 10
    """Nobody who could have it was reached."""
    WRONG_NAMESPACE = 11
    """A block is there whose header names another model, dtype, block size, adapter or salt."""
    WRONG_FORMAT = 12
    """A block of this namespace is there, of another shape or length."""
    DENIED = 13
    """The ticket does not allow to read."""
    UNEXPLAINED = 14
    """A miss whose reason nobody asked for."""
    OTHER = 15
    """A bug, here or at the caller; the status or the log says which."""

    @property
    def label(self) -> str:
        """As people and metrics read it: `never_stored`."""
        return self.name.lower()


OF_STATUS: dict[Status, MissReason] = {
    Status.MISS: MissReason.UNEXPLAINED,
    Status.CORRUPT: MissReason.CORRUPT,
    Status.TIMEOUT: MissReason.TIMEOUT,
    Status.QUARANTINED: MissReason.TIMEOUT,
    Status.BUSY: MissReason.BUSY,
    Status.UNAVAILABLE: MissReason.UNAVAILABLE,
    Status.CLOSED: MissReason.UNAVAILABLE,
    Status.WRONG_OWNER: MissReason.UNAVAILABLE,
    Status.NO_SPACE: MissReason.NOT_ADMITTED,
    Status.QUOTA: MissReason.NOT_ADMITTED,
    Status.TOO_LARGE: MissReason.NOT_ADMITTED,
    Status.BUFFER_TOO_SMALL: MissReason.WRONG_FORMAT,
    Status.DENIED: MissReason.DENIED,
    Status.UNSUPPORTED: MissReason.UNEXPLAINED,
}


def reason_of(result: int) -> MissReason:
    """Return what the result of one key of a get says by itself. A miss is UNEXPLAINED: only the
    node knows more."""
    if result >= 0:
        return MissReason.PRESENT
    try:
        return OF_STATUS.get(Status(result), MissReason.OTHER)
    except ValueError:
        return MissReason.OTHER
