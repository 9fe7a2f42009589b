"""The state of a store's drive. Rule 1: every change of state is a row of TRANSITIONS.

    HEALTHY <-> SUSPECT -> FAULTED

One error may be a hiccup of a bus or a spot that rots, so it makes the drive SUSPECT; errors that
come back after a pause make it FAULTED, and so does a device that is gone. Errors come back when

- writes (or flushes) fail three times in a row, puts are refused for a while, and what is tried
  then fails too, or
- reads fail twice, each in eight segments, and the second time after that while as well. Segments
  are counted, not reads: one bad spot is not a bad drive.

A FAULTED drive stays so until the process opens it anew and its superblock can be read and written:
what a drive says that comes and goes is not believed. Nothing is written to it any more. It is read
as long as reads were not what failed: a worn-out drive that turned read-only still serves.

A file that finds its file system full is no fault, however often: writes go on being tried. A block
device cannot be full; one that says so has lost its size, which is how removed drives look.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from memkv.errors import InternalBug
from memkv.store.requests import IoKind

ERRORS_IN_ROW_MAX = 3  # of writes or of flushes; then the drive is left alone for a while
PAUSE_NS = 5_000_000_000
SEGMENTS_UNREAD_MAX = 8  # or half of a small drive's
CALM_NS = 600_000_000_000  # without an error a drive that was suspect is healthy again
GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.ESHUTDOWN})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, 0})  # 0: written in part


class DriveState(Enum):
    """What a drive is good for."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    """Something failed lately."""
    FAULTED = "faulted"
    """It is written no more; see `DriveWatch.is_readable`."""


class DriveEvent(Enum):
    """What changes the state."""

    ERROR = "error"
    """A write, a flush, or a read and its repetition failed."""
    PERSISTS = "persists"
    """Errors came back after a pause."""
    GONE = "gone"
    """The device is not there any more."""
    CALM = "calm"
    """No error for a while."""


_S, _E = DriveState, DriveEvent
TRANSITIONS: dict[tuple[DriveState, DriveEvent], DriveState] = {
    (_S.HEALTHY, _E.ERROR): _S.SUSPECT,
    (_S.HEALTHY, _E.GONE): _S.FAULTED,
    (_S.HEALTHY, _E.CALM): _S.HEALTHY,
    (_S.SUSPECT, _E.ERROR): _S.SUSPECT,
    (_S.SUSPECT, _E.PERSISTS): _S.FAULTED,
    (_S.SUSPECT, _E.GONE): _S.FAULTED,
    (_S.SUSPECT, _E.CALM): _S.HEALTHY,
    (_S.FAULTED, _E.ERROR): _S.FAULTED,
    (_S.FAULTED, _E.PERSISTS): _S.FAULTED,
    (_S.FAULTED, _E.GONE): _S.FAULTED,
    (_S.FAULTED, _E.CALM): _S.FAULTED,
}
_VERBS = {IoKind.READ: "reads", IoKind.WRITE: "writes", IoKind.FLUSH: "flushes"}


@dataclass(frozen=True, slots=True)
class DriveTraits:
    """What kind of drive it is."""

    discards: bool = False
    """It is told what is unused."""
    can_fill: bool = True
    """It is a file, whose file system may be full."""


@dataclass(slots=True)
class _Row:
    """Failures of writes, or of flushes, since the last success."""

    failures: int = 0
    pauses: int = 0
    resume_ns: int = 0


class DriveWatch:
    """Takes the results of all I/O, under the store's lock, and judges the drive by them."""

    def __init__(
        self, now_ns: Callable[[], int], segment_count: int, traits: DriveTraits = DriveTraits()
    ) -> None:
        self._now_ns = now_ns
        self._can_fill = traits.can_fill
        self._segments_unread_max = min(SEGMENTS_UNREAD_MAX, max(2, segment_count // 2))
        self._rows = {IoKind.WRITE: _Row(), IoKind.FLUSH: _Row()}
        self._unread: dict[int, int] = {}  # segment -> when a read of it failed last
        self._unread_again_ns = 0  # from then on reads that fail count for the second time; 0: none
        self._error_ns = 0
        self.state = DriveState.HEALTHY
        self.cause = ""
        """Of the last error or, of a FAULTED drive, why it is so."""
        self.is_readable = True

    @property
    def is_faulted(self) -> bool:
        """Whether it is written no more."""
        return self.state is DriveState.FAULTED

    def refuses(self) -> bool:
        """Say whether puts are refused now: it is FAULTED, or left alone for a while."""
        if self.is_faulted:
            return True
        return any(self._now_ns() < row.resume_ns for row in self._rows.values())

    def done(self, kind: IoKind) -> None:
        """A write or flush succeeded."""
        row = self._rows[kind]
        if row.failures or row.pauses:
            self._rows[kind] = _Row()

    def failed(self, kind: IoKind, error: int) -> None:
        """A write or flush failed; 0: a write was done in part."""
        if self._is_gone(kind, error):
            return
        now_ns, row = self._now_ns(), self._rows[kind]
        self._take(DriveEvent.ERROR, kind, error)
        if now_ns < row.resume_ns:
            return  # begun before the pause
        row.failures += 1
        if row.failures < ERRORS_IN_ROW_MAX:
            return
        if row.pauses and not (self._can_fill and error in FULL):
            self._take(DriveEvent.PERSISTS, kind, error)
            return
        row.failures = ERRORS_IN_ROW_MAX - 1  # one more is tried after the pause
        row.pauses, row.resume_ns = row.pauses + 1, now_ns + PAUSE_NS

    def unread(self, segment: int, error: int) -> None:
        """A read in a segment failed, and so did its repetition; 0: it brought too little."""
        if self._is_gone(IoKind.READ, error):
            return
        now_ns = self._now_ns()
        self._take(DriveEvent.ERROR, IoKind.READ, error)
        if now_ns < self._unread_again_ns:
            return
        self._unread[segment] = now_ns
        if len(self._unread) < self._segments_unread_max:
            return
        self._unread.clear()
        if self._unread_again_ns:
            self._take(DriveEvent.PERSISTS, IoKind.READ, error)
        else:
            self._unread_again_ns = now_ns + PAUSE_NS

    def look(self) -> None:
        """Call a drive healthy again that has had no error for long."""
        calm = self._now_ns() - self._error_ns >= CALM_NS
        if self.state is DriveState.SUSPECT and calm and not self.refuses():
            self._take(DriveEvent.CALM)
            self._unread.clear()
            self._unread_again_ns = 0

    def _is_gone(self, kind: IoKind, error: int) -> bool:
        if error not in GONE:
            return False
        self._take(DriveEvent.GONE, kind, error)
        return True

    def _take(self, event: DriveEvent, kind: IoKind = IoKind.READ, error: int = 0) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise InternalBug(f"a drive that is {self.state} cannot be {event}")
        if event is DriveEvent.CALM:
            self.cause = ""
        else:
            self._error_ns = self._now_ns()
            if event is DriveEvent.GONE or (
                event is DriveEvent.PERSISTS and kind is IoKind.READ
            ):
                self.is_readable = False
            if not self.is_faulted:
                self.cause = _describe(event, kind, error)
        self.state = after


def _describe(event: DriveEvent, kind: IoKind, error: int) -> str:
    code = errno.errorcode.get(error, "too few bytes") if error else "too few bytes"
    if event is DriveEvent.GONE:
        return f"the device is gone ({code})"
    if event is DriveEvent.ERROR:
        return f"{_VERBS[kind]} failed ({code})"
    where = " in many places" if kind is IoKind.READ else ""
    return f"{_VERBS[kind]} fail{where} ({code}), also after a pause of {PAUSE_NS // 10**9} s"
