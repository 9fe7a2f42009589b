"""Pools that stop, die, lose and rot: requests go on, nobody waits, nobody reads nonsense."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path

from vllm.v1.kv_offload.base import OffloadKey
from vllm.v1.kv_offload.tiering.backpressure import EMABackpressureDetector
from vllm.v1.kv_offload.tiering.base import TieringOffloadingMetrics

import memkv
from memkv.integrations.vllm_tier.metrics import WRITES
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.vllm_tiering import EngineShape, TieredCache
from memkv.testing.waiting import eventually

DEADLINE_MS = 300
CALL_S_MAX = 2.0
"""Of the scheduler's thread, on a machine where others compute; calls take microseconds."""
REQUEST_S_MAX = 30.0
"""Generous: some deadlines and their fences, on a machine where others compute."""
CHUNKS = 8


def options(pool: LocalPool, **more: object) -> dict[str, object]:
    return {"endpoint": pool.endpoint, "deadline_ms": DEADLINE_MS, **more}


def stored(pool: LocalPool, name: str) -> list[tuple[OffloadKey, bytes]]:
    """Have an engine with time store a prompt; return its chunks and what is in them."""
    with TieredCache(options(pool, deadline_ms=60_000)) as cache:
        keys = cache.chunks(name, CHUNKS)
        cache.store(name, keys)
        assert cache.count(WRITES, "present") == CHUNKS
        return [(key, cache.content(key)) for key in keys]


def small_plan(directory: Path) -> PoolPlan:
    """Return what to run of a pool that the test breaks."""
    return PoolPlan(directory / "pool", 1, 384 * MIB, 96 * MIB)


@contextmanager
def stopped(pool: LocalPool) -> Iterator[None]:
    """Nodes that neither answer nor close anything."""
    workers = [node.child.processes()[1] for node in pool.nodes]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


def test_a_load_that_fails_is_a_miss_and_is_not_ordered_again(pool: LocalPool) -> None:
    keys, contents = zip(*stored(pool, "vanishes"), strict=True)
    with TieredCache(options(pool, deadline_ms=60_000)) as other:
        client = memkv.connect(pool.endpoint)
        assert client.wait_ready(20_000)

        def vanish() -> None:
            """The pool says that all are there, and then half of them are not."""
            eventually(lambda: bool(other.tier._answers), "the answer")
            lost = [key for chunk in keys[4:] for key in other.tier._names.keys(chunk)]
            assert client.batch_remove(lost) == [0] * len(lost)

        looked = other.look("vanishes", keys, between=vanish)
        client.close()
        assert looked.found == [*contents[:4], *[None] * 4]
        reads = other.reads(CHUNKS)
        assert (reads.pop("present"), sum(reads.values())) == (4, 4)
        assert reads["deleted"] >= 1, reads
        failures = TieringOffloadingMetrics.PROMOTION_JOB_FAILURES
        assert other.count(failures, "1:MemKVSecondaryTier") == 1, "one load, ordered once"


def test_a_stopped_pool_is_a_miss_and_holds_up_nobody(pool: LocalPool) -> None:
    keys, contents = zip(*stored(pool, "stopped"), strict=True)
    with TieredCache(options(pool)) as cache:
        with stopped(pool):
            looked = cache.look("stopped", keys, timeout_s=REQUEST_S_MAX)
            assert looked.found == [None] * CHUNKS
            cache.store("more", cache.chunks("more", CHUNKS), settle=False)
            cache.settle(REQUEST_S_MAX)
            assert cache.count(WRITES, "present") == 0
            cache.forget()
        assert set(cache.reads(CHUNKS)) <= {"timeout", "unavailable"}
        assert cache.slowest.seconds < CALL_S_MAX, cache.slowest
        eventually(
            lambda: tuple(cache.look("again", keys).found) == contents,
            "the pool's return", REQUEST_S_MAX,
        )


def test_a_load_from_a_pool_that_stops_in_its_middle_ends(pool: LocalPool) -> None:
    keys, _ = zip(*stored(pool, "middle"), strict=True)
    with TieredCache(options(pool)) as other:
        stopping = stopped(pool)

        def stop() -> None:
            eventually(lambda: bool(other.tier._answers), "the answer")
            stopping.__enter__()

        try:
            looked = other.look("middle", keys, between=stop, timeout_s=REQUEST_S_MAX)
        finally:
            stopping.__exit__(None, None, None)
        assert looked.found == [None] * CHUNKS
        assert set(other.reads(CHUNKS)) <= {"timeout", "unavailable"}
        assert other.slowest.seconds < CALL_S_MAX, other.slowest


