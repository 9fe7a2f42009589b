"""Blocks between a paged cache and a pool: the right bytes, and no buffer let go early."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from memkv import _hotpath
from memkv.errors import CallerError
from memkv.integrations.arena import HeaderPages
from memkv.integrations.keys import Namespace, block_key
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory
from memkv.integrations.vllm.memory import InPlaceMemory
from memkv.integrations.vllm.messages import FailedLoad, Transfer
from memkv.integrations.vllm.mover import Ended, Mover
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.limits import BLOCK_HEADER_BYTES, HEADER_FORMATS_MAX
from memkv.status import Status
from memkv.testing.pool_in_memory import PoolInMemory
from memkv.testing.private_memory import PrivateMemory

LAYER_BYTES, LAYERS, BLOCKS = 4096, 2, 8
PAYLOAD_BYTES = LAYER_BYTES * LAYERS
STORED_BYTES = PAYLOAD_BYTES + BLOCK_HEADER_BYTES
NAME = Namespace("model", "", "uint8", "vllm:test/2xH1", 16, "vllm/sha256/0")


class Cache:
    """Two layers, each with its blocks side by side."""

    def __init__(self, memory: type[InPlaceMemory] = InPlaceMemory) -> None:
        self.bytes = bytearray(LAYERS * BLOCKS * LAYER_BYTES)
        address = _hotpath.address_of(memoryview(self.bytes))
        self.memory = memory([BlockRuns(
            [LayerMemory(address + layer * BLOCKS * LAYER_BYTES, (BLOCKS, LAYER_BYTES),
                         (LAYER_BYTES, 1), 1) for layer in range(LAYERS)],
            BLOCKS,
        )])

    def fill(self, place: int, value: int) -> None:
        for layer in range(LAYERS):
            begin = (layer * BLOCKS + place) * LAYER_BYTES
            self.bytes[begin : begin + LAYER_BYTES] = bytes((value + layer,)) * LAYER_BYTES

    def read(self, place: int) -> bytes:
        begins = [(layer * BLOCKS + place) * LAYER_BYTES for layer in range(LAYERS)]
        return b"".join(bytes(self.bytes[begin : begin + LAYER_BYTES]) for begin in begins)


class Rig:
    """A mover of one engine beside a pool."""

    def __init__(self, pool: PoolInMemory, memory: type[InPlaceMemory] = InPlaceMemory) -> None:
        self.pool = pool
        self.cache = Cache(memory)
        self.pages = HeaderPages(pool, 16)
        self.now_ms = 0
        self.mover = Mover(
            pool, self.cache.memory, self.pages, 0, batch_bytes=2 * STORED_BYTES,
            in_flight_bytes=4 * STORED_BYTES, load_deadline_ms=100,
            now_ns=lambda: self.now_ms * 1_000_000,
        )


@pytest.fixture
def pool() -> PoolInMemory:
    return PoolInMemory()


@pytest.fixture
def rig(pool: PoolInMemory) -> Iterator[Rig]:
    rig = Rig(pool)
    yield rig
    rig.pages.close()


def transfer(job: int, places: dict[int, int], name: Namespace = NAME) -> Transfer:
    """`places`: of each block number."""
    return Transfer(job, f"request-{job}", (name,), b"prefix..", [
        PlacedBlock(number, 0, place, bytes((number,)) * 32) for number, place in places.items()
    ])


def key(number: int) -> bytes:
    return block_key(NAME, bytes((number,)) * 32)


def store(rig: Rig, numbers: range) -> None:
    """Put blocks into the pool, each from a place of its number."""
    for number in numbers:
        rig.cache.fill(number, 10 * number)
    rig.mover.store(transfer(99, {number: number for number in numbers}))
    while rig.mover.is_busy:
        rig.mover.poll()
    rig.mover.take_counts()


def test_what_one_engine_stores_another_loads_to_other_places(
    rig: Rig, pool: PoolInMemory
) -> None:
    store(rig, range(5))
    other = Rig(pool)
    other.mover.load(transfer(1, {number: 7 - number for number in range(5)}))
    loads = []
    while other.mover.is_busy:
        ended = other.mover.poll()
        loads += ended.loads
        assert ended.failed == []
    assert [load.job for load in loads] == [1]
    for number in range(5):
        assert other.cache.read(7 - number) == rig.cache.read(number)
    counts = other.mover.take_counts()
    assert counts["load_blocks"] == 5
    assert counts["load_bytes"] == 5 * PAYLOAD_BYTES
    other.pages.close()


def test_puts_carry_where_a_block_stands_in_its_prompt(rig: Rig, pool: PoolInMemory) -> None:
    store(rig, range(2))
    hint = pool.hints[key(1)]
    assert (getattr(hint, "prefix_id", None), getattr(hint, "depth", None)) == (b"prefix..", 1)


def test_a_load_ends_at_its_first_missing_block(rig: Rig, pool: PoolInMemory) -> None:
    store(rig, range(8))
    del pool.blocks[key(2)]
    pool.jobs.clear()
    pool.is_prompt = False
    rig.mover.load(transfer(1, {number: number for number in range(8)}))
    ends: list[FailedLoad] = []
    while not ends:
        pool.end()
        ends = rig.mover.poll().failed
    assert [(load.request_id, load.first_missing, load.reason) for load in ends] == [
        ("request-1", 2, "unexplained")
    ]
    assert [keys for _, keys in pool.jobs] == [[key(0), key(1)], [key(2), key(3)]]
    assert not rig.mover.is_busy


@pytest.mark.parametrize(("status", "reason"), [
    (Status.CORRUPT, "corrupt"), (Status.TIMEOUT, "timeout"), (Status.UNAVAILABLE, "unavailable"),
    (Status.BUSY, "busy"),
])
def test_reasons_of_failed_loads(
    rig: Rig, pool: PoolInMemory, status: Status, reason: str
) -> None:
    store(rig, range(2))
    pool.spoil = lambda spoiled: status if spoiled == key(1) else None
    rig.mover.load(transfer(1, {0: 4, 1: 5}))
    assert [load.reason for load in _ended(rig).failed] == [reason]
    assert rig.mover.take_counts()[f"load_missed_{reason}"] == 1


def test_a_block_of_another_namespace_under_our_key_is_no_hit(
    rig: Rig, pool: PoolInMemory
) -> None:
    store(rig, range(1))
    foreign = block_key(dataclasses.replace(NAME, model="other"), bytes(32))
    pool.blocks[foreign] = pool.blocks[key(0)]
    rig.mover.load(transfer(1, {0: 3}, dataclasses.replace(NAME, model="other")))
    assert [load.reason for load in _ended(rig).failed] == ["wrong_namespace"]


def test_a_block_of_another_length_is_no_hit(rig: Rig, pool: PoolInMemory) -> None:
    store(rig, range(1))
    pool.blocks[key(0)] = pool.blocks[key(0)][:-1]
    rig.mover.load(transfer(1, {0: 3}))
    assert [load.reason for load in _ended(rig).failed] == ["wrong_format"]


def test_no_more_than_the_limit_is_in_flight_and_loads_go_first(
    rig: Rig, pool: PoolInMemory
) -> None:
    store(rig, range(8))
    pool.jobs.clear()
    pool.is_prompt = False
    rig.mover.store(transfer(2, {number: number for number in range(8)}))
    rig.mover.load(transfer(1, {number: number for number in range(8)}))
    rig.mover.poll()
    assert [kind for kind, _ in pool.jobs] == ["get", "get"]
    jobs = []
    while rig.mover.is_busy:
        pool.end()
        ended = rig.mover.poll()
        jobs += [one.job for one in ended.loads + ended.stores]
        assert len(pool.waiting) <= 2
    assert jobs == [1, 2]


def test_a_load_that_takes_too_long_begins_nothing_more(rig: Rig, pool: PoolInMemory) -> None:
    store(rig, range(8))
    pool.is_prompt = False
    rig.mover.load(transfer(1, {number: number for number in range(8)}))
    rig.mover.poll()
    pool.end()
    rig.now_ms = 101
    failed: list[FailedLoad] = []
    while not failed:
        pool.end()
        failed = rig.mover.poll().failed
    assert (failed[0].first_missing, failed[0].reason) == (4, "timeout")


def test_a_load_is_not_over_while_a_buffer_of_it_may_be_written(
    rig: Rig, pool: PoolInMemory
) -> None:
    store(rig, range(2))
    pool.spoil = lambda spoiled: Status.QUARANTINED if spoiled == key(1) else None
    pool.begins.clear()
    rig.mover.load(transfer(1, {0: 4, 1: 5}))
    for _ in range(3):
        assert rig.mover.poll().loads == []
    pool.release(pool.begins[1])
    ended = rig.mover.poll()
    assert [load.job for load in ended.loads] == [1]
    assert [load.first_missing for load in ended.failed] == [1]


def test_a_store_is_not_over_while_a_buffer_of_it_may_be_read(
    rig: Rig, pool: PoolInMemory
) -> None:
    pool.spoil = lambda _: Status.QUARANTINED
    rig.mover.store(transfer(1, {0: 0}))
    rig.mover.store(transfer(2, {1: 1}))
    rig.mover.poll()
    # Both puts begin at one header: the first buffer that comes back says nothing of either.
    assert len(set(pool.begins)) == 1
    pool.release(pool.begins[0])
    assert rig.mover.poll().stores == []
    pool.release(pool.begins[0])
    assert [one.job for one in rig.mover.poll().stores] == [1, 2]


def test_moves_by_way_of_private_memory_do_not_wait_for_a_late_writer(pool: PoolInMemory) -> None:
    """A worker that hangs may write for ever; only the batch's own memory is kept back for it."""
    rig = Rig(pool, PrivateMemory)
    memory = rig.cache.memory
    assert isinstance(memory, PrivateMemory)
    store(rig, range(2))
    memory.closed_batches = 0
    pool.spoil = lambda spoiled: Status.QUARANTINED if spoiled == key(1) else None
    pool.begins.clear()
    rig.mover.load(transfer(1, {0: 4, 1: 5}))
    ended = _ended(rig)
    assert [load.job for load in ended.loads] == [1]
    assert [load.first_missing for load in ended.failed] == [1]
    pool.spoil = lambda _: Status.QUARANTINED
    late = list(pool.begins)
    rig.mover.store(transfer(2, {2: 2}))
    assert [one.job for one in _ended(rig).stores] == [2]
    assert memory.closed_batches == 0, "nobody else uses it meanwhile"
    pool.release(late[1])
    rig.mover.poll()
    assert memory.closed_batches == 1
    rig.pages.close()


