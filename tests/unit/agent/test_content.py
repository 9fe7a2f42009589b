"""What is on a disk, and when its fingerprint changes."""

import random
import re
import struct
from dataclasses import replace

import pytest

from memkv.agent.content import Kind, judge
from memkv.agent.disks import BlockDevice
from memkv.agent.state import FINGERPRINT
from memkv.limits import GIB, SECTOR_BYTES
from memkv.store.foreign import PROBE_BYTES
from memkv.store.layout import SUPERBLOCK_MAGIC, Superblock, encode_superblock

ZEROS = bytes(PROBE_BYTES)
DISK = BlockDevice("sda", (8, 0), 8 * GIB, serial="S1", transport="sata")
STORE = Superblock(b"d" * 16, b"w" * 16, 1, 8 * GIB, 128 << 20, 60)


def with_bytes(offset: int, data: bytes) -> bytes:
    return ZEROS[:offset] + data + ZEROS[offset + len(data) :]


def store(superblock: Superblock, copies: tuple[int, ...] = (0, 1)) -> bytes:
    head = bytearray(ZEROS)
    for copy in copies:
        head[copy * SECTOR_BYTES : (copy + 1) * SECTOR_BYTES] = encode_superblock(superblock)
    return bytes(head)


def test_blank_disk() -> None:
    content = judge(DISK, ZEROS, ZEROS)
    assert content.kind is Kind.BLANK
    assert FINGERPRINT.fullmatch(content.fingerprint)
    assert content.fingerprint.startswith(f"sata-S1:{8 * GIB}:sha256-")


def test_store_keeps_its_fingerprint_while_it_is_used() -> None:
    first = judge(DISK, store(STORE), ZEROS)
    assert (first.kind, first.device_uuid, first.worker_uuid) == (Kind.MEMKV, b"d" * 16, b"w" * 16)
    for incarnation in range(2, 5):
        used = STORE._replace(incarnation=incarnation)
        tail = random.Random(incarnation).randbytes(PROBE_BYTES)
        assert judge(DISK, store(used), tail).fingerprint == first.fingerprint
        assert judge(DISK, store(used, (1,)), tail).fingerprint == first.fingerprint
    other = STORE._replace(device_uuid=b"e" * 16)
    assert judge(DISK, store(other), ZEROS).fingerprint != first.fingerprint


def test_every_byte_at_either_end_changes_the_fingerprint() -> None:
    seen = {judge(DISK, ZEROS, ZEROS).fingerprint}
    for offset in (0, 1, 510, 4095, PROBE_BYTES // 2, PROBE_BYTES - 1):
        for head, tail in ((with_bytes(offset, b"\1"), ZEROS), (ZEROS, with_bytes(offset, b"\1"))):
            content = judge(DISK, head, tail)
            assert content.kind is Kind.FOREIGN
            assert content.fingerprint not in seen
            seen.add(content.fingerprint)


@pytest.mark.parametrize("change", [{"serial": "S2"}, {"model": "other"}, {"wwid": "naa.5"},
                                    {"loop_file": "7:1"}])  # fmt: skip
def test_same_bytes_on_another_disk_have_another_fingerprint(change: dict[str, str]) -> None:
    other = replace(DISK, **change)  # type: ignore[arg-type]  # fields of text only
    for head in (ZEROS, store(STORE), with_bytes(7, b"x")):
        assert judge(other, head, ZEROS).fingerprint != judge(DISK, head, ZEROS).fingerprint


def test_fingerprint_is_the_disks_and_not_the_slots() -> None:
    moved = BlockDevice("sdq", (65, 3), 8 * GIB, serial="S1", transport="sata", by_path="other")
    assert judge(moved, ZEROS, ZEROS) == judge(DISK, ZEROS, ZEROS)


def test_formatting_that_was_cut_short_is_blank() -> None:
    """As the store itself judges; anything behind the first sector is somebody's."""
    torn = SUPERBLOCK_MAGIC + b"\7" * 100
    assert judge(DISK, with_bytes(0, torn), ZEROS).kind is Kind.BLANK
    assert judge(DISK, with_bytes(0, torn)[:-1] + b"\1", ZEROS).kind is Kind.FOREIGN
    assert judge(DISK, with_bytes(0, torn), with_bytes(9, b"\1")).kind is Kind.FOREIGN


@pytest.mark.parametrize(
    ("head", "tail", "description"),
    [
        (with_bytes(512, b"EFI PART"), ZEROS, "GPT"),
        (with_bytes(446, b"\x80" + bytes(63) + b"\x55\xaa"), ZEROS, "MBR"),
        (with_bytes(0x438, b"\x53\xef"), ZEROS, "ext4"),
        (with_bytes(0, b"XFSB"), ZEROS, "xfs"),
        (with_bytes(0, b"LUKS\xba\xbe"), ZEROS, "LUKS"),
        (with_bytes(512, b"LABELONE"), ZEROS, "LVM"),
        (with_bytes(4096, struct.pack("<I", 0xA92B4EFC)), ZEROS, "RAID"),
        (with_bytes(65536 + 64, b"_BHRfS_M"), ZEROS, "btrfs"),
        (with_bytes(130 * 1024, struct.pack("<Q", 0x00BAB10C)), ZEROS, "ZFS"),
        (with_bytes(4086, b"SWAPSPACE2"), ZEROS, "swap"),
        (with_bytes(0, b"bluestore block device"), ZEROS, "Ceph"),
        (ZEROS, with_bytes(PROBE_BYTES - 512, b"EFI PART"), "rest of a partition table"),
        (ZEROS, with_bytes(5, b"x"), "unknown data at the end"),
        (with_bytes(5, b"x"), ZEROS, "unknown data"),
    ],
)
def test_foreign_content_is_told_to_people(head: bytes, tail: bytes, description: str) -> None:
    content = judge(DISK, head, tail)
    assert content.kind is Kind.FOREIGN
    assert re.search(description, content.description)
