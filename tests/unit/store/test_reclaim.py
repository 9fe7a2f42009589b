"""Reclaim: its share of host writes, damage in DRAM, readers in its way, failures of its writes."""

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv import keys
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.limits import MIB, REAPPEND_FRACTION_MAX, SECTOR_BYTES
from memkv.status import Status
from memkv.store import engine as engine_module
from memkv.store.api import PendingPut, Store, StoreConfig, open_store
from memkv.store.core import EXPIRY_S_MAX
from memkv.store.layout import TRAILER_MAGIC
from memkv.store.segments import State
from memkv.testing.store_bench import Bench


def test_hot_blocks_cost_at_most_their_share_of_host_writes(bench: Bench) -> None:
    randomness = random.Random(5)
    for number in range(150):
        bench.put(f"{number}")
        for _ in range(6):  # most of what is there is used again and again
            bench.get(f"{max(0, number - randomness.randrange(60))}")
        counters = bench.counters
        limit = REAPPEND_FRACTION_MAX * counters["put_bytes"]
        assert counters["reappended_bytes"] <= limit
    assert bench.counters["reappended_blocks"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3], ids=["pins together", "pins spread"])
@pytest.mark.parametrize("others_are_hot", [True, False])
def test_pins_at_their_limit_cost_at_most_the_same_share(
    bench: Bench, every: int, others_are_hot: bool
) -> None:
    """Bytes are counted after each put, over 40 turns of a log."""
    bench.fill(60)
    pinned: list[str] = []
    is_full = False
    for number in range(600):
        bench.put(f"{number}")
        if not is_full and number % every == 0:
            status = bench.store.pin(bench.tenant, keys.block_id(f"{number}"), 1000)
            is_full = status != bytes(4)
            pinned += [] if is_full else [f"{number}"]
        for near in range(8 if others_are_hot else 0):
            bench.get(f"{max(0, number - near * 5)}", verify=False)
        counters = bench.counters
        assert counters["reappended_bytes"] <= REAPPEND_FRACTION_MAX * counters["put_bytes"]
    assert is_full
    assert bench.hits(pinned) == len(pinned) > 10
    assert counters["reappended_blocks"] > 8 * len(pinned)  # they were carried again and again


def test_a_copy_damaged_in_dram_is_taken_from_flash(bench: Bench) -> None:
    bench.put("a")
    extent = bench.store._core.arena.get(
        bench.store._core.index.buffer(bench.store._core.index.find(0, keys.block_id("a")))
    )
    bench.store._core.arena.hold(extent)  # somebody sends it, so it stays in DRAM
    extent.payload(100)[7] ^= 1
    bench.store.pin(bench.tenant, keys.block_id("a"), 1000)
    while not bench.counters["reappended_blocks"]:
        bench.put(f"{bench.counters['puts']}")
    assert bench.counters["corrupt"] == 1
    assert bench.get("a", verify=True) is Status.OK
    bench.power_loss()
    assert bench.get("a", verify=True) is Status.OK


def test_a_segment_with_a_read_in_flight_is_not_used_again(bench: Bench) -> None:
    bench.put("a")
    bench.reopen()
    reader = bench.store.new_reader()
    answers = reader.read(bench.tenant, keys.block_id("a"), None, bench.deadline_ns)
    core = bench.store._core
    owner = core.tenants.get(bench.tenant.tag)
    found = core.lookup(owner, keys.block_id("a"))
    assert found is not None
    assert found.segment is not None
    segment, life = found.segment, (found.segment.sequence, found.segment.nonce)
    segment.readers += 1  # a read that takes long
    bench.fill(56)
    assert segment.state is State.RECLAIMING
    assert (segment.sequence, segment.nonce) == life
    put = bench.begin("waits")
    assert put.commit() is Status.OK
    segment.readers -= 1
    bench.fill(10, "later")
    assert (segment.sequence, segment.nonce) != life
    del answers
    reader.close()


def test_two_segments_are_kept_free(bench: Bench) -> None:
    for number in range(200):
        bench.put(f"{number}")
        bench.store.pump()
        assert len(bench.store._core.table.free) >= 2


@pytest.mark.parametrize("ttl_s", [EXPIRY_S_MAX, EXPIRY_S_MAX - 1_700_000_000])
def test_a_time_to_live_beyond_the_format_ends_with_it(bench: Bench, ttl_s: int) -> None:
    assert bench.put("a", ttl_s=ttl_s) is Status.OK
    bench.power_loss()
    assert bench.get("a") is Status.OK
    index = bench.store._core.index
    assert index.expiry_s(index.find(0, keys.block_id("a"))) == EXPIRY_S_MAX


def test_a_wall_clock_that_jumps_shows_nothing_deleted_and_nothing_wrong(bench: Bench) -> None:
    bench.put("a", ttl_s=100)
    bench.put("b")
    bench.put("gone")
    bench.delete("gone")
    bench.clock.jump_wall(1000)
    assert bench.get("a") is Status.MISS
    bench.clock.jump_wall(-5000)
    for _ in range(2):
        assert bench.get("gone") is Status.MISS
        assert bench.get("b") is Status.OK
        bench.power_loss()
    assert bench.get("a") is Status.OK  # set right, it lives again
    bench.clock.jump_wall(4000 + 100)
    bench.power_loss()
    assert bench.get("a") is Status.MISS


def test_an_erase_that_fails_retires_the_segment_and_nothing_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one end of the new life gets to flash."""
    bench.fill(20)
    bench.delete("fill-0", "fill-1")
    write = bench.device.write
    failed: list[int] = []

    def fail_the_first_trailer(offset: int, data: bytes) -> int:
        if data[:8] == TRAILER_MAGIC and len(data) == SECTOR_BYTES and bench.evicted and not failed:
            failed.append(offset)
            return -errno.EIO
        return write(offset, data)

    monkeypatch.setattr(bench.device, "write", fail_the_first_trailer)
    bench.fill(60, "after")
    assert failed
    assert bench.store.statistics().segments["retired"] == 1
    for _ in range(2):
        bench.power_loss()
        assert bench.hits(["fill-0", "fill-1"]) == 0
        assert bench.get("after-59") is Status.OK


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[Store]:
    device = FileDevice.create(str(tmp_path / "flash"), 96 * MIB, direct=False)
    config = StoreConfig(memory_bytes=24 * MIB, block_bytes_max=1 * MIB, segment_bytes=4 * MIB)
    store = open_store(device, config, SystemClock(), random.SystemRandom())
    yield store
    store.close()
    device.close()


def test_a_notice_between_two_looks_of_the_writer_is_not_lost(
    on_file: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put comes when the writer has found nothing to do and is not yet asleep."""
    engine, bench = on_file._engine, Bench()
    monkeypatch.setattr(engine_module, "IDLE_WAIT_S", 600)
    monkeypatch.setattr(engine_module, "REST_S", 600)
    looked, go_on = threading.Event(), threading.Event()
    start_requests = engine._start_requests

    def look_then_pause() -> int:
        started = start_requests()
        if not started and not engine._flying and not looked.is_set():
            looked.set()
            go_on.wait(60)
        return started

    monkeypatch.setattr(engine, "_start_requests", look_then_pause)
    with engine.lock:
        engine.wake()
    assert looked.wait(60)
    put = on_file.begin_put(bench.tenant, bench.request("a", durable=True), bench.deadline_ns)
    assert isinstance(put, PendingPut)
    put.payload[:] = bench.data("a")
    assert put.commit() is Status.OK
    go_on.set()
    waited = on_file.wait_durable([put], deadline_after_ms(SystemClock(), 60_000))
    assert waited == [Status.OK]
