"""A GET of one block in DRAM takes a short way; nobody must be able to tell.

Every situation is asked for twice with the very same frame, the second time with the short way
closed. The answers must be equal to the byte, and counted alike.
"""

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memkv import limits
from memkv._hotpath import SingleGet
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.node.store_adapter import NodeStore
from memkv.shardmap import MapVersion, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.store.api import Store, StoreConfig, open_store
from memkv.tcp.get import GetService
from memkv.tcp.lane import Lane as ServedLane
from memkv.tcp.lane import ServingThread
from memkv.testing.running_worker import WORKER_UUID, RunningWorker, running_worker
from memkv.testing.wire_client import Block, Got, Lane, RequestFailed
from memkv.wire.items import Durability, Source
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.session import Credits
from memkv.wire.ticket import Rights

KIB, MIB = limits.KIB, limits.MIB
OTHER_UUID = b"worker uuid 0002"


@dataclass
class SteppedWallClock:
    """The machine's clock, with a wall clock that a test sets forward."""

    forward_s: int = 0
    _system: SystemClock = field(default_factory=SystemClock)

    def monotonic_ns(self) -> int:
        return self._system.monotonic_ns()

    def wall_s(self) -> int:
        return self._system.wall_s() + self.forward_s


@pytest.fixture
def clock() -> SteppedWallClock:
    return SteppedWallClock()


@pytest.fixture
def store(tmp_path: Path, clock: SteppedWallClock) -> Iterator[Store]:
    device = FileDevice.create(str(tmp_path / "flash"), 128 * MIB)
    config = StoreConfig(memory_bytes=16 * MIB, block_bytes_max=1 * MIB)
    store = open_store(device, config, clock, random.SystemRandom())
    yield store
    store.close()
    device.close()


@pytest.fixture
def worker(store: Store) -> Iterator[RunningWorker]:
    with running_worker(NodeStore(store), block_bytes_max=1 * MIB) as running:
        yield running
    assert running.server.statistics().events.internal_errors == 0


@dataclass
class ShortWay:
    """Watches the short way, and closes it."""

    is_open: bool = True
    taken: list[bool] = field(default_factory=list)
    """For each GET that came there while it was open, whether it was answered."""


@pytest.fixture
def short_way(monkeypatch: pytest.MonkeyPatch) -> ShortWay:
    watched = ShortWay()
    original = GetService.hit

    def hit(self: GetService, lane: ServedLane, request: SingleGet, thread: ServingThread) -> bool:
        if not watched.is_open:
            return False
        watched.taken.append(original(self, lane, request, thread))
        return watched.taken[-1]

    monkeypatch.setattr(GetService, "hit", hit)
    return watched


@dataclass
class Asker:
    """Asks for everything by both ways."""

    worker: RunningWorker
    short_way: ShortWay

    def ask(self, lane: Lane, frame: bytes) -> Got | str:
        """Return the answer, the same by both ways, or the text of a failure."""
        answers, counted = [], []
        for is_open in (True, False):
            self.short_way.is_open = is_open
            before = self.worker.server.statistics().items
            lane.send(frame)
            answers.append(answer_of(lane))
            counted.append(changes(before, self.worker.server.statistics().items))
        self.short_way.is_open = True
        assert answers[0] == answers[1]
        assert counted[0] == counted[1]
        return answers[0]

    def get(self, lane: Lane, frame: bytes) -> Got:
        """Return the item, the same by both ways."""
        got = self.ask(lane, frame)
        assert isinstance(got, Got)
        return got


@pytest.fixture
def asker(worker: RunningWorker, short_way: ShortWay) -> Asker:
    return Asker(worker, short_way)


def block_of(length: int, **options: int) -> Block:
    return Block(os.urandom(32), os.urandom(length), **options)


def answer_of(lane: Lane) -> Got | str:
    try:
        [got] = lane.receive_items().values()
    except RequestFailed as failure:
        return str(failure)
    return got


def changes(
    before: Mapping[tuple[Opcode, Status], int], after: Mapping[tuple[Opcode, Status], int]
) -> dict[tuple[Opcode, Status], int]:
    grown = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: count for key, count in grown.items() if count}


@pytest.mark.parametrize(
    ("length", "express"), [(1, True), (4 * KIB, True), (64 * KIB, True), (1 * MIB, False)]
)
def test_a_hit(
    worker: RunningWorker, asker: Asker, length: int, express: bool, store: Store
) -> None:
    lane = worker.client().lane(express=express)
    block = block_of(length)
    assert lane.put([block]) == [Status.OK]
    got = asker.get(lane, lane.get_frame(block.block_id, length))
    assert (got.payload, got.result.source) == (block.data, Source.DRAM)
    assert asker.short_way.taken == [True]
    assert store.statistics().counters["hits_dram"] == 2
    lane.get(os.urandom(32))  # what follows on a lane comes after the counting
    statistics = worker.server.statistics()
    assert statistics.requests(Opcode.GET) >= 2
    assert statistics.bytes_out == 2 * length


def test_a_miss(worker: RunningWorker, asker: Asker, store: Store) -> None:
    lane = worker.client().lane(express=True)
    got = asker.get(lane, lane.get_frame(os.urandom(32)))
    assert got.status is Status.MISS
    assert asker.short_way.taken == [False]
    assert store.statistics().counters["misses"] == 2


