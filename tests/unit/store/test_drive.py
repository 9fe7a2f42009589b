"""A drive that fails: HEALTHY, SUSPECT, FAULTED, and what a store on a FAULTED drive still does."""

import errno
import itertools
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from memkv import keys
from memkv.clock import SystemClock
from memkv.errors import InternalBug
from memkv.io.file_device import FileDevice
from memkv.status import Status
from memkv.store.api import PendingPut, open_store
from memkv.store.drive import (
    CALM_NS,
    FULL,
    GONE,
    PAUSE_NS,
    SEGMENTS_UNREAD_MAX,
    TRANSITIONS,
    DriveEvent,
    DriveState,
    DriveTraits,
    DriveWatch,
)
from memkv.store.requests import IoKind
from memkv.testing.faults import HONEST, Faults
from memkv.testing.store_bench import Bench

HEALTHY, SUSPECT, FAULTED = DriveState.HEALTHY, DriveState.SUSPECT, DriveState.FAULTED
WRITING = [IoKind.WRITE, IoKind.FLUSH]
PAUSE_MS = PAUSE_NS // 1_000_000


class Watched:
    """A watch and its clock."""

    def __init__(self, can_fill: bool = True) -> None:
        self.now_ns = 1_000_000_000
        traits = DriveTraits(can_fill=can_fill)
        self.watch = DriveWatch(lambda: self.now_ns, 64, traits)

    @property
    def state(self) -> DriveState:
        return self.watch.state

    def fail(self, kind: IoKind, times: int, error: int = errno.EIO) -> None:
        for _ in range(times):
            self.watch.failed(kind, error)

    def unread(self, first: int, count: int) -> None:
        for segment in range(first, first + count):
            self.watch.unread(segment, errno.EIO)


def test_every_state_and_event_has_a_row_and_nothing_leads_out_of_faulted() -> None:
    impossible = {(HEALTHY, DriveEvent.PERSISTS)}  # an error comes before it
    assert TRANSITIONS.keys() == set(itertools.product(DriveState, DriveEvent)) - impossible
    assert {TRANSITIONS[FAULTED, event] for event in DriveEvent} == {FAULTED}
    watch = DriveWatch(lambda: 0, 64)
    with pytest.raises(InternalBug):
        watch._take(DriveEvent.PERSISTS)


@pytest.mark.parametrize("kind", WRITING)
def test_a_hiccup_makes_a_drive_suspect_and_calm_makes_it_healthy(kind: IoKind) -> None:
    watched = Watched()
    watched.fail(kind, 2)
    assert watched.state is SUSPECT
    assert not watched.watch.refuses()
    watched.watch.done(kind)
    watched.fail(kind, 2)
    assert not watched.watch.refuses(), "a success in between: not in a row"
    watched.now_ns += CALM_NS - 1
    watched.watch.look()
    assert watched.state is SUSPECT
    watched.now_ns += 1
    watched.watch.look()
    assert watched.state is HEALTHY
    assert watched.watch.cause == ""


@pytest.mark.parametrize("kind", WRITING)
def test_errors_that_come_back_after_a_pause_fault_a_drive(kind: IoKind) -> None:
    watched = Watched()
    watched.fail(kind, 40)  # all that was under way at once
    assert watched.watch.refuses()
    assert watched.state is SUSPECT
    watched.now_ns += PAUSE_NS
    assert not watched.watch.refuses()
    watched.fail(kind, 1)
    assert watched.state is FAULTED
    assert watched.watch.refuses()
    assert "(EIO), also after a pause of 5 s" in watched.watch.cause
    assert watched.watch.is_readable, "a worn-out drive that turned read-only can be read"
    watched.watch.done(kind)
    watched.now_ns += 2 * CALM_NS
    watched.watch.look()
    assert watched.state is FAULTED


@pytest.mark.parametrize("kind", WRITING)
def test_what_succeeds_after_the_pause_ends_it(kind: IoKind) -> None:
    watched = Watched()
    for _ in range(5):
        watched.fail(kind, 3)
        assert watched.watch.refuses()
        watched.now_ns += PAUSE_NS
        watched.watch.done(kind)
        assert watched.state is SUSPECT


def test_writes_that_succeed_do_not_hide_flushes_that_fail() -> None:
    watched = Watched()
    for _ in range(3):
        watched.watch.done(IoKind.WRITE)
        watched.fail(IoKind.FLUSH, 1)
    assert watched.watch.refuses()
    watched.now_ns += PAUSE_NS
    watched.watch.done(IoKind.WRITE)
    watched.fail(IoKind.FLUSH, 1)
    assert watched.state is FAULTED
    assert watched.watch.cause.startswith("flushes fail (EIO)")


