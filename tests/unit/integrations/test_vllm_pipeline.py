"""Loads that layers wait for: in the order of layers, with an end, and never late into a place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from memkv import _hotpath
from memkv.integrations.arena import HeaderPages
from memkv.integrations.keys import Namespace, block_key
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory
from memkv.integrations.vllm.memory import CopiedLoads, InPlaceMemory, Pieces
from memkv.integrations.vllm.messages import FailedLoad, Orders, Transfer
from memkv.integrations.vllm.mover import Mover
from memkv.integrations.vllm.pipeline import StepLoads
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.integrations.vllm.settings import Settings
from memkv.integrations.vllm.worker_side import WorkerSide
from memkv.limits import BLOCK_HEADER_BYTES
from memkv.status import Status
from memkv.testing.pool_in_memory import PoolInMemory

PART_BYTES, PARTS, BLOCKS = 4096, 4, 8
STORED_BYTES = PART_BYTES + BLOCK_HEADER_BYTES
NAME = Namespace("model", "", "uint8", "vllm:test/4xH1;layers=1", 16, "vllm/sha256/0")
DEADLINE_MS = 100


class CopiedBatch:
    """A batch in memory of its own."""

    is_private = True

    def __init__(self, memory: CopiedMemory, places: Sequence[Pieces]) -> None:
        self._memory = memory
        self._places = places
        self._copies = [[bytearray(size) for size in sizes] for _, sizes in places]
        self.pieces: list[Pieces] = [
            ([_hotpath.address_of(memoryview(copy)) for copy in copies], [*map(len, copies)])
            for copies in self._copies
        ]
        self.precedes = 0

    def is_ready(self) -> bool:
        return True

    def land(self, arrived: Sequence[bool]) -> bool:
        for (addresses, _), copies, is_there in zip(
            self._places, self._copies, arrived, strict=True
        ):
            for address, copy in zip(addresses, copies, strict=True):
                if is_there:
                    ctypes.memmove(address, bytes(copy), len(copy))
        return True

    def is_landed(self) -> bool:
        return True

    def precede(self) -> None:
        self.precedes += 1

    def close(self) -> None:
        self._memory.room += 1


class CopiedMemory:
    """Loads land in copies."""

    def __init__(self, in_place: InPlaceMemory) -> None:
        self._in_place = in_place
        self.payload_bytes = in_place.payload_bytes
        self.room = 100
        """For so many batches more."""
        self.batches: list[CopiedBatch] = []

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> CopiedBatch | None:
        if not self.room:
            return None
        self.room -= 1
        self.batches.append(CopiedBatch(self, self._in_place.begin_get(blocks).pieces))
        return self.batches[-1]

    begin_put = begin_get

    def close(self) -> None:
        pass


class Cache:
    """Four layers, each a part with its blocks side by side."""

    def __init__(self) -> None:
        self.bytes = bytearray(PARTS * BLOCKS * PART_BYTES)
        address = _hotpath.address_of(memoryview(self.bytes))
        in_place = InPlaceMemory([
            BlockRuns([LayerMemory(address + part * BLOCKS * PART_BYTES, (BLOCKS, PART_BYTES),
                                   (PART_BYTES, 1), 1)], BLOCKS) for part in range(PARTS)
        ])
        self.copied = CopiedMemory(in_place)
        self.memory = CopiedLoads(self.copied, in_place)

    def fill(self, place: int, value: int) -> None:
        for part in range(PARTS):
            self.write(place, part, value + part)

    def write(self, place: int, part: int, value: int) -> None:
        begin = (part * BLOCKS + place) * PART_BYTES
        self.bytes[begin : begin + PART_BYTES] = bytes((value,)) * PART_BYTES

    def read(self, place: int, part: int) -> int | None:
        """Return the value of a part; None where it is not of one value."""
        begin = (part * BLOCKS + place) * PART_BYTES
        values = set(self.bytes[begin : begin + PART_BYTES])
        return values.pop() if len(values) == 1 else None


class Rig:
    """A mover beside a pool, with a clock that goes on while it waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = PoolInMemory()
        self.cache = Cache()
        self.pages = HeaderPages(self.pool, 64)
        self.now_ms = 0.0
        self.mover = Mover(
            self.pool, self.cache.memory, self.pages, 0, batch_bytes=2 * STORED_BYTES,
            in_flight_bytes=2 * STORED_BYTES, load_deadline_ms=DEADLINE_MS, now_ns=self.now_ns,
        )
        self.while_waiting: Callable[[], None] = lambda: None
        monkeypatch.setattr(self.mover, "_news", SimpleNamespace(poll=self._poll))

    def now_ns(self) -> int:
        return int(self.now_ms * 1_000_000)

    def _poll(self, wait_ms: float) -> None:
        self.now_ms += wait_ms
        self.while_waiting()

    def store(self, numbers: range) -> None:
        for number in numbers:
            self.cache.fill(number, 10 * number + 10)
        self.mover.store(transfer(99, {number: number for number in numbers}))
        while self.mover.is_busy:
            self.mover.poll()
        self.cache.bytes[:] = bytes(len(self.cache.bytes))
        self.mover.take_counts()
        self.pool.jobs.clear()
        self.pool.begins.clear()

    def loads(self, *transfers: Transfer) -> StepLoads:
        return StepLoads(
            self.mover, transfers, PARTS, deadline_ms=DEADLINE_MS, now_ns=self.now_ns
        )

    def wait_all(self, loads: StepLoads) -> None:
        for part in range(PARTS):
            loads.wait(part)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.pages.close()