def test_a_buffer_that_is_too_small(worker: RunningWorker, asker: Asker) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(4 * KIB)
    lane.put([block])
    got = asker.get(lane, lane.get_frame(block.block_id, 4 * KIB - 1))
    assert (got.status, got.result.length) == (Status.BUFFER_TOO_SMALL, 4 * KIB)
    assert asker.short_way.taken == [False]


def test_a_block_that_is_too_large_for_the_lane(
    worker: RunningWorker, asker: Asker
) -> None:
    client = worker.client()
    block = block_of(64 * KIB + 1)
    client.lane().put([block])
    lane = client.lane(express=True)
    got = asker.get(lane, lane.get_frame(block.block_id))
    assert got.status is Status.BUFFER_TOO_SMALL
    assert asker.short_way.taken == [False]


def test_another_tenants_block(worker: RunningWorker, asker: Asker) -> None:
    block = block_of(100)
    worker.client("tenant-a").lane().put([block])
    lane = worker.client("tenant-b").lane(express=True)
    got = asker.get(lane, lane.get_frame(block.block_id))
    assert got.status is Status.MISS
    assert asker.short_way.taken == [False]


def test_a_block_that_expired(
    worker: RunningWorker, asker: Asker, clock: SteppedWallClock
) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100, ttl_s=50)
    lane.put([block])
    clock.forward_s = 51
    got = asker.get(lane, lane.get_frame(block.block_id))
    assert got.status is Status.MISS
    assert asker.short_way.taken == [False]


def test_a_ticket_without_the_right(worker: RunningWorker, asker: Asker) -> None:
    block = block_of(100)
    worker.client().lane().put([block])
    lane = worker.client(rights=Rights.PUT).lane(express=True)
    assert "DENIED" in str(asker.ask(lane, lane.get_frame(block.block_id)))
    assert asker.short_way.taken == [False]


def test_a_deadline_that_has_passed(worker: RunningWorker, asker: Asker) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100)
    lane.put([block])
    frame = lane.get_frame(block.block_id, deadline_ms=0)
    assert "TIMEOUT" in str(asker.ask(lane, frame))
    assert asker.short_way.taken == [False]


def test_another_workers_block(worker: RunningWorker, asker: Asker) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100)
    lane.put([block])
    members = (
        Worker(WORKER_UUID, 1, "node-0", "127.0.0.1", 1),
        Worker(OTHER_UUID, 1, "node-1", "127.0.0.1", 2),
    )
    worker.server.set_map(ShardMap(MapVersion(bytes(16), 1, 2), 1, members, pack_owners([1])))
    got = asker.get(lane, lane.get_frame(block.block_id))
    assert got.status is Status.WRONG_OWNER
    assert got.result.hint is not None
    assert got.result.hint.worker_uuid == OTHER_UUID
    assert asker.short_way.taken == [False]


def test_more_than_the_credit(
    worker: RunningWorker, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100)
    lane.put([block])
    monkeypatch.setattr(Credits, "take", lambda credit, size_bytes: False)
    assert "BUSY" in str(asker.ask(lane, lane.get_frame(block.block_id)))
    assert asker.short_way.taken == [False]


def test_a_block_on_flash(worker: RunningWorker, asker: Asker, store: Store) -> None:
    client = worker.client()
    lane, bulk = client.lane(express=True), client.lane()
    block = block_of(4 * KIB, durability=Durability.DURABLE)
    assert bulk.put([block]) == [Status.OK]
    for _ in range(24):  # more than memory holds
        assert bulk.put([block_of(1 * MIB, durability=Durability.DURABLE)]) == [Status.OK]
    [got] = lane.get(block.block_id).values()
    assert (got.payload, got.result.source) == (block.data, Source.FLASH)
    assert asker.short_way.taken == [False]
    got = asker.get(lane, lane.get_frame(block.block_id))
    assert (got.payload, got.result.source) == (block.data, Source.DRAM)
    assert asker.short_way.taken == [False, True]


def test_a_request_to_verify_goes_the_long_way(
    worker: RunningWorker, asker: Asker
) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100)
    lane.put([block])
    got = asker.get(lane, lane.get_frame(block.block_id, flags=Flag.VERIFY))
    assert got.payload == block.data
    assert asker.short_way.taken == []


def test_a_newer_map_is_noticed(worker: RunningWorker, asker: Asker) -> None:
    lane = worker.client().lane(express=True)
    block = block_of(100)
    lane.put([block])
    before = worker.server.statistics().events.map_behind
    asker.ask(lane, lane.get_frame(block.block_id, map_epoch=9))
    assert worker.server.statistics().events.map_behind == before + 2
    assert asker.short_way.taken == [True]


def test_requests_sent_ahead_are_all_answered(worker: RunningWorker) -> None:
    lane = worker.client().lane(express=True)
    blocks = [block_of(1000 + n) for n in range(20)]
    assert lane.put(blocks) == [Status.OK] * 20
    lane.send(b"".join(lane.get_frame(block.block_id) for block in blocks))
    for block in blocks:
        got = answer_of(lane)
        assert isinstance(got, Got)
        assert got.payload == block.data
