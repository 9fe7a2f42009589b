"""Opening a drive: blank, ours, foreign, too small, of another format, of another worker."""

import random
import struct
from dataclasses import replace

import pytest

from memkv.errors import ConfigError
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.store.api import StoreConfig, open_store
from memkv.store.layout import decode_superblock, seal_sector
from memkv.testing.clock import ManualClock
from memkv.testing.device import WriteListDevice

CONFIG = StoreConfig(
    memory_bytes=256 * KIB, block_bytes_max=8 * KIB, index_blocks_max=100,
    segment_bytes=32 * KIB, threads=False,
)  # fmt: skip
SIZE = MIB + 8 * 32 * KIB


def open_on(device: WriteListDevice, config: StoreConfig = CONFIG) -> bytes:
    """Open and close; return the worker's UUID."""
    store = open_store(device, config, ManualClock(), random.Random(5))
    uuid = store.superblock.worker_uuid
    store.close()
    return uuid


def formatted() -> WriteListDevice:
    device = WriteListDevice(1, size_bytes=SIZE)
    open_on(device)
    return device


def test_each_open_is_another_incarnation_of_the_same_worker() -> None:
    device = formatted()
    first = decode_superblock(memoryview(device.image)[:SECTOR_BYTES])
    open_on(device)
    second = decode_superblock(memoryview(device.image)[SECTOR_BYTES:][:SECTOR_BYTES])
    assert first is not None
    assert second is not None
    assert (first[1].incarnation, second[1].incarnation) == (1, 2)
    assert second[1] == first[1]._replace(incarnation=2)


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_is_survived(copy: int) -> None:
    device = formatted()
    uuid = open_on(device)
    device.image[copy * SECTOR_BYTES + 30] ^= 1
    assert open_on(device) == uuid


def test_a_drive_with_other_data_is_refused() -> None:
    device = WriteListDevice(1, size_bytes=SIZE)
    device.image[1080] = 0x53  # the magic of ext4 lies here
    before = bytes(device.image)
    with pytest.raises(ConfigError, match=r"not a MemKV store.*dd if"):
        open_on(device)
    assert device.image == before


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [(1080, b"\x53\xef", "ext4 file system"), (512, b"EFI PART", r"partition table \(GPT\)"),
     (64 * KIB + 64, b"_BHRfS_M", "btrfs"), (-512, b"EFI PART", "rest of a partition table"),
     (-8 * KIB, struct.pack("<I", 0xA92B4EFC), "RAID member")],
)  # fmt: skip
def test_what_is_there_is_named_and_stays(at: int, magic: bytes, name: str) -> None:
    """Also where only the end of the device tells it, which wiping the first MiB leaves."""
    device = WriteListDevice(1, size_bytes=SIZE + 4 * MIB)
    at %= device.size_bytes
    device.image[at : at + len(magic)] = magic
    before = bytes(device.image)
    with pytest.raises(ConfigError, match=f"not a MemKV store.*{name}.*nothing on it was touched"):
        open_on(device)
    assert device.image == before


def test_what_an_earlier_store_left_behind_its_first_mib_is_no_obstacle() -> None:
    device = formatted()
    device.image[:MIB] = bytes(MIB)
    open_on(device)


def test_formatting_that_was_cut_short_is_done_again() -> None:
    device = formatted()
    device.image[512:] = bytes(len(device.image) - 512)  # only half of the first copy got there
    device.image[100] ^= 1
    open_on(device)


def test_both_copies_damaged_is_refused() -> None:
    device = formatted()
    device.image[30] ^= 1
    device.image[SECTOR_BYTES + 30] ^= 1
    with pytest.raises(ConfigError, match="not a MemKV store"):
        open_on(device)


def test_another_format_is_refused_with_its_number() -> None:
    device = formatted()
    for copy in range(2):
        page = memoryview(device.image)[copy * SECTOR_BYTES :][:SECTOR_BYTES]
        page[8] = 9
        seal_sector(page)
    with pytest.raises(ConfigError, match="store format 9"):
        open_on(device)


def test_a_drive_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        open_on(WriteListDevice(1, size_bytes=MIB))


def test_a_drive_that_shrank_is_refused() -> None:
    device = WriteListDevice(1, size_bytes=SIZE + 32 * KIB)
    open_on(device)
    del device.image[-SECTOR_BYTES:]
    with pytest.raises(ConfigError, match="restore its size"):
        open_on(device)


def test_another_workers_drive_is_refused() -> None:
    device = formatted()
    with pytest.raises(ConfigError, match="belongs to worker"):
        open_on(device, replace(CONFIG, worker_uuid=b"another worker!!"))


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="Raise memory"):
        open_on(WriteListDevice(1, size_bytes=SIZE), replace(CONFIG, memory_bytes=16 * KIB))
