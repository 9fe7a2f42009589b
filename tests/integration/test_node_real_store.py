"""The server over a real store on a file: durability, flash reads, corruption, limits."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memkv import limits
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.node.store_adapter import NodeStore
from memkv.status import Status
from memkv.store.api import Store, StoreConfig, open_store
from memkv.testing.running_worker import RunningWorker, running_worker
from memkv.testing.wire_client import Block, Lane
from memkv.wire.items import Durability, RangesItem, Source
from memkv.wire.messages import ListKind, ListRequest
from memkv.wire.ticket import CLIENT_RIGHTS, Rights

CAPACITY = 256 * limits.MIB
MEMORY = 24 * limits.MIB
KIB = limits.KIB


def opened(path: Path) -> tuple[FileDevice, Store]:
    device = FileDevice.open(str(path))
    config = StoreConfig(memory_bytes=MEMORY, block_bytes_max=2 * limits.MIB)
    return device, open_store(device, config, SystemClock(), random.SystemRandom())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    FileDevice.create(str(tmp_path / "flash"), CAPACITY).close()
    return tmp_path / "flash"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    device, store = opened(path)
    yield store
    store.close()
    device.close()


@pytest.fixture
def worker(store: Store) -> Iterator[RunningWorker]:
    with running_worker(NodeStore(store), block_bytes_max=2 * limits.MIB) as running:
        yield running
    assert running.server.statistics().events.internal_errors == 0


def blocks_of(count: int, length: int, durability: int = Durability.CACHED) -> list[Block]:
    return [Block(os.urandom(32), os.urandom(length), durability) for _ in range(count)]


def ids_of(blocks: list[Block]) -> bytes:
    return b"".join(block.block_id for block in blocks)


def assert_all_there(lane: Lane, blocks: list[Block]) -> set[int]:
    """Get all blocks, compare every byte, and return where they came from."""
    got = lane.get(ids_of(blocks))
    for index, block in enumerate(blocks):
        assert got[index].status is Status.OK
        assert got[index].payload == block.data
    return {item.result.source for item in got.values()}


@pytest.mark.parametrize("length", [1, 4096, 256 * KIB + 1, 2 * limits.MIB])
@pytest.mark.parametrize("durability", [Durability.CACHED, Durability.DURABLE])
def test_what_was_put_is_got(worker: RunningWorker, length: int, durability: Durability) -> None:
    client = worker.client()
    lane = client.lane()
    blocks = blocks_of(4, length, durability)
    assert lane.put(blocks) == [Status.OK] * 4
    assert_all_there(lane, blocks)
    assert client.exists(ids_of(blocks) + os.urandom(32)) == [1] * 4 + [0]
    assert client.pin(ids_of(blocks), 60) == [0] * 4
    assert client.delete(ids_of(blocks)) == [0] * 4
    assert client.exists(ids_of(blocks)) == [0] * 4
    assert {item.status for item in lane.get(ids_of(blocks)).values()} == {Status.MISS}


def test_more_than_memory_holds_comes_from_flash(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    blocks = blocks_of(80, 512 * KIB)  # 40 MiB through 24 MiB of memory
    for first in range(0, len(blocks), 8):
        assert lane.put(blocks[first : first + 8]) == [Status.OK] * 8
    assert Source.FLASH in assert_all_there(lane, blocks)


def test_durable_blocks_outlive_a_store_that_was_not_closed(path: Path) -> None:
    device, store = opened(path)
    blocks = blocks_of(10, 100_000, Durability.DURABLE)
    with running_worker(NodeStore(store)) as worker:
        assert worker.client().lane().put(blocks) == [Status.OK] * 10
    store.close(clean=False)
    device.close()
    device, store = opened(path)
    with running_worker(NodeStore(store)) as worker:
        assert assert_all_there(worker.client().lane(), blocks) == {Source.FLASH}
    store.close()
    device.close()


def test_ranges_from_flash_and_from_memory(worker: RunningWorker, store: Store) -> None:
    lane = worker.client().lane()
    [block] = blocks_of(1, 600 * KIB, Durability.DURABLE)
    lane.put([block])
    ranges = ((5, 1000), (255 * KIB, 300 * KIB))
    for _ in range(2):
        [got] = lane.get_ranges([RangesItem(block.block_id, ranges)]).values()
        assert got.payload == b"".join(block.data[a : a + n] for a, n in ranges)


def test_listing_names_blocks_and_deletes(worker: RunningWorker) -> None:
    peer = worker.client(rights=CLIENT_RIGHTS | Rights.PEER)
    blocks = blocks_of(3, 1000, Durability.DURABLE)
    peer.lane().put(blocks)
    peer.delete(blocks[0].block_id)
    slot_ids = {
        kind: {
            entry.block_id
            for slot in range(limits.SLOTS_DEFAULT)
            for entry in peer.list_page(ListRequest(slot, kind)).entries
        }
        for kind in ListKind
    }
    assert slot_ids[ListKind.BLOCKS] == {block.block_id for block in blocks[1:]}
    assert slot_ids[ListKind.TOMBSTONES] == {blocks[0].block_id}


def test_no_memory_by_the_deadline_is_busy_and_nothing_leaks(
    worker: RunningWorker, store: Store
) -> None:
    """Uploads that never end hold all memory; others are refused in time, then all is free."""
    free_bytes = store.statistics().memory_free_bytes
    holders = [worker.client() for _ in range(4)]
    lanes = [client.lane() for client in holders for _ in range(1)]
    for lane in lanes:
        [frame] = lane.put_frames(blocks_of(1, 2 * limits.MIB), deadline_ms=2_000)
        lane.send(frame[:-1])
    client = worker.client()
    assert client.exists(os.urandom(32)) == [0]
    for lane in lanes:
        assert lane.is_closed_by_peer()
    statistics = store.statistics()
    assert statistics.memory_free_bytes + statistics.memory_clean_bytes >= free_bytes
    assert_all_there_after_put(client.lane())


def assert_all_there_after_put(lane: Lane) -> None:
    blocks = blocks_of(4, 2 * limits.MIB)
    assert lane.put(blocks) == [Status.OK] * 4
    assert_all_there(lane, blocks)


def test_sessions_at_once_over_a_store_that_evicts(worker: RunningWorker) -> None:
    """Four writers put more than the file holds; whatever is still there is right."""

    def one(number: int) -> tuple[int, int]:
        lane = worker.client().lane()
        hits = wrong = 0
        for _ in range(25):
            blocks = blocks_of(4, 1 * limits.MIB)
            lane.put(blocks)
            for index, item in lane.get(ids_of(blocks)).items():
                hits += item.status is Status.OK
                wrong += item.status is Status.OK and item.payload != blocks[index].data
        return hits, wrong

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    assert sum(wrong for _, wrong in results) == 0
    assert sum(hits for hits, _ in results) > 200