def test_puts_of_more_namespaces_than_share_pages_have_pages_of_their_own(
    rig: Rig, pool: PoolInMemory
) -> None:
    """Every tenant has its salt: an engine that runs for long sees any number of them."""
    for number in range(HEADER_FORMATS_MAX + 20):
        name = dataclasses.replace(NAME, cache_salt=b"salt-%d" % number)
        rig.cache.fill(0, number % 200)
        rig.mover.store(transfer(number, {0: 0}, name))
        assert [one.job for one in _ended(rig).stores] == [number]
        stored = pool.blocks[block_key(name, bytes(32))]
        assert stored[BLOCK_HEADER_BYTES:] == rig.cache.read(0)
        rig.mover.load(transfer(number, {0: 1}, name))
        assert not _ended(rig).failed, "its header is another one's"
    assert "stores_dropped" not in rig.mover.take_counts()


def test_a_client_that_refuses_a_call_ends_no_engine(
    rig: Rig, pool: PoolInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise CallerError("what nobody foresaw")

    store(rig, range(1))
    monkeypatch.setattr(pool, "submit_get_into_multi", refuse)
    monkeypatch.setattr(pool, "submit_put_from_multi", refuse)
    rig.mover.load(transfer(1, {0: 4}))
    rig.mover.store(transfer(2, {1: 1}))
    ended = _ended(rig)
    assert [load.first_missing for load in ended.failed] == [0]
    assert [one.job for one in ended.stores] == [2]


def test_a_refused_store_is_counted_and_over(rig: Rig, pool: PoolInMemory) -> None:
    pool.spoil = lambda _: Status.QUOTA
    rig.mover.store(transfer(1, {0: 0, 1: 1}))
    assert [one.job for one in _ended(rig).stores] == [1]
    counts = rig.mover.take_counts()
    assert (counts["stores_dropped"], counts["store_dropped_not_admitted"]) == (2, 2)


def _ended(rig: Rig) -> Ended:
    while True:
        ended = rig.mover.poll()
        if not rig.mover.is_busy:
            return ended
