"""What is on a disk, told from its first and last MiB, and the fingerprint of that."""

import hashlib
from dataclasses import dataclass
from enum import Enum

from memkv.agent.disks import BlockDevice
from memkv.limits import SECTOR_BYTES
from memkv.store.foreign import PROBE_BYTES, describe, is_other_format
from memkv.store.layout import FORMAT_VERSION, SUPERBLOCK_MAGIC, Superblock, decode_superblock

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
    torn = head.startswith(SUPERBLOCK_MAGIC) and not is_other_format(head)
    return head[SECTOR_BYTES:] == _ZEROS[SECTOR_BYTES:] if torn else head == _ZEROS
