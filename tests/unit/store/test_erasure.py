"""Erasing segments side by side: shared flushes, and FREE in the order of sequences."""

import random
from collections.abc import Sequence

from memkv.limits import KIB
from memkv.store.drive import DriveWatch
from memkv.store.erasure import Erasures
from memkv.store.log import Log
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import SegmentTable, State
from memkv.store.statistics import Counters


class Bench:
    """Erasures over a real log and table; a test completes the requests as it likes."""

    def __init__(self, count: int) -> None:
        self.table = SegmentTable(8, 64 * KIB, 0)
        self.log = Log(self.table, bytes(16), Counters(), lambda: 0, DriveWatch(lambda: 0, 8))
        self.erasures = Erasures(self.log, self.table, random.Random(1).getrandbits)
        for _ in range(count):
            self.erasures.begin(self.table.blank.popleft())

    def poll(self) -> list[IoRequest]:
        return self.log.poll(64)

    def flush(self, result: int = 0) -> None:
        (request,) = self.poll()
        assert request.kind is IoKind.FLUSH
        request.complete(result)

    def free(self) -> list[int]:
        return [segment.number for segment in self.table.free]


def write(requests: Sequence[IoRequest]) -> None:
    for request in requests:
        assert request.kind is IoKind.WRITE
        request.complete(request.size_bytes)


def test_segments_are_erased_side_by_side_and_share_a_flush() -> None:
    bench = Bench(3)
    write(bench.poll())
    assert (len(bench.erasures), bench.free()) == (3, [])
    bench.flush()
    assert (len(bench.erasures), bench.free()) == (0, [0, 1, 2])
    assert [segment.sequence for segment in bench.table.free] == [1, 2, 3]


def test_a_faster_write_does_not_overtake_an_older_number() -> None:
    bench = Bench(2)
    requests = bench.poll()
    write(requests[2:])  # both ends of the second segment
    bench.flush()
    assert bench.free() == []
    write(requests[:2])
    bench.flush()
    assert bench.free() == [0, 1]


def test_a_failed_end_retires_its_segment_alone() -> None:
    bench = Bench(3)
    requests = bench.poll()
    requests[1].complete(-5)
    write([requests[0], *requests[2:]])
    bench.flush()
    assert bench.table.all[0].state is State.RETIRED
    assert bench.free() == [1, 2]


def test_a_failed_flush_retires_all_that_it_should_have_covered() -> None:
    bench = Bench(2)
    write(bench.poll())
    bench.flush(-5)
    assert [segment.state for segment in bench.table.all[:2]] == [State.RETIRED] * 2
    assert bench.free() == []