def transfer(job: int, places: dict[int, int], name: Namespace = NAME) -> Transfer:
    """`places`: of each block number."""
    return Transfer(job, f"request-{job}", (name,), b"prefix..", [
        PlacedBlock(number, part, place, bytes((number,)) * 32)
        for number, place in places.items() for part in range(PARTS)
    ])


def key(number: int, part: int) -> bytes:
    return block_key(NAME, bytes((number,)) * 32, part)


def end_oldest(pool: PoolInMemory) -> None:
    """End the job that was begun first."""
    rest = pool.waiting[1:]
    del pool.waiting[1:]
    pool.end()
    pool.waiting += rest


def test_first_parts_of_all_requests_come_first(rig: Rig) -> None:
    rig.store(range(4))
    rig.pool.is_prompt = False
    rig.loads(transfer(1, {0: 4, 1: 5, 2: 6}), transfer(2, {3: 7}))
    asked = [found for kind, keys in rig.pool.jobs for found in keys if kind == "get"]
    assert asked == [key(number, part) for part in range(PARTS) for number in range(4)]
    rig.pool.end()


def test_a_layer_waits_for_its_own_part_alone(rig: Rig) -> None:
    rig.store(range(2))
    rig.pool.is_prompt = False
    loads = rig.loads(transfer(1, {0: 4, 1: 5}))
    rig.while_waiting = lambda: end_oldest(rig.pool)
    loads.wait(0)
    assert [rig.cache.read(place, 0) for place in (4, 5)] == [10, 20]
    assert len(rig.pool.waiting) == PARTS - 1
    assert [batch.precedes for batch in rig.cache.copied.batches] == [1, 0, 0, 0]
    for part in range(1, PARTS):
        loads.wait(part)
        assert rig.cache.read(5, part) == 20 + part
    assert loads.end() == []
    counts = rig.mover.take_counts()
    assert (counts["loads"], counts["load_blocks"], counts["loads_failed"]) == (1, 8, 0)
    rig.mover.poll()
    assert not rig.mover.is_busy


def test_a_missing_middle_part_ends_its_request_there_and_no_other(rig: Rig) -> None:
    rig.store(range(5))
    del rig.pool.blocks[key(1, 2)]
    loads = rig.loads(transfer(1, {0: 5, 1: 6, 2: 7}), transfer(2, {3: 3, 4: 4}))
    rig.wait_all(loads)
    assert loads.end() == [FailedLoad("request-1", 1, "unexplained")]
    assert [rig.cache.read(5, part) for part in range(PARTS)] == [10, 11, 12, 13]
    assert [rig.cache.read(4, part) for part in range(PARTS)] == [50, 51, 52, 53]


def test_what_is_of_no_use_is_not_asked_for_and_little_room_is_enough(rig: Rig) -> None:
    rig.store(range(3))
    rig.cache.copied.room = 1
    del rig.pool.blocks[key(1, 2)]
    loads = rig.loads(transfer(1, {0: 5, 1: 6, 2: 7}))
    rig.wait_all(loads)
    assert loads.end() == [FailedLoad("request-1", 1, "unexplained")]
    asked = [found for _, keys in rig.pool.jobs for found in keys]
    assert asked == [
        *[key(number, part) for part in range(2) for number in range(3)],
        key(0, 2), key(1, 2), key(0, 3),
    ]
    assert [rig.cache.read(5, part) for part in range(PARTS)] == [10, 11, 12, 13]


def test_a_first_block_that_failed_is_not_waited_for(rig: Rig) -> None:
    rig.store(range(4))
    del rig.pool.blocks[key(0, 0)]
    rig.pool.is_prompt = False
    loads = rig.loads(transfer(1, {number: number + 4 for number in range(4)}))
    end_oldest(rig.pool)
    rig.wait_all(loads)
    assert rig.now_ms == 0
    assert loads.end() == [FailedLoad("request-1", 0, "unexplained")]
    rig.pool.end()


def test_all_layers_together_wait_no_longer_than_the_deadline(rig: Rig) -> None:
    rig.store(range(4))
    rig.pool.is_prompt = False
    loads = rig.loads(transfer(1, {number: number + 4 for number in range(4)}))
    end_oldest(rig.pool)  # blocks 0 and 1 of the first part
    rig.wait_all(loads)
    assert rig.now_ms == pytest.approx(DEADLINE_MS)
    assert loads.end() == [FailedLoad("request-1", 0, "timeout")]
    assert rig.mover.take_counts()["layer_wait_seconds"] == pytest.approx(DEADLINE_MS / 1_000)


