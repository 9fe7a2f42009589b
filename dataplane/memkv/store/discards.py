"""Discards: what is free on flash is told to the drive, which then need not keep it.

Rule 1: only between the ends of a FREE segment. Its old life has ended durably, and the ends, which
say so, are not touched. What lies between reads as zeros, as ones or as before until it is written
again, each sector for itself; a scan finds no record of the new life there whatever it is. Before
the erase is durable the old life may be back after a crash, and must be whole then.
Rule 2: a segment is not opened while its discard is under way (`Log` waits): operations in flight
together are not ordered, and the discard could hit what is written.
Rule 3: one at a time, and for at most a tenth of the time: a drive may serve nobody meanwhile. The
youngest free segment goes first, for it is used last, and the one that is opened next never. What
is opened before its turn comes is not told, which costs nothing but the drive's own copying.

A segment is one request; those beside it cannot share it, for their ends lie between.
"""

import errno
from collections.abc import Callable

from memkv.limits import SECTOR_BYTES
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import Segment, SegmentTable
from memkv.store.statistics import Counters

REST_PER_DISCARD = 9  # times as long as it took: a tenth of the time is spent on them
REFUSALS = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES})
"""Of these the drive, or a layer above it, gives the same answer next time."""


class Discards:
    """Chooses what is told next, and when."""

    def __init__(
        self, table: SegmentTable, counters: Counters, now_ns: Callable[[], int], wanted: bool
    ) -> None:
        """`wanted`: whether the drive takes discards and is to get them."""
        self._table = table
        self._counters = counters
        self._now_ns = now_ns
        self._wanted = wanted
        self._under_way: Segment | None = None
        self._began_ns = 0
        self._resume_ns = 0

    def rest_ns(self) -> int | None:
        """Return how long there is nothing to tell; None: until another segment becomes free."""
        if self._under_way is not None or self._next() is None:
            return None
        return max(0, self._resume_ns - self._now_ns())

    def begin(self) -> IoRequest | None:
        """Return a discard to start now. The next one is returned when it has completed."""
        if self.rest_ns() != 0:
            return None
        segment = self._next()
        assert segment is not None
        self._under_way, self._began_ns = segment, self._now_ns()
        segment.is_told, segment.is_discarding = True, True
        length = self._table.segment_bytes - 2 * SECTOR_BYTES
        return IoRequest(
            IoKind.DISCARD, segment.offset + SECTOR_BYTES, [],
            lambda ok, error: self._done(segment, length, ok, error), length,
        )  # fmt: skip

    def stop(self) -> None:
        """Tell the drive nothing more."""
        self._wanted = False

    def _next(self) -> Segment | None:
        if self._wanted:
            for position in range(len(self._table.free) - 1, 0, -1):
                if not self._table.free[position].is_told:
                    return self._table.free[position]
        return None

    def _done(self, segment: Segment, length: int, ok: bool, error: int) -> None:
        now_ns = self._now_ns()
        self._resume_ns = now_ns + (now_ns - self._began_ns) * REST_PER_DISCARD
        self._under_way = None
        segment.is_discarding = False
        if ok:
            self._counters.discarded_bytes += length
            return
        self._counters.discards_refused += 1
        if error in REFUSALS:
            self._wanted = False
