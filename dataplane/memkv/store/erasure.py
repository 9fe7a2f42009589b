"""Erasing: a segment's old life ends when the header and the trailer of its new one are durable.

A flush takes tens of milliseconds on many drives, so segments are erased side by side and share
flushes; one after the other could not free them as fast as puts fill them.

Rule 1: segments become FREE in the order of their sequence numbers. Order is truth: a segment that
is opened later must have the larger number, whichever of two writes was faster.
Rule 2: until then the old life may be back after a crash. So while any erasure is under way, nobody
decides that a tombstone has nothing left to hide (`Reclaim` waits before it looks at one).
"""

from collections import deque
from collections.abc import Callable

from memkv.limits import SECTOR_BYTES
from memkv.store.layout import (
    SegmentHeader,
    Trailer,
    aligned_buffer,
    encode_segment_header,
    write_trailer,
)
from memkv.store.log import Log
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import Segment, SegmentTable, State

ENDS = 2  # header and trailer


class _Erasure:
    """One segment on its way. `ends` has an entry for each end whose fate is known."""

    __slots__ = ("ends", "life", "segment")

    def __init__(self, segment: Segment, life: tuple[int, int]) -> None:
        self.segment = segment
        self.life = life
        self.ends: list[bool] = []


class Erasures:
    """The segments that are being erased, oldest number first."""

    def __init__(self, log: Log, table: SegmentTable, random_bits: Callable[[int], int]) -> None:
        self._log = log
        self._table = table
        self._random_bits = random_bits
        self._under_way: deque[_Erasure] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, segment: Segment) -> None:
        """Write the ends of a segment's next life. Nobody reads or writes its old one any more."""
        self._table.move(segment, State.ERASING)
        life = (self._table.next_sequence(), self._random_bits(64))
        erasure = _Erasure(segment, life)
        self._under_way.append(erasure)
        device_uuid, number = self._log.device_uuid, segment.number
        header = encode_segment_header(SegmentHeader(device_uuid, number, *life))
        trailer = aligned_buffer(SECTOR_BYTES)  # an old one would vouch for what is overwritten
        write_trailer(trailer, Trailer(device_uuid, number, *life, 0, 0, 0, 0))
        last = segment.offset + self._table.segment_bytes - SECTOR_BYTES
        for offset, page in ((segment.offset, header), (last, trailer)):
            self._log.request(
                IoRequest(
                    IoKind.WRITE, offset, [page], lambda ok, _error: self._written(erasure, ok)
                )
            )

    def _written(self, erasure: _Erasure, ok: bool) -> None:
        if ok:  # a flush of its own: one that fails between the two writes has lost the first
            self._log.barrier(lambda flushed: self._end_known(erasure, flushed))
        else:
            self._log.counters.write_errors += 1
            self._end_known(erasure, False)

    def _end_known(self, erasure: _Erasure, ok: bool) -> None:
        erasure.ends.append(ok)
        while self._under_way and len(self._under_way[0].ends) == ENDS:
            self._finish(self._under_way.popleft())

    def _finish(self, erasure: _Erasure) -> None:
        segment = erasure.segment
        if not all(erasure.ends):
            # Old or new life, nobody knows: the old identity and its tenants stay on the books.
            self._table.move(segment, State.RETIRED)
            return
        segment.sequence, segment.nonce = erasure.life
        segment.entries = None
        segment.entry_count = 0
        segment.tenants = set()
        segment.is_told = False
        self._table.move(segment, State.FREE)
        self._table.free.append(segment)
