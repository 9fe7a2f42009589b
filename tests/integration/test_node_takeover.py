"""A worker takes slots over from a real peer: deletes first, blocks later, fences always."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memkv._hotpath import slots_of
from memkv.checksum import seal
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.node.map_keeper import MapKeeper
from memkv.node.store_adapter import NodeStore
from memkv.node.takeover import Applied
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.store.api import PendingPut, Store, open_store
from memkv.store.config import StoreConfig
from memkv.store.requests import PutRequest
from memkv.tenant import Tenant
from memkv.testing.running_worker import POOL, WORKER_UUID, running_worker

MIB = 1 << 20
SLOTS = 4
LINEAGE = b"L" * 16
ME = b"worker uuid 0000"
TENANT = Tenant.named("team")
CLOCK = SystemClock()
WAIT_S = 30.0


def make_store(folder: Path) -> tuple[FileDevice, Store]:
    folder.mkdir(parents=True, exist_ok=True)
    device = FileDevice.create(str(folder / "drive"), 64 * MIB)
    config = StoreConfig(memory_bytes=32 * MIB, slots=SLOTS)
    return device, open_store(device, config, CLOCK, random.Random(7))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    opened = [make_store(tmp_path / name) for name in ("mine", "theirs")]
    yield opened[0][1], opened[1][1]
    for device, store in opened:
        store.close()
        device.close()


def block_of_slot(slot: int, number: int) -> bytes:
    """Return the number-th block id of a slot."""
    found = -1
    for candidate in range(10_000):
        block_id = hashlib.sha256(b"block %d" % candidate).digest()
        if int.from_bytes(slots_of(block_id, SLOTS), "little") == slot:
            found += 1
            if found == number:
                return block_id
    raise AssertionError("not that many")


def put(store: Store, block_id: bytes) -> None:
    data = block_id * 10
    made = seal(data, block_id, TENANT.tag)
    request = PutRequest(block_id, made.length, made.root, made.sums)
    pending = store.begin_put(TENANT, request, deadline_after_ms(CLOCK, 5000))
    assert isinstance(pending, PendingPut)
    pending.payload[:] = data
    assert pending.commit() is Status.OK
    assert store.wait_durable([pending], deadline_after_ms(CLOCK, 5000)) == [Status.OK]


def has(store: Store, block_id: bytes) -> bool:
    return store.exists(TENANT, block_id) == (1).to_bytes(4, "little")


def wait_until(holds: Callable[[], bool]) -> None:
    pause, deadline_ns = threading.Event(), deadline_after_ms(CLOCK, int(WAIT_S * 1000))
    while not holds():
        assert CLOCK.monotonic_ns() < deadline_ns, "in vain"
        pause.wait(0.01)


class Maps:
    """The maps that a worker's server was given."""

    def __init__(self) -> None:
        self.given: list[ShardMap] = []

    def serves(self, slot: int) -> bool:
        owner = self.given[-1].owner(slot)
        return owner is not None and owner.uuid == ME


def make_map(epoch: int, peer_port: int, *, moving: bool = True, fenced: bool = False) -> ShardMap:
    workers = (
        Worker(ME, 1, "mine", "127.0.0.1", 7070),
        Worker(WORKER_UUID, 1, "theirs", "127.0.0.1", peer_port),
    )
    return ShardMap(
        MapVersion(LINEAGE, 1, epoch),
        SLOTS,
        workers,
        pack_owners([0, 0, 1, 1]),
        {0: Move((1,), epoch)} if moving else {},
        {1: epoch} if fenced else {},
    )


def keeper_of(store: Store, maps: Maps, folder: Path, stack: ExitStack) -> MapKeeper:
    keeper = MapKeeper(POOL, ME, store, maps.given.append, folder / "applied", CLOCK)
    keeper.start()
    stack.callback(keeper.stop)
    return keeper


def test_deletes_are_heard_before_a_slot_is_served(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    mine, theirs = stores
    deleted, kept = block_of_slot(0, 0), block_of_slot(0, 1)
    put(mine, deleted)
    put(mine, kept)
    theirs.delete(TENANT, deleted, deadline_after_ms(CLOCK, 5000))
    maps = Maps()
    with ExitStack() as stack:
        peer = stack.enter_context(running_worker(NodeStore(theirs)))
        keeper = keeper_of(mine, maps, tmp_path, stack)
        keeper.offer(make_map(5, peer.server.port))
        assert not maps.serves(0)
        assert maps.serves(1)
        wait_until(lambda: keeper.applied == Applied(LINEAGE, 5))
        assert maps.serves(0)
        assert not has(mine, deleted)
        assert has(mine, kept)
        wait_until(lambda: keeper.finished == {(0, 5)})
    again = MapKeeper(POOL, ME, mine, maps.given.append, tmp_path / "applied", CLOCK)
    assert again.applied == Applied(LINEAGE, 5)


def test_slot_stays_closed_while_its_previous_owner_is_away(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    mine, theirs = stores
    put(mine, block_of_slot(0, 0))
    maps = Maps()
    with ExitStack() as stack:
        keeper = keeper_of(mine, maps, tmp_path, stack)
        keeper.offer(make_map(5, 1))
        wait_until(lambda: len(maps.given) >= 2)
        assert not maps.serves(0)
        assert maps.serves(1)
        assert keeper.closed_slots == 1
        assert keeper.applied == Applied()
        peer = stack.enter_context(running_worker(NodeStore(theirs)))
        keeper.offer(make_map(6, peer.server.port))
        wait_until(lambda: keeper.applied.epoch == 6)
        assert maps.serves(0)


def test_fenced_slot_is_emptied_for_good(stores: tuple[Store, Store], tmp_path: Path) -> None:
    mine, _ = stores
    blocks = [block_of_slot(1, number) for number in range(5)]
    for block_id in blocks:
        put(mine, block_id)
    other = block_of_slot(2, 0)
    put(mine, other)
    maps = Maps()
    with ExitStack() as stack:
        keeper = keeper_of(mine, maps, tmp_path, stack)
        keeper.offer(make_map(5, 1, moving=False, fenced=True))
        wait_until(lambda: keeper.applied.epoch == 5)
        assert not any(has(mine, block_id) for block_id in blocks)
        assert has(mine, other)
        put(mine, blocks[0])
        keeper.offer(make_map(6, 1, moving=False))
        wait_until(lambda: keeper.applied.epoch == 6)
        assert has(mine, blocks[0])


def test_move_ends_when_every_block_of_the_previous_owner_is_here(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    mine, theirs = stores
    blocks = [block_of_slot(0, number) for number in range(3)]
    for block_id in blocks:
        put(theirs, block_id)
    maps = Maps()
    with ExitStack() as stack:
        peer = stack.enter_context(running_worker(NodeStore(theirs)))
        keeper = keeper_of(mine, maps, tmp_path, stack)
        keeper.offer(make_map(5, peer.server.port))
        wait_until(lambda: keeper.applied.epoch == 5)
        put(mine, blocks[0])
        assert keeper.finished == frozenset()
        for block_id in blocks[1:]:
            put(mine, block_id)
        wait_until(lambda: keeper.finished == {(0, 5)})
