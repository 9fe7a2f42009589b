"""Power losses around discards: what a drive forgot reads as zeros, as ones or as it was, and no
durable block is lost and no deleted one comes back by it. The negative controls break one rule of
`store/discards.py` each, and are found out.

All other crash tests discard too: the simulated drive takes discards unless a test says otherwise.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from memkv.limits import SECTOR_BYTES
from memkv.store.discards import Discards
from memkv.store.erasure import Erasures
from memkv.store.layout import decode_segment_header, decode_trailer
from memkv.store.log import Log
from memkv.store.segments import Segment, State
from memkv.testing.device import WriteListDevice
from memkv.testing.faults import HONEST, Faults
from memkv.testing.store_simulation import FLUSH_PROFILE, Profile, Simulation, run_seeds

# Few segments, so that they are used again and again, and many deletes whose blocks must stay away.
PROFILE = Profile("discards", segments=9, keys=6, ttl_chance=0.0)
REFUSING = Profile("refused discards", segments=9, keys=6, serving=Faults(discard_refused=0.5))
SEEDS = 60
SEEDS_OF_CONTROLS = 40


@pytest.mark.slow
def test_discards_cost_nothing_durable_and_bring_nothing_back() -> None:
    crash_points = run_seeds(PROFILE, 0, SEEDS)
    assert crash_points >= SEEDS * PROFILE.lives * 9 // 10


def test_every_outcome_is_tried() -> None:
    seen: Counter[str] = Counter()
    for seed in range(4):
        simulation = Simulation(seed, PROFILE)
        simulation.run()
        seen += simulation.device.discarded
    assert set(seen) == {"zeros", "kept", "mixed"}
    assert min(seen.values()) >= 5


@pytest.mark.slow
def test_a_drive_that_refuses_discards_is_as_good() -> None:
    run_seeds(REFUSING, 0, SEEDS // 2)


def broken_seeds(profile: Profile) -> int:
    """Return in how many seeds a promise is broken."""
    broken = 0
    for seed in range(SEEDS_OF_CONTROLS):
        try:
            Simulation(seed, profile).run()
        except AssertionError:
            broken += 1
    return broken


@pytest.mark.slow
def test_without_waiting_for_a_discard_durable_blocks_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def any_free(self: Discards) -> Segment | None:
        free = self._table.free
        return next((one for one in free if not one.is_told), None) if self._wanted else None

    monkeypatch.setattr(Discards, "_next", any_free)
    assert broken_seeds(PROFILE) == 0, "also the next segment, if its discard is waited for"
    monkeypatch.setattr(Log, "_awaits_discard", lambda self: False)
    assert broken_seeds(PROFILE) > 0


class DiscardedTooEarly(AssertionError):
    """Recovery would still need what the drive was told to forget."""


def check(device: WriteListDevice, offset: int, length: int) -> None:
    """Raise DiscardedTooEarly unless the range lies between the ends of a segment of which both,
    durable, say that nothing was written in its life."""
    start, end = offset - SECTOR_BYTES, offset + length
    page = memoryview(device.image)
    if not any(page[:SECTOR_BYTES]):
        return  # of a drive that is being formatted
    header = decode_segment_header(page[start:offset])
    trailer = decode_trailer(page[end : end + SECTOR_BYTES])
    if header is None or trailer is None or trailer.footer_sector:
        raise DiscardedTooEarly("not between the ends of an empty segment")
    if (header.sequence, header.nonce) != (trailer.sequence, trailer.nonce):
        raise DiscardedTooEarly("between ends of two lives")
    for write in device.pending:
        if write.offset < end + SECTOR_BYTES and start < write.offset + len(write.data):
            raise DiscardedTooEarly("an end is not durable, or something is being written")


def run_some() -> None:
    """Run seeds with their errors as they are."""
    for seed in range(SEEDS):
        Simulation(seed, PROFILE).run()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every discard of the test."""
    discard: Callable[[WriteListDevice, int, int], int] = WriteListDevice.discard

    def checked_discard(self: WriteListDevice, offset: int, length: int) -> int:
        check(self, offset, length)
        return discard(self, offset, length)

    monkeypatch.setattr(WriteListDevice, "discard", checked_discard)


@pytest.mark.slow
def test_only_what_no_recovery_needs_is_discarded(checked: None) -> None:
    run_seeds(PROFILE, 1000, SEEDS // 2)
    run_seeds(FLUSH_PROFILE, 1000, SEEDS // 2)


def test_discarding_before_the_erase_is_durable_is_found_out(
    checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin: Callable[[Erasures, Segment], None] = Erasures.begin

    def begin_and_offer(self: Erasures, segment: Segment) -> None:
        begin(self, segment)
        segment.is_told = False

    def being_erased(self: Discards) -> Segment | None:
        waiting = (one for one in self._table.all if one.state is State.ERASING)
        return next((one for one in waiting if not one.is_told), None)

    monkeypatch.setattr(Erasures, "begin", begin_and_offer)
    monkeypatch.setattr(Discards, "_next", being_erased)
    with pytest.raises(DiscardedTooEarly):
        run_some()


def test_the_default_drive_takes_discards() -> None:
    assert Simulation(0, PROFILE).device.discard_bytes_max > 0
    assert HONEST.discard_refused == 0