def test_a_killed_pool_is_a_miss_and_the_engine_starts_without_it(tmp_path: Path) -> None:
    with LocalPool(small_plan(tmp_path)) as pool, TieredCache(options(pool)) as cache:
        keys = [key for key, _ in stored(pool, "killed")]
        os.kill(pool.nodes[0].child.processes()[1], signal.SIGKILL)
        pool.stop()
        cache.store("after", cache.chunks("after", CHUNKS))
        cache.forget()
        looked = cache.look("killed", keys, timeout_s=REQUEST_S_MAX)
        assert looked.found == [None] * CHUNKS
        assert cache.slowest.seconds < CALL_S_MAX, cache.slowest
    with TieredCache(options(pool)) as late:
        looked = late.look("killed", keys, timeout_s=REQUEST_S_MAX)
        assert looked.found == [None] * CHUNKS
        late.store("late", late.chunks("late", 2))
        assert late.count(WRITES, "unavailable") == 2


def test_flipped_bits_are_a_miss(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    with LocalPool(plan) as pool, TieredCache(
        options(pool, durability="durable", deadline_ms=60_000)
    ) as cache:
        keys = cache.chunks("rot", 4)
        cache.store("rot", keys)
        assert cache.count(WRITES, "present") == 4
    flip(tmp_path / "pool", cache.content(keys[1]))
    with LocalPool(plan) as pool, TieredCache(options(pool, deadline_ms=60_000)) as cache:
        looked = cache.look("rot", keys)
        wanted = [cache.content(key) for key in keys]
        assert looked.found == [wanted[0], None, *wanted[2:]]
        assert cache.reads(4)["present"] == 3


def flip(directory: Path, content: bytes) -> None:
    """Change one bit in the middle of a chunk, wherever on flash it lies."""
    flipped = 0
    for path in directory.rglob("*"):
        if not path.is_file() or path.stat().st_size < len(content):
            continue
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as flash:
            place = flash.find(content[:256])
            if place >= 0:
                flash[place + 70_000] ^= 1
                flipped += 1
    assert flipped == 1, f"{flipped} copies of the chunk were found"


def test_a_slow_pool_is_spared_by_the_back_pressure(pool: LocalPool) -> None:
    pressure: dict[str, object] = {
        "backpressure_cls": "EMABackpressureDetector", "policy_cls": "DropStorePolicy",
        "high_water_s": 0.2, "low_water_s": 0.1, "warmup_completions": 2, "decay_half_life_s": 0.5,
    }
    if "failure_threshold" in signature(EMABackpressureDetector).parameters:  # from vLLM 0.33 on
        pressure["failure_threshold"] = 2
    dropped = TieringOffloadingMetrics.BACKPRESSURE_BLOCKS_DROPPED
    with TieredCache(
        options(pool, backpressure=pressure), replace(EngineShape(), chunks=256)
    ) as cache:
        with stopped(pool):
            for number in range(6):
                cache.store(f"slow-{number}", cache.chunks(f"slow-{number}", 2))
            assert cache.tier.bp_detector.is_under_pressure()
            assert cache.count(dropped, "1:MemKVSecondaryTier") > 0
            assert cache.slowest.seconds < CALL_S_MAX, cache.slowest
        numbers = iter(range(10_000))

        def takes_stores_again() -> bool:
            name = f"again-{next(numbers)}"
            cache.store(name, cache.chunks(name, 2))
            return cache.count(WRITES, "present") >= 4

        eventually(takes_stores_again, "the end of the pressure", REQUEST_S_MAX)


def test_stores_never_take_the_host_cache_away(pool: LocalPool) -> None:
    with TieredCache(
        options(pool, store_share=0.25, deadline_ms=1_000), replace(EngineShape(), chunks=64)
    ) as cache, stopped(pool):
        for number in range(6):
            name = f"many-{number}"
            cache.store(name, cache.chunks(name, 8), settle=False)
        cache.step()
        assert cache.count(WRITES, "busy") == 4 * 8, "a quarter of 64 chunks may wait"
        cache.settle(REQUEST_S_MAX)
