"""Prefetch: what is asked for comes into DRAM, bounded, and never in the way of gets."""

import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from memkv import keys
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.limits import KIB, MIB, PREFETCH_AGE_MS
from memkv.status import Status
from memkv.store import prefetch
from memkv.store.api import PendingPut, open_store
from memkv.store.config import StoreConfig
from memkv.store.prefetch import Prefetched
from memkv.tenant import Tenant
from memkv.testing.store_bench import Bench


def ask(bench: Bench, *names: str, tenant: Tenant | None = None) -> list[int]:
    packed = bench.store.prefetch(tenant or bench.tenant, keys.block_ids(names))
    return list(struct.unpack(f"<{len(names)}i", packed))


def sources(bench: Bench, *names: str) -> list[str]:
    reader = bench.store.new_reader()
    found = {}
    for position, result in reader.read(
        bench.tenant, keys.block_ids(names), None, bench.deadline_ns
    ):
        found[position] = result.source
        result.release()
    reader.close()
    return [found[position] for position in range(len(names))]


def on_flash(bench: Bench, count: int) -> list[str]:
    bench.fill(count)
    bench.power_loss()
    return [f"fill-{number}" for number in range(count)]


def test_a_get_after_a_prefetch_is_served_from_dram(bench: Bench) -> None:
    names = on_flash(bench, 3)
    assert ask(bench, *names[:2], "absent") == [
        Prefetched.QUEUED, Prefetched.QUEUED, Prefetched.ABSENT
    ]
    bench.store.pump()
    assert ask(bench, names[0]) == [Prefetched.IN_DRAM]
    assert sources(bench, *names) == ["dram", "dram", "flash"]
    assert bench.counters["prefetched_blocks"] == 2
    assert bench.counters["hits_flash"] == 1


def test_asking_twice_reads_once(bench: Bench) -> None:
    names = on_flash(bench, 1)
    assert ask(bench, *names, *names) == [Prefetched.QUEUED] * 2
    bench.store.pump()
    assert bench.counters["prefetched_blocks"] == 1


def test_strangers_find_nothing(bench: Bench) -> None:
    names = on_flash(bench, 1)
    assert ask(bench, *names, tenant=Tenant.named("stranger")) == [Prefetched.ABSENT]


def test_what_waits_takes_at_most_a_quarter_of_memory(bench: Bench) -> None:
    names = on_flash(bench, 30)
    answers = ask(bench, *names)
    taken = answers.count(Prefetched.QUEUED)
    arena = bench.store._core.arena.sectors
    assert taken == arena // 4 // 3  # three sectors a block
    assert answers == [Prefetched.QUEUED] * taken + [Status.BUSY] * (30 - taken)
    assert bench.counters["prefetches_refused"] == 30 - taken
    bench.store.pump()
    assert bench.counters["prefetched_blocks"] == taken


def test_one_tenant_gets_half_of_the_queue(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Tenant.named("other")
    bench.fill(3)
    bench.fill(3, tenant=other)
    bench.power_loss()
    monkeypatch.setattr(prefetch, "PREFETCH_QUEUE_MAX", 4)
    names = [f"fill-{number}" for number in range(3)]
    assert ask(bench, *names) == [Prefetched.QUEUED] * 2 + [Status.BUSY]
    assert ask(bench, *names, tenant=other) == [Prefetched.QUEUED] * 2 + [Status.BUSY]
    bench.store.pump()
    assert bench.counters["prefetched_blocks"] == 4


def test_it_reads_alone_while_a_get_reads(bench: Bench) -> None:
    names = on_flash(bench, 4)
    reader = bench.store.new_reader()
    get = reader.read(bench.tenant, keys.block_ids(names[:2]), None, bench.deadline_ns)
    next(get)[1].release()
    assert reader.is_reading
    ask(bench, names[2], names[3])
    assert bench.store._prefetcher.step()
    assert bench.counters["prefetched_blocks"] == 1
    for _, result in get:
        result.release()
    assert not reader.is_reading
    reader.close()
    assert bench.store._prefetcher.step()
    assert not bench.store._prefetcher.step()
    assert bench.counters["prefetched_blocks"] == 2


def test_it_leaves_memory_to_gets(bench: Bench) -> None:
    names = on_flash(bench, 1)
    ask(bench, *names)
    puts: list[PendingPut] = []
    while bench.store._core.arena.room_sectors(0) > bench.store._core.arena.sectors * 0.5:
        puts.append(bench.begin(f"put-{len(puts)}"))
    bench.store.pump()
    assert (bench.counters["prefetched_blocks"], bench.counters["prefetches_refused"]) == (0, 1)
    for put in puts:
        put.abort()
    ask(bench, *names)
    bench.store.pump()
    assert bench.counters["prefetched_blocks"] == 1


def test_what_comes_too_late_is_left(bench: Bench) -> None:
    names = on_flash(bench, 1)
    ask(bench, *names)
    bench.clock.advance_ms(PREFETCH_AGE_MS + 1)
    bench.store.pump()
    assert bench.counters["prefetches_refused"] == 1
    assert sources(bench, *names) == ["flash"]


def test_a_block_that_went_meanwhile_does_no_harm(bench: Bench) -> None:
    names = on_flash(bench, 2)
    ask(bench, *names)
    bench.delete(names[0])
    bench.store.pump()
    assert bench.get(names[0]) is Status.MISS
    assert bench.counters["prefetched_blocks"] == 1


def test_closing_forgets_what_waits(bench: Bench) -> None:
    ask(bench, *on_flash(bench, 2))
    bench.reopen()
    assert bench.hits(["fill-0", "fill-1"]) == 2


def test_its_own_thread_reads(tmp_path: Path) -> None:
    device = FileDevice.create(str(tmp_path / "drive"), 9 * MIB, direct=False)
    clock = SystemClock()
    config = StoreConfig(memory_bytes=4 * MIB, block_bytes_max=64 * KIB, segment_bytes=512 * KIB)
    bench = Bench()
    store = open_store(device, config, clock, random.Random(1))
    for number in range(8):
        request = bench.request(f"{number}", durable=True)
        put = store.begin_put(bench.tenant, request, deadline_after_ms(clock, 20_000))
        assert isinstance(put, PendingPut)
        put.payload[:] = bench.data(f"{number}")
        assert put.commit() is Status.OK
    store.close()
    store = open_store(device, replace(config), clock, random.Random(1))
    ids = keys.block_ids([f"{number}" for number in range(8)])
    assert set(struct.unpack("<8i", store.prefetch(bench.tenant, ids))) == {Prefetched.QUEUED}
    deadline_ns = deadline_after_ms(clock, 20_000)
    with store._engine.lock:
        assert store._engine.wait(
            lambda: store._core.counters.prefetched_blocks == 8, deadline_ns
        )
    store.close()
    device.close()
