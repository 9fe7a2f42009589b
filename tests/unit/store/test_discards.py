"""What is told to a drive, when, and how seldom; and a real block device that is told."""

import errno
import random
import struct
import threading
from collections import Counter as Tally
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from memkv import checksum, keys, pattern
from memkv.clock import SystemClock
from memkv.io.device import DeviceQueue
from memkv.io.file_device import FileDevice
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, StoreConfig, open_store
from memkv.store.discards import REFUSALS, REST_PER_DISCARD, Discards
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import SegmentTable, State
from memkv.store.statistics import Counters
from memkv.tenant import Tenant
from memkv.testing.loop_device import NoLoopDevices, loop_device
from memkv.testing.store_bench import SEGMENT_BYTES, Bench
from memkv.testing.waiting import eventually

MS = 1_000_000
INTERIOR = SEGMENT_BYTES - 2 * SECTOR_BYTES


class Told:
    """A table with free segments, a clock, and what is told of them."""

    def __init__(self, free: int = 3, wanted: bool = True) -> None:
        self.now_ns = 0
        self.table = SegmentTable(8, SEGMENT_BYTES, 0)
        self.counters = Counters()
        self.discards = Discards(self.table, self.counters, lambda: self.now_ns, wanted)
        for _ in range(free):
            self.free_one()

    def free_one(self) -> None:
        segment = self.table.blank.popleft()
        self.table.move(segment, State.ERASING)
        self.table.move(segment, State.FREE)
        self.table.free.append(segment)

    def begin(self) -> IoRequest:
        request = self.discards.begin()
        assert request is not None
        assert request.kind is IoKind.DISCARD
        return request


