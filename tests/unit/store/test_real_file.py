"""The store on a real file with its writer thread: put, get, delete, reopen."""

import random
from pathlib import Path

import pytest

from memkv import checksum, keys, pattern
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, Store, StoreConfig, StoreReader, open_store
from memkv.tenant import Tenant

CLOCK = SystemClock()
TENANT = Tenant.named("default")
CONFIG = StoreConfig(memory_bytes=24 * MIB, block_bytes_max=1 * MIB, segment_bytes=4 * MIB)
WAIT_MS = 20_000


@pytest.fixture(params=[True, False], ids=["io_uring", "pread"])
def use_io_uring(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def put(store: Store, number: int, length: int) -> PendingPut:
    block_id = keys.block_id(f"key {number}")
    data = pattern.block(number, length)
    seal = checksum.seal(data, block_id, TENANT.tag)
    request = PutRequest(block_id, length, seal.root, seal.sums, durable=True)
    pending = store.begin_put(TENANT, request, deadline_after_ms(CLOCK, WAIT_MS))
    assert isinstance(pending, PendingPut)
    pending.payload[:] = data
    assert pending.commit() is Status.OK
    return pending


def count_hits(reader: StoreReader, numbers: range, length: int) -> int:
    ids = keys.block_ids([f"key {number}" for number in numbers])
    hits = 0
    deadline_ns = deadline_after_ms(CLOCK, WAIT_MS)
    for position, result in reader.read(TENANT, ids, None, deadline_ns, verify=True):
        if result.status is Status.OK:
            assert pattern.first_wrong_byte(result.payload, numbers[position]) is None
            assert len(result.payload) == length
            hits += 1
        else:
            assert result.status is Status.MISS
        result.release()
    return hits


def test_durable_blocks_come_back_after_reopening_without_a_clean_close(
    tmp_path: Path, use_io_uring: bool
) -> None:
    length = 300_001
    path = str(tmp_path / "flash")
    device = FileDevice.create(path, 96 * MIB, direct=False, use_io_uring=use_io_uring)
    store = open_store(device, CONFIG, CLOCK, random.SystemRandom())
    assert store.recovery.formatted
    puts = [put(store, number, length) for number in range(100)]
    statuses = store.wait_durable(puts, deadline_after_ms(CLOCK, WAIT_MS))
    assert statuses == [Status.OK] * 100
    reader = store.new_reader()
    assert count_hits(reader, range(120), length) == 100
    gone = keys.block_ids([f"key {number}" for number in range(10)])
    store.delete(TENANT, gone, deadline_after_ms(CLOCK, WAIT_MS))
    assert count_hits(reader, range(100), length) == 90
    reader.close()
    store.close(clean=False)

    store = open_store(device, CONFIG, CLOCK, random.SystemRandom())
    assert store.recovery.blocks == 90
    assert store.superblock.incarnation == 2
    reader = store.new_reader()
    assert count_hits(reader, range(100), length) == 90
    reader.close()
    store.close()
    device.close()


def test_a_full_drive_evicts_and_goes_on(
    tmp_path: Path, use_io_uring: bool
) -> None:
    length = 500_000
    path = str(tmp_path / "flash")
    device = FileDevice.create(path, 48 * MIB, direct=False, use_io_uring=use_io_uring)
    store = open_store(device, CONFIG, CLOCK, random.SystemRandom())
    for number in range(300):
        put(store, number, length)
    assert store.flush(deadline_after_ms(CLOCK, WAIT_MS))
    reader = store.new_reader()
    hits = count_hits(reader, range(300), length)
    assert 40 <= hits <= 90
    blocks = store.statistics().blocks  # the next segment may have been reclaimed meanwhile
    assert hits - 8 <= blocks <= hits
    reader.close()
    store.close()
    store = open_store(device, CONFIG, CLOCK, random.SystemRandom())
    assert hits - 16 <= store.recovery.blocks <= hits
    store.close()
    device.close()