@pytest.mark.parametrize("error", sorted(FULL))
def test_a_full_file_system_is_no_fault_and_a_device_without_room_is(error: int) -> None:
    for can_fill in (True, False):
        watched = Watched(can_fill)
        for _ in range(4):
            watched.fail(IoKind.WRITE, 3, error)
            assert watched.watch.refuses()
            watched.now_ns += PAUSE_NS
        assert watched.state is (SUSPECT if can_fill else FAULTED)


@pytest.mark.parametrize("error", sorted(GONE))
def test_a_device_that_is_gone_is_faulted_at_once(error: int) -> None:
    for kind in WRITING:
        watched = Watched()
        watched.fail(kind, 1, error)
        assert watched.state is FAULTED
        assert not watched.watch.is_readable
        assert "gone" in watched.watch.cause
    watched = Watched()
    watched.watch.unread(3, error)
    assert watched.state is FAULTED


def test_one_bad_place_is_no_bad_drive_and_many_twice_are() -> None:
    watched = Watched()
    for _ in range(100):
        watched.unread(7, 1)
    assert watched.state is SUSPECT
    watched.unread(0, SEGMENTS_UNREAD_MAX)
    watched.unread(20, 30)  # of the same moment
    assert watched.state is SUSPECT
    watched.now_ns += PAUSE_NS
    watched.unread(0, SEGMENTS_UNREAD_MAX - 1)
    assert watched.state is SUSPECT
    watched.unread(40, 1)
    assert watched.state is FAULTED
    assert not watched.watch.is_readable
    assert "reads fail in many places" in watched.watch.cause


def test_bad_places_are_forgotten_when_it_was_calm_for_long() -> None:
    watched = Watched()
    for _ in range(4):
        watched.unread(0, SEGMENTS_UNREAD_MAX)
        watched.now_ns += CALM_NS
        watched.watch.look()
        assert watched.state is HEALTHY


def test_a_faulted_drive_whose_reads_fail_as_well_is_read_no_more() -> None:
    watched = Watched()
    watched.fail(IoKind.WRITE, 3)
    watched.now_ns += PAUSE_NS
    watched.fail(IoKind.WRITE, 1)
    cause = watched.watch.cause
    for first in (0, 20):
        watched.unread(first, SEGMENTS_UNREAD_MAX)
        watched.now_ns += PAUSE_NS
    assert not watched.watch.is_readable
    assert watched.watch.cause == cause


# --- a store ------------------------------------------------------------------------------------


def opened() -> Bench:
    bench = Bench()
    bench.open()
    bench.fill(20)
    return bench


