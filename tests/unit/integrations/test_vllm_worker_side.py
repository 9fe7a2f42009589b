"""The connector beside a model: what it tells the engine of loads and stores."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from memkv import _hotpath
from memkv.integrations.keys import Namespace
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory
from memkv.integrations.vllm.memory import InPlaceMemory
from memkv.integrations.vllm.messages import FailedLoad, Orders, Transfer
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.integrations.vllm.settings import Settings
from memkv.integrations.vllm.worker_side import Polled, WorkerSide
from memkv.status import Status
from memkv.testing.pool_in_memory import PoolInMemory
from memkv.testing.private_memory import PrivateMemory

BLOCK_BYTES, BLOCKS = 4096, 8
NAME = Namespace("model", "", "uint8", "vllm:test", 16, "vllm/sha256/0")


class Rig:
    def __init__(
        self, groups: int = 1, *, stores: bool = True, settings: Settings | None = None,
        blocks: int = BLOCKS, pool: PoolInMemory | None = None,
        memory: type[InPlaceMemory] = InPlaceMemory,
    ) -> None:
        self.pool = pool or PoolInMemory()
        self.caches = [bytearray(blocks * BLOCK_BYTES) for _ in range(groups)]
        self.side = WorkerSide(self.pool, settings or Settings(), 0, stores=stores)
        self.memory = memory([
            BlockRuns([LayerMemory(_hotpath.address_of(memoryview(cache)), (blocks, BLOCK_BYTES),
                                   (BLOCK_BYTES, 1), 1)], blocks)
            for cache in self.caches
        ])
        self.side.use(self.memory, do_places_tell=groups == 1)

    def step(self, loads: Sequence[Transfer] = (), stores: Sequence[Transfer] = ()) -> Polled:
        orders = Orders(list(loads), list(stores))
        self.side.begin_loads(orders)
        self.side.begin_stores(orders)
        return self.side.poll(orders)

    def until_received(self, load: Transfer) -> Polled:
        polled = self.step(loads=[load])
        while not polled.received:
            polled = self.step()
        return polled


def transfer(job: int, numbers: Sequence[int], groups: int = 1, shift: int = 0) -> Transfer:
    return Transfer(job, f"request-{job}", (NAME,), b"prefix..", [
        PlacedBlock(number, group, number + shift, bytes((number,)) * 32)
        for number in numbers for group in range(groups)
    ])


def stored(rig: Rig, numbers: range, groups: int = 1) -> None:
    rig.step(stores=[transfer(1, numbers, groups)])
    while (results := rig.side.take_results()) is None or 1 not in results.stored:
        rig.step()


def test_a_load_is_received_when_its_bytes_are_there() -> None:
    rig = Rig()
    rig.caches[0][:BLOCK_BYTES] = b"k" * BLOCK_BYTES
    stored(rig, range(1))
    polled = rig.until_received(transfer(2, [0], shift=5))
    assert polled == Polled({"request-2"}, set(), set())
    assert rig.caches[0][5 * BLOCK_BYTES : 6 * BLOCK_BYTES] == b"k" * BLOCK_BYTES


def test_places_that_were_not_filled_are_named_with_the_end_of_the_load() -> None:
    rig = Rig()
    stored(rig, range(1))
    polled = rig.until_received(transfer(2, [0, 1, 2], shift=4))
    assert polled.invalid_places == {5, 6}
    results = rig.side.take_results()
    assert results is not None
    assert results.failed == {"request-2": FailedLoad("request-2", 1, "unexplained")}


def test_with_several_groups_the_request_is_named_instead() -> None:
    rig = Rig(groups=2)
    stored(rig, range(1), groups=2)
    polled = rig.until_received(transfer(2, [0, 1], groups=2))
    assert polled == Polled({"request-2"}, {"request-2"}, set())


def test_a_copy_of_another_ranks_bytes_stores_nothing_and_says_so() -> None:
    rig = Rig(stores=False)
    rig.step(stores=[transfer(1, [0])])
    results = rig.side.take_results()
    assert results is not None
    assert results.stored == {1: 1}
    assert rig.pool.jobs == []


def test_an_end_waits_for_stores_and_closes_the_client() -> None:
    rig = Rig()
    rig.step(stores=[transfer(1, range(4))])
    rig.side.close()
    assert len(rig.pool.blocks) == 4
    assert rig.pool.is_closed


@pytest.mark.parametrize("late", [False, True])
def test_an_end_leaves_memory_mapped_that_a_hung_worker_may_write(late: bool) -> None:
    rig = Rig(memory=PrivateMemory)
    assert isinstance(rig.memory, PrivateMemory)
    rig.pool.spoil = lambda _: Status.QUARANTINED if late else None
    stored(rig, range(1))  # no request waits for it
    rig.side.close()
    assert rig.pool.is_closed
    assert rig.memory.is_closed != late


def test_a_worker_without_a_cache_has_nothing_to_say() -> None:
    side = WorkerSide(PoolInMemory(), Settings(), 0, stores=True)
    assert side.poll(Orders()) == Polled(set(), set(), set())
    assert side.take_results() is None


@pytest.mark.parametrize("idle", [True, False])
def test_waits_for_transfers_only_when_nothing_is_computed(
    idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig()
    rig.pool.is_prompt = False
    waits: list[float] = []
    monkeypatch.setattr(rig.side._moving, "_news", SimpleNamespace(poll=waits.append))
    orders = Orders(stores=[transfer(1, [0])], is_idle=idle)
    rig.side.begin_stores(orders)
    rig.side.poll(orders)
    assert bool(waits) == idle
    rig.pool.end()


def test_a_load_of_more_blocks_than_may_be_in_flight_begins() -> None:
    """Of small blocks a batch holds more than fit what may be in flight: each needs a page."""
    rig = Rig(settings=Settings(in_flight_bytes=64 * 1024), blocks=200)
    stored(rig, range(200))
    assert rig.until_received(transfer(2, range(200))).invalid_places == set()


def test_news_come_by_a_descriptor_of_any_number() -> None:
    rig = Rig()
    high = fcntl.fcntl(rig.pool.event_fd, fcntl.F_DUPFD, 1500)
    os.close(rig.pool.event_fd)
    rig.pool.event_fd = high
    rig = Rig(pool=rig.pool)
    rig.pool.is_prompt = False
    orders = Orders(loads=[transfer(1, [0])])
    rig.side.begin_loads(orders)
    assert rig.side.poll(Orders()) == Polled(set(), set(), set())
    rig.pool.end()
    assert rig.until_received(transfer(2, [1])).received
