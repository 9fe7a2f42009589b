"""Any flipped bit of a record: a miss, or the same bytes where the bit means nothing."""

import random

import pytest

from memkv import checksum, keys, pattern
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, Store, StoreConfig, open_store
from memkv.store.checks import ALL_CHECKS, Checks
from memkv.store.layout import RecordHeader
from memkv.store.records import Place, judge
from memkv.tenant import Tenant
from memkv.testing.clock import ManualClock
from memkv.testing.device import WriteListDevice

TENANT = Tenant.named("default")
LENGTH = 1000
BLOCK_ID = keys.block_id("key")
DATA = pattern.block(7, LENGTH)
CLOCK = ManualClock()
CONFIG = StoreConfig(
    memory_bytes=128 * KIB, block_bytes_max=8 * KIB, index_blocks_max=100,
    segment_bytes=32 * KIB, threads=False,
)  # fmt: skip
DEADLINE_NS = CLOCK.monotonic_ns() + 1


def open_on(device: WriteListDevice) -> Store:
    return open_store(device, CONFIG, CLOCK, random.Random(1))


def stored_image(close: bool) -> tuple[bytearray, int]:
    """Return a drive with one block, and where its record starts."""
    device = WriteListDevice(1, size_bytes=MIB + 8 * 32 * KIB)
    store = open_on(device)
    seal = checksum.seal(DATA, BLOCK_ID, TENANT.tag)
    request = PutRequest(BLOCK_ID, LENGTH, seal.root, seal.sums, durable=True)
    put = store.begin_put(TENANT, request, DEADLINE_NS)
    assert isinstance(put, PendingPut)
    put.payload[:] = DATA
    put.commit()
    assert store.wait_durable([put], DEADLINE_NS) == [Status.OK]
    store.close(clean=close)
    return device.image, device.image.index(DATA) - SECTOR_BYTES


def answer(image: bytearray) -> tuple[Status, bytes]:
    store = open_on(WriteListDevice(1, image=image))
    reader = store.new_reader()
    for _, result in reader.read(TENANT, BLOCK_ID, None, DEADLINE_NS, verify=True):
        return result.status, bytes(result.payload)
    raise AssertionError("no answer")


def test_every_bit_of_a_record_is_judged() -> None:
    image, offset = stored_image(close=True)
    record = memoryview(bytearray(image[offset : offset + 2 * SECTOR_BYTES]))
    header = judge(record, Place(offset, 0, 0), Checks(generation=False))
    assert isinstance(header, RecordHeader)
    place = Place(offset, header.sequence, header.nonce)
    meaning = 8 * (SECTOR_BYTES + LENGTH)
    for bit in range(8 * len(record)):
        record[bit // 8] ^= 1 << bit % 8
        found = judge(
            record, place, ALL_CHECKS, block_id=BLOCK_ID, tenant_tag=TENANT.tag, payload=True
        )
        if bit < meaning:
            assert not isinstance(found, RecordHeader), f"bit {bit} was not noticed"
        else:
            assert isinstance(found, RecordHeader), f"bit {bit} lies in the padding"
        record[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("close", [True, False], ids=["footer", "scan"])
def test_a_store_on_a_drive_with_a_flipped_bit_misses_or_answers_right(close: bool) -> None:
    image, offset = stored_image(close)
    randomness = random.Random(3)
    misses = 0
    for _ in range(300):
        flipped = bytearray(image)
        flipped[offset + randomness.randrange(2 * SECTOR_BYTES)] ^= 1 << randomness.randrange(8)
        status, data = answer(flipped)
        assert status in (Status.OK, Status.MISS, Status.CORRUPT)
        assert (data == DATA) == (status is Status.OK)
        misses += status is not Status.OK
    assert misses > 100