def test_the_youngest_free_segment_is_told_first_and_the_next_to_be_opened_never() -> None:
    told = Told()
    numbers = []
    for _ in range(2):
        request = told.begin()
        assert request.size_bytes == INTERIOR
        numbers.append((request.offset - MIB) // SEGMENT_BYTES)
        assert request.offset == told.table.all[numbers[-1]].offset + SECTOR_BYTES
        request.complete(0)
    assert numbers == [2, 1]
    assert told.discards.begin() is None
    assert told.discards.rest_ns() is None
    assert told.counters.discarded_bytes == 2 * INTERIOR


def test_one_at_a_time_and_a_tenth_of_the_time() -> None:
    told = Told()
    request = told.begin()
    assert told.table.all[2].is_discarding
    assert told.discards.begin() is None
    told.now_ns += 20 * MS
    request.complete(0)
    assert not told.table.all[2].is_discarding
    assert told.discards.rest_ns() == REST_PER_DISCARD * 20 * MS
    assert told.discards.begin() is None
    told.now_ns += REST_PER_DISCARD * 20 * MS
    told.begin()


@pytest.mark.parametrize("error", [*sorted(REFUSALS), errno.EIO])
def test_a_drive_that_refuses_for_good_is_told_no_more(error: int) -> None:
    told = Told()
    told.begin().complete(-error)
    assert told.counters.discards_refused == 1
    assert told.counters.discarded_bytes == 0
    assert (told.discards.begin() is None) == (error in REFUSALS)


def test_a_drive_that_takes_no_discards_is_told_nothing() -> None:
    assert Told(wanted=False).discards.begin() is None
    assert Told(free=1).discards.begin() is None


def test_a_store_tells_its_drive_when_it_formats_and_when_it_frees() -> None:
    bench = Bench()
    bench.open()
    whole = bench.device.size_bytes - MIB
    assert bench.counters["discarded_bytes"] == whole
    for number in range(120):
        assert bench.put(f"turn-{number}") is Status.OK
    assert bench.counters["segments_reclaimed"] > 3
    again = bench.counters["discarded_bytes"] - whole
    assert again >= 3 * INTERIOR
    assert again % INTERIOR == 0
    bench.reopen()
    assert bench.counters["discarded_bytes"] == 0, "a drive that has blocks is not told at an open"


def test_without_leave_or_without_support_nothing_is_told() -> None:
    for supported, wanted in ((False, True), (True, False)):
        bench = Bench()
        bench.device.discard_bytes_max *= supported
        bench.config = StoreConfig(
            memory_bytes=256 * KIB, block_bytes_max=12 * KIB, index_blocks_max=400,
            segment_bytes=SEGMENT_BYTES, threads=False, discard=wanted,
        )  # fmt: skip
        bench.open()
        bench.fill(60)
        assert bench.device.discarded == Tally()


def put(store_put: PendingPut | Status, data: bytes) -> PendingPut:
    assert isinstance(store_put, PendingPut), store_put
    store_put.payload[:] = data
    assert store_put.commit() is Status.OK
    return store_put


@pytest.mark.parametrize("kind", ["block device", "file"])
def test_blocks_survive_beside_real_discards(tmp_path: Path, kind: str) -> None:
    """With threads, on a real block device; a file is told nothing and keeps its space."""
    size = 16 * MIB
    if kind == "file":
        FileDevice.create(str(tmp_path / "flash"), size).close()
        assert run_turns(str(tmp_path / "flash")) == 0
        assert (tmp_path / "flash").stat().st_blocks * 512 >= size
        return
    try:
        with loop_device(tmp_path / "disk", size) as path:
            assert run_turns(path) > size - MIB
    except NoLoopDevices as error:
        pytest.skip(f"no block device to try: {error}")


def run_turns(path: str) -> int:
    """Put three times what the drive holds, read all that is left, also after a restart; return
    the bytes that were discarded."""
    device = FileDevice.open(path)
    config = StoreConfig(memory_bytes=4 * MIB, block_bytes_max=MIB)
    tenant, names = Tenant.named("default"), [f"key-{number}" for number in range(400)]
    length = 120 * KIB
    store = open_store(device, config, SystemClock(), random.SystemRandom())
    deadline_ns = SystemClock().monotonic_ns() + 60_000_000_000
    for name in names:
        data, block_id = pattern.block(pattern.seed_of(name), length), keys.block_id(name)
        seal = checksum.seal(data, block_id, tenant.tag)
        request = PutRequest(block_id, length, seal.root, seal.sums)
        pending = put(store.begin_put(tenant, request, deadline_ns), data)
        assert store.wait_durable([pending], deadline_ns) == [Status.OK]
    discarded = store.statistics().counters["discarded_bytes"]
    assert store.statistics().counters["discards_refused"] == 0
    store.close()
    store = open_store(device, config, SystemClock(), random.SystemRandom())
    there = struct.unpack(f"<{len(names)}i", store.exists(tenant, keys.block_ids(names)))
    kept = [name for name, found in zip(names, there, strict=True) if found == 1]
    assert len(kept) > 40
    reader = store.new_reader()
    for position, result in reader.read(
        tenant, keys.block_ids(kept), None, deadline_ns, verify=True
    ):
        assert result.status is Status.OK
        assert result.payload == pattern.block(pattern.seed_of(kept[position]), length)
        result.release()
    reader.close()
    store.close()
    device.close()
    return discarded


class SlowQueue:
    """Stands for the queue of a drive whose discards take as long as the test likes."""

    def __init__(self, slow: "SlowDrive") -> None:
        self._slow = slow
        self._tokens: list[int] = []

    @property
    def in_flight(self) -> int:
        return len(self._tokens)

    def discard(self, token: int, offset: int, length: int) -> None:
        self._tokens.append(token)

    def wait(self, min_complete: int, timeout_ms: int) -> list[tuple[int, int]]:
        self._slow.begun.set()
        assert self._slow.ends.wait(120)
        tokens, self._tokens = self._tokens, []
        return [(token, 0) for token in tokens]

    def close(self) -> None:
        assert not self._tokens


class SlowDrive:
    """A file that says it takes discards, in queues of depth 1."""

    can_fill = False
    discard_bytes_max = 1 << 30

    def __init__(self, device: FileDevice) -> None:
        self._device = device
        self.size_bytes = device.size_bytes
        self.begun, self.ends = threading.Event(), threading.Event()

    def open_queue(self, depth: int) -> DeviceQueue:
        if depth == 1:
            return cast("DeviceQueue", SlowQueue(self))
        return self._device.open_queue(depth)

    def close(self) -> None:
        self._device.close()


def test_puts_and_gets_go_on_while_a_drive_takes_long_over_a_discard(tmp_path: Path) -> None:
    clock, bench = SystemClock(), Bench()
    drive = SlowDrive(FileDevice.create(str(tmp_path / "flash"), 4 * MIB))
    config = replace(bench.config, threads=True, discard=True)
    bench.store = open_store(drive, config, clock, random.SystemRandom())
    deadline_ns = clock.monotonic_ns() + 120_000_000_000

    def put_durably(name: str) -> None:
        begun = bench.store.begin_put(bench.tenant, bench.request(name), deadline_ns)
        pending = put(begun, bench.data(name))
        assert bench.store.wait_durable([pending], deadline_ns) == [Status.OK]

    assert drive.begun.wait(120), "no segment was told"
    names = [f"meanwhile-{number}" for number in range(4)]  # they fit the segment that is open
    reader = bench.store.new_reader()
    for name in names:
        put_durably(name)
        found = reader.read(bench.tenant, keys.block_id(name), None, deadline_ns)
        for _, result in found:
            assert result.status is Status.OK
            result.release()
    assert bench.counters["discarded_bytes"] == drive.size_bytes - MIB, "only what formatting told"
    drive.ends.set()
    for number in range(60):
        put_durably(f"later-{number}")
    eventually(lambda: bench.counters["discarded_bytes"] > drive.size_bytes - MIB, "a discard")
    reader.close()
    bench.store.close()
    drive.close()
