"""What is on a disk, told from its first and last MiB, and the fingerprint of that."""

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum

from memkv.agent.disks import BlockDevice
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.store.layout import FORMAT_VERSION, SUPERBLOCK_MAGIC, Superblock, decode_superblock

PROBE_BYTES = MIB  # at both ends: partition tables, RAID and ZFS keep copies at the end
SUPERBLOCK_COPIES = 2
FINGERPRINT_DIGITS = 16
_ZEROS = bytes(PROBE_BYTES)


class Kind(Enum):
    """What a disk is to a store."""

    BLANK = "blank"
    MEMKV = "MemKV store"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Content:
    """What is on a disk."""

    kind: Kind
    description: str
    """For people."""
    fingerprint: str
    device_uuid: bytes = b""
    worker_uuid: bytes = b""


def judge(device: BlockDevice, head: bytes, tail: bytes) -> Content:
    """Return what the first and the last MiB of a disk say."""
    newest = _superblock(head)
    if newest is not None:
        # Not what else is there: the incarnation changes with every start of the worker.
        mark = b"store" + newest.device_uuid
        fingerprint = _fingerprint(device, mark)
        return Content(
            Kind.MEMKV, Kind.MEMKV.value, fingerprint, newest.device_uuid, newest.worker_uuid
        )
    fingerprint = _fingerprint(device, b"bytes" + hashlib.sha256(head + tail).digest())
    if _is_blank(head) and tail == _ZEROS:
        return Content(Kind.BLANK, Kind.BLANK.value, fingerprint)
    return Content(Kind.FOREIGN, describe(head, tail), fingerprint)


def _fingerprint(device: BlockDevice, mark: bytes) -> str:
    digest = hashlib.sha256(device.identity.encode() + b"\0" + mark).hexdigest()
    return f"{device.id}:{device.size_bytes}:sha256-{digest[:FINGERPRINT_DIGITS]}"


def _superblock(head: bytes) -> Superblock | None:
    found = []
    for copy in range(SUPERBLOCK_COPIES):
        decoded = decode_superblock(memoryview(head)[copy * SECTOR_BYTES :][:SECTOR_BYTES])
        if decoded is not None and decoded[0] == FORMAT_VERSION:
            found.append(decoded[1])
    return max(found, key=lambda superblock: superblock.incarnation, default=None)


def _is_blank(head: bytes) -> bool:
    """As the store judges: zero, or its own formatting was cut short in the first sector."""
    torn = head.startswith(SUPERBLOCK_MAGIC) and not _is_other_format(head)
    return head[SECTOR_BYTES:] == _ZEROS[SECTOR_BYTES:] if torn else head == _ZEROS


def _is_other_format(head: bytes) -> bool:
    decoded = decode_superblock(memoryview(head)[:SECTOR_BYTES])
    return decoded is not None and decoded[0] != FORMAT_VERSION


# offset, bytes found there, what it is; as blkid(8) looks for them.
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (512, b"EFI PART", "partition table (GPT)"),
    (4096, b"EFI PART", "partition table (GPT)"),
    (0, b"LUKS\xba\xbe", "LUKS volume"),
    *((sector * 512, b"LABELONE", "LVM physical volume") for sector in range(4)),
    (0, b"XFSB", "xfs file system"),
    (0x438, b"\x53\xef", "ext2, ext3 or ext4 file system"),
    (64 * KIB + 0x40, b"_BHRfS_M", "btrfs file system"),
    (0, struct.pack("<I", 0xA92B4EFC), "RAID member (md)"),
    (4096, struct.pack("<I", 0xA92B4EFC), "RAID member (md)"),
    (0, b"bluestore block device", "Ceph OSD"),
    (4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), "bcache device"),
    (1024, struct.pack("<I", 0xF2F52010), "f2fs file system"),
    (3, b"NTFS    ", "NTFS file system"),
    (3, b"EXFAT   ", "exFAT file system"),
    (82, b"FAT32   ", "FAT file system"),
    (54, b"FAT1", "FAT file system"),
    (32 * KIB + 1, b"CD001", "ISO 9660 image"),
    (4086, b"SWAPSPACE2", "swap space"),
    *((128 * KIB + k * KIB, struct.pack("<Q", 0x00BAB10C), "ZFS member") for k in range(128)),
)
_TAIL_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (PROBE_BYTES - 512, b"EFI PART", "rest of a partition table (GPT)"),
    (PROBE_BYTES - 4096, b"EFI PART", "rest of a partition table (GPT)"),
    (PROBE_BYTES - 8 * KIB, struct.pack("<I", 0xA92B4EFC), "RAID member (md)"),
    (PROBE_BYTES - 64 * KIB, struct.pack("<I", 0xA92B4EFC), "RAID member (md)"),
)
_BOOT_SIGNATURE = b"\x55\xaa"


def describe(head: bytes, tail: bytes) -> str:
    """Return for people what foreign content probably is."""
    if head.startswith(SUPERBLOCK_MAGIC) and _is_other_format(head):
        return "MemKV store of another format"
    for block, magics in ((head, _MAGICS), (tail, _TAIL_MAGICS)):
        for offset, magic, name in magics:
            if block[offset : offset + len(magic)] == magic:
                return name
    if head[510:512] == _BOOT_SIGNATURE and any(head[446:510]):
        return "partition table (MBR)"
    return "unknown data" if head.strip(b"\0") else "unknown data at the end"