def fault(bench: Bench, kind: str, error: int = errno.EIO) -> None:
    """Have all operations of a kind fail from now on, until the drive is FAULTED."""
    bench.device.faults = Faults(fail_errno=error)
    bench.device._broken_kind = kind
    for number in range(20):
        bench.put(f"lost-{number}")
        bench.clock.advance_ms(PAUSE_MS // 2)
    bench.device._broken_kind = ""
    bench.device.faults = HONEST
    bench.store.pump()  # what was under way


def status_of_put(bench: Bench, key: str) -> Status:
    put = bench.store.begin_put(bench.tenant, bench.request(key), bench.deadline_ns)
    assert isinstance(put, Status)
    return put


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_drive_that_cannot_be_written_is_read_and_written_no_more(kind: str) -> None:
    bench = opened()
    fault(bench, kind)
    statistics = bench.store.statistics()
    assert statistics.drive_state == "faulted"
    assert "after a pause" in statistics.drive_problem
    written = bench.device.operations
    assert status_of_put(bench, "new") is Status.UNAVAILABLE
    assert bench.store.exists(bench.tenant, keys.block_id("lost-3")) == bytes(4)
    ids = keys.block_id("fill-3")
    assert bench.store.delete(bench.tenant, ids, bench.deadline_ns) == struct.pack(
        "<i", Status.UNAVAILABLE
    )
    assert bench.get("fill-3") is Status.MISS, "deleted, though not for good"
    assert not bench.store.flush(bench.deadline_ns)
    assert bench.device.operations == written, "nothing was asked of the drive"
    assert bench.hits(f"fill-{number}" for number in range(4, 20)) == 16


def test_a_device_that_is_gone_serves_what_is_in_dram_and_nothing_else() -> None:
    bench = opened()
    names = [f"fill-{number}" for number in range(20)]
    core = bench.store._core
    owner = core.tenants.find(bench.tenant.tag)
    assert owner is not None
    for name in names[:10]:  # of these only flash has a copy
        buffer = core.index.buffer(core.index.find(owner.number, keys.block_id(name)))
        if buffer >= 0:
            core.drop_buffer(core.arena.get(buffer))
    fault(bench, "write", errno.ENODEV)
    operations = bench.device.operations
    there = struct.unpack("<20i", bench.store.exists(bench.tenant, keys.block_ids(names)))
    assert set(there[:10]) == {0}
    hit = [name for name, found in zip(names, there, strict=True) if found == 1]
    assert hit
    for name in names:
        assert bench.get(name) is (Status.OK if name in hit else Status.MISS)
    assert bench.device.operations == operations
    assert bench.store.list_slot(0, 0, 100)[0] == -1


def test_a_faulted_drive_comes_back_with_a_new_open_and_all_that_was_durable() -> None:
    bench = opened()
    fault(bench, "write")
    bench.store.close()
    bench.open()
    assert bench.store.statistics().drive_state == "healthy"
    assert bench.hits(f"fill-{number}" for number in range(20)) == 20
    assert bench.put("new") is Status.OK


def test_reads_that_fail_in_many_places_fault_a_drive() -> None:
    bench = opened()
    bench.reopen()
    core = bench.store._core
    bench.device.unreadable = set(range(core.table.all[0].base_sector, bench.device.size_bytes))
    missed = 0
    for number in range(20):
        missed += bench.get(f"fill-{number}") is not Status.OK
        bench.clock.advance_ms(PAUSE_MS // 2)
    assert missed == 20
    # The blocks lie in five segments of the sixteen: eight cannot fail twice here.
    assert bench.store.statistics().drive_state == "suspect"
    for first in (0, 8):
        for segment in core.table.all[first : first + 8]:
            core.drive.unread(segment.number, errno.EIO)
        bench.clock.advance_ms(PAUSE_MS)
    assert bench.store.statistics().drive_state == "faulted"


@pytest.mark.parametrize("how", ["pause", "fault"])
def test_a_put_that_waits_hears_at_once_that_the_drive_takes_no_more(
    tmp_path: Path, how: str
) -> None:
    """With the store's threads: they must wake it, long before its deadline."""
    clock, bench = SystemClock(), Bench()
    device = FileDevice.create(str(tmp_path / "flash"), 8 << 20)
    config = replace(bench.config, threads=True, segment_bytes=None)
    bench.store = open_store(device, config, clock, random.SystemRandom())
    core, engine = bench.store._core, bench.store._engine
    began_ns = clock.monotonic_ns()
    with engine.lock:  # given up only by waiting, so that it waits before the writer looks
        assert engine.wait(core.idle, began_ns + 60_000_000_000), "nothing else is to wake it"
        put = bench.store.begin_put(bench.tenant, bench.request("key"), began_ns + 1)
        assert isinstance(put, PendingPut)
        put.payload[:] = bench.data("key")
        put.commit()
        for _ in range(3):
            core.drive.failed(IoKind.WRITE, errno.EIO if how == "pause" else errno.ENODEV)
        (status,) = bench.store.wait_durable([put], began_ns + 240_000_000_000)
    assert status is Status.UNAVAILABLE
    assert clock.monotonic_ns() < began_ns + 120_000_000_000
    bench.store.close(clean=False)
    device.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_drive_that_faults_at_any_moment_leaves_nobody_waiting(seed: int) -> None:
    """Also in the middle of reclaim, with puts, copies, tombstones and flushes under way."""
    randomness = random.Random(seed)
    bench = opened()
    for number in range(randomness.randrange(40)):
        bench.put(f"more-{number}")
    pending = [bench.begin(f"late-{number}") for number in range(5)]
    for put in pending:
        put.commit()
    for _ in range(randomness.randrange(6)):
        bench.store._engine.pump_once()
    bench.store._core.drive.failed(IoKind.WRITE, errno.ENODEV)
    statuses = bench.store.wait_durable(pending, bench.deadline_ns)
    assert set(statuses) <= {Status.OK, Status.UNAVAILABLE}
    bench.store.pump()
    assert bench.store._core.idle()
    bench.store.close()
    bench.open()
    for number, status in enumerate(statuses):
        assert status is Status.UNAVAILABLE or bench.get(f"late-{number}") is Status.OK
    assert bench.hits(f"fill-{number}" for number in range(20)) + bench.counters["evicted_blocks"]