def test_a_deadline_amid_the_layers_leaves_the_blocks_that_are_whole(rig: Rig) -> None:
    rig.store(range(4))
    rig.pool.is_prompt = False
    loads = rig.loads(transfer(1, {number: number + 4 for number in range(4)}))
    heads = rig.pool.waiting[::2]  # blocks 0 and 1 of every part
    tails = rig.pool.waiting[1::2]
    rig.pool.waiting = heads
    rig.pool.end()
    rig.wait_all(loads)
    assert loads.end() == [FailedLoad("request-1", 2, "timeout")]
    # The engine computes what failed; what comes now must not reach it.
    for place in (6, 7):
        rig.cache.fill(place, 200)
    rig.pool.waiting = tails
    rig.pool.end()
    rig.mover.poll()
    assert not rig.mover.is_busy
    assert [rig.cache.read(6, part) for part in range(PARTS)] == [200, 201, 202, 203]
    assert [rig.cache.read(5, part) for part in range(PARTS)] == [20, 21, 22, 23]


def test_a_quarantined_part_fails_at_once_and_is_written_to_no_place(rig: Rig) -> None:
    rig.store(range(2))
    rig.pool.spoil = lambda asked: Status.QUARANTINED if asked == key(1, 1) else None
    loads = rig.loads(transfer(1, {0: 4, 1: 5}))
    rig.wait_all(loads)
    assert rig.now_ms == 0
    assert [(load.first_missing) for load in loads.end()] == [1]
    rig.cache.fill(5, 200)
    (held,) = [batch for batch in rig.cache.copied.batches if batch.pieces[1][0][0] in _second(rig)]
    ctypes.memset(held.pieces[1][0][0], 7, PART_BYTES)  # the write that was feared
    assert rig.mover.is_busy
    rig.mover.poll()
    assert rig.cache.read(5, 1) == 201
    rig.pool.release(rig.pool.begins[3])
    rig.mover.poll()
    assert not rig.mover.is_busy
    assert rig.cache.read(5, 1) == 201


def _second(rig: Rig) -> list[int]:
    return [rig.cache.copied.batches[1].pieces[1][0][0]]


def test_a_part_that_no_layer_waited_for_is_not_trusted(rig: Rig) -> None:
    rig.store(range(2))
    loads = rig.loads(transfer(1, {0: 4, 1: 5}))
    for part in (0, 1, 3):
        loads.wait(part)
    assert loads.end() == [FailedLoad("request-1", 0, "timeout")]


def test_stores_in_flight_delay_no_part(rig: Rig) -> None:
    rig.store(range(1))
    rig.pool.is_prompt = False
    rig.mover.store(transfer(2, {number: number for number in range(8)}))
    rig.mover.poll()
    assert [kind for kind, _ in rig.pool.jobs] == ["put"]
    rig.loads(transfer(1, {0: 4}))
    assert [kind for kind, _ in rig.pool.jobs] == ["put"] + ["get"] * PARTS
    rig.pool.end()


# --- in a worker ------------------------------------------------------------------------------
PART_OF = {f"layer.{part}": part for part in range(PARTS)}


def worker(rig: Rig, hooked: Sequence[str] = tuple(PART_OF)) -> WorkerSide:
    side = WorkerSide(
        rig.pool, Settings(pipeline_layers=1, load_deadline_ms=DEADLINE_MS), 0, stores=True
    )
    side.use(rig.cache.memory, PART_OF, hooked)
    return side


def test_a_step_says_which_places_were_not_filled(rig: Rig) -> None:
    rig.store(range(3))
    del rig.pool.blocks[key(1, 3)]
    side = worker(rig)
    orders = Orders(layered=[transfer(5, {0: 4, 1: 5, 2: 6})])
    side.begin_loads(orders)
    for name in PART_OF:
        side.wait_for_layer(name)
    side.begin_stores(orders)
    polled = side.poll(orders)
    assert (polled.received, polled.failed_requests) == (set(), set())
    assert polled.invalid_places == {5, 6}
    results = side.take_results()
    assert results is not None
    assert results.layered == {5: 1}
    assert results.failed == {"request-5": FailedLoad("request-5", 1, "unexplained")}
    side.wait_for_layer("layer.0")  # of a step without loads
    assert side.poll(Orders()).invalid_places == set()


def test_parts_of_layers_that_do_not_ask_are_waited_for_at_the_begin(rig: Rig) -> None:
    rig.store(range(1))
    side = worker(rig, hooked=["layer.0", "layer.1", "layer.3"])
    orders = Orders(layered=[transfer(5, {0: 4})])
    side.begin_loads(orders)
    assert rig.cache.read(4, 2) == 12
    for name in ("layer.0", "layer.1", "layer.3", "layer of no cache"):
        side.wait_for_layer(name)
    assert side.poll(orders).invalid_places == set()
