"""A trailer of an earlier life on a segment that has new records and turns FAULTY.

An honest drive cannot show this: a segment is used again only after the trailer of its new life was
flushed. A drive that loses one write and says it did not can. The old trailer lists blocks that
were deleted since, whose tombstones are gone with the segments they lay in. So it must never be the
only end of the segment that can be read, wherever an erase is cut short.
"""

import pytest

from memkv import keys
from memkv.limits import SECTOR_BYTES
from memkv.status import Status
from memkv.store.layout import Trailer, decode_trailer
from memkv.store.segments import Segment, State
from memkv.testing.device import PowerLoss
from memkv.testing.faults import HONEST, Faults
from memkv.testing.store_bench import SEGMENT_BYTES, Bench

OLD = [f"old-{number}" for number in range(4)]  # they fill a segment
SEEDS = 4
CRASH_POINTS = range(1, 40)


def trailer_page(bench: Bench, segment: Segment) -> slice:
    end = segment.offset + SEGMENT_BYTES
    return slice(end - SECTOR_BYTES, end)


def trailer_of(bench: Bench, segment: Segment) -> Trailer:
    page = bytearray(bench.device.image[trailer_page(bench, segment)])
    trailer = decode_trailer(memoryview(page))
    assert trailer is not None
    return trailer


def state_of(segment: Segment) -> State:
    """Return the state now: mypy takes an attribute for what it was last compared with."""
    return segment.state


def with_a_stale_trailer() -> tuple[Bench, Segment]:
    """A segment that listed OLD, deleted since and reclaimed, is open with new records; the trailer
    of its new life was lost, and the one that lists OLD is back. No tombstone of OLD is left."""
    bench = Bench()
    bench.open()
    for key in OLD:
        assert bench.put(key) is Status.OK
    core = bench.store._core
    owner = core.tenants.find(bench.tenant.tag)
    assert owner is not None
    handle = core.index.find(owner.number, keys.block_id(OLD[0]))
    first = core.table.at_sector(core.index.location(handle)[0])
    life = first.sequence
    bench.put("next")  # which the segment has no room for
    bench.store.pump()
    assert state_of(first) is State.SEALED
    stale = bytes(bench.device.image[trailer_page(bench, first)])
    bench.delete(*OLD)
    turn, lives = 0, 0
    while lives < 2 or state_of(first) is not State.OPEN or first.next_sector == 1:
        if first.sequence != life:
            life, lives = first.sequence, lives + 1
        assert bench.put(f"turn-{turn}") is Status.OK
        turn += 1
    bench.device.image[trailer_page(bench, first)] = stale
    assert trailer_of(bench, first).sequence < first.sequence
    assert trailer_of(bench, first).entry_count == len(OLD)
    return bench, first


def check_nothing_old(bench: Bench, point: object = "") -> None:
    assert bench.hits(OLD) == 0, point
    bench.hits(f"turn-{number}" for number in range(400))  # the bytes of each hit are compared


def test_records_of_the_new_life_are_found_and_its_footer_replaces_the_stale_one() -> None:
    bench, first = with_a_stale_trailer()
    bench.power_loss()
    check_nothing_old(bench)
    again = bench.store._core.table.all[first.number]
    assert again.sequence == first.sequence
    bench.store.pump()
    assert again.state is State.SEALED
    assert trailer_of(bench, again).sequence == first.sequence


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_erase_that_is_cut_short_brings_nothing_of_the_old_life_back(seed: int) -> None:
    erased = 0
    for point in CRASH_POINTS:
        bench, first = with_a_stale_trailer()
        bench.device.faults = Faults(fail_flush=1.0)
        bench.put("lost", durable=True)
        assert state_of(first) is State.FAULTY  # it gets no footer: the stale trailer stays
        bench.device.faults = HONEST
        for turn in range(1000):  # until it is being erased
            if state_of(first) in (State.RECLAIMING, State.ERASING):
                break
            bench.put(f"turn-{turn}")
        bench.device.operations = 0
        bench.device.faults = Faults(crash_at=point)
        try:
            for turn in range(40):
                bench.put(f"turn-{2000 + turn}")
        except PowerLoss:
            erased += state_of(first) is State.ERASING
        bench.device.after_crash(HONEST, seed)
        bench.open()
        check_nothing_old(bench, (seed, point))
    assert erased > 0, "no crash fell into an erase"
