"""What foreign data probably is, told from the first and the last MiB of a drive."""

import struct

from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.store.layout import FORMAT_VERSION, SUPERBLOCK_MAGIC, decode_superblock

PROBE_BYTES = MIB  # at both ends: partition tables, RAID and ZFS keep copies at the end

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


def is_other_format(head: bytes) -> bool:
    """Return whether a MemKV store of another format begins here."""
    decoded = decode_superblock(memoryview(head)[:SECTOR_BYTES])
    return decoded is not None and decoded[0] != FORMAT_VERSION


def signature_at_end(tail: bytes) -> str:
    """Return what the last MiB of a drive is known by; "": by nothing."""
    for offset, magic, name in _TAIL_MAGICS:
        if tail[offset : offset + len(magic)] == magic:
            return name
    return ""


def describe(head: bytes, tail: bytes) -> str:
    """Return for people what foreign content probably is."""
    if head.startswith(SUPERBLOCK_MAGIC) and is_other_format(head):
        return "MemKV store of another format"
    for offset, magic, name in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    at_end = signature_at_end(tail)
    if at_end:
        return at_end
    if head[510:512] == _BOOT_SIGNATURE and any(head[446:510]):
        return "partition table (MBR)"
    return "unknown data" if head.strip(b"\0") else "unknown data at the end"
