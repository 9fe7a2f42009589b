"""Erasing a disk: only the one, with only the content, that was approved; also after a crash.

Before the first write the sum of every sector that an erasure will zero is on disk. A crash leaves
some of them zero; the next attempt goes on only if every sector is zero or has its old sum. So what
somebody wrote meanwhile is never lost, and nobody has to approve a second time.
"""

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from memkv.agent.content import Kind, judge
from memkv.agent.disks import BlockDevice
from memkv.agent.opened import Disk, DiskChanged, OpenDisk
from memkv.limits import MIB, SECTOR_BYTES
from memkv.metadata.files import write_durably
from memkv.store.foreign import PROBE_BYTES

WIPE_CHUNK_BYTES = 32 * MIB  # a slow drive writes this in a second; who waits goes first then
WIPE_JOURNAL_BYTES = 256 * MIB
"""A crash repeats at most this. A flush of the journal for each chunk would cost the node's own
disk more than the wipe."""
_SUM_BYTES = 8
_ZERO = bytes(SECTOR_BYTES)


@dataclass(frozen=True, slots=True)
class Begun:
    """An erasure under way."""

    identity: str
    fingerprint: str
    """What was approved."""
    sums: str
    """Of the sectors of both ends before the first write, in hexadecimal."""
    wiped_bytes: int = 0
    """How far a wipe of the whole disk came."""


class Journal:
    """The erasures under way, on disk: a file for each disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, device: BlockDevice) -> Begun | None:
        """Return the erasure under way of a disk; None: there is none that can be read."""
        try:
            begun = Begun(**json.loads(self._path(device).read_text(encoding="ascii")))
        except (OSError, ValueError, TypeError):
            return None
        return begun if begun.identity == device.identity else None

    def write(self, device: BlockDevice, begun: Begun) -> None:
        """Keep it; on disk when this returns. OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._path(device), json.dumps(asdict(begun)).encode("ascii"))

    def forget(self, device: BlockDevice) -> None:
        """Drop it."""
        self._path(device).unlink(missing_ok=True)

    def _path(self, device: BlockDevice) -> Path:
        return self._folder / f"{hashlib.sha256(device.id.encode()).hexdigest()[:32]}.json"


def erase(
    device: BlockDevice, fingerprint: str, kind: Kind, open_disk: OpenDisk, journal: Journal
) -> None:
    """Zero both ends of a disk whose content has `fingerprint` and is of `kind`.

    The caller forgets it in the journal once it has kept what follows from it. DiskChanged: it has
    not, and nothing was written. DiskBusy: somebody has it open. OSError: the drive or the journal
    failed; call again.
    """
    with open_disk(device, exclusive=True) as disk:
        _check_or_resume(device, fingerprint, kind, disk, journal)
        _zero_ends(device, disk)


def wipe(
    device: BlockDevice, fingerprint: str, open_disk: OpenDisk, journal: Journal
) -> Generator[int, None, None]:
    """Zero a whole disk that has a MemKV store, a step at a time; yields the bytes done.

    Stopped anywhere, it goes on there when it is begun again. Journal and errors as `erase`.
    """
    with open_disk(device, exclusive=True) as disk:
        begun = _check_or_resume(device, fingerprint, Kind.MEMKV, disk, journal)
        _zero_ends(device, disk)  # first: nobody opens half a store
        done = begun.wiped_bytes
        try:
            while done < device.size_bytes:
                length = min(WIPE_CHUNK_BYTES, device.size_bytes - done)
                disk.zero(done, length)
                done += length
                if done - begun.wiped_bytes >= WIPE_JOURNAL_BYTES:
                    begun = replace(begun, wiped_bytes=done)
                    journal.write(device, begun)
                yield done
        finally:
            if done > begun.wiped_bytes:
                journal.write(device, replace(begun, wiped_bytes=done))


def _check_or_resume(
    device: BlockDevice, fingerprint: str, kind: Kind, disk: Disk, journal: Journal
) -> Begun:
    """Return what is under way. DiskChanged when the content is not what was approved."""
    head, tail = disk.read_ends()
    sums = _sums(head + tail)
    begun = journal.of(device)
    if begun is not None and begun.fingerprint == fingerprint and _is_rest_of(begun, head + tail):
        return begun
    content = judge(device, head, tail)
    if content.fingerprint != fingerprint or content.kind is not kind:
        raise DiskChanged(
            f"what is on {device.path} is not what was approved: {content.description}, fingerprint"
            f" {content.fingerprint} instead of {fingerprint}; nothing was written"
        )
    begun = Begun(device.identity, fingerprint, sums)
    journal.write(device, begun)
    return begun


def _zero_ends(device: BlockDevice, disk: Disk) -> None:
    for offset in (device.size_bytes - PROBE_BYTES, 0):
        disk.zero(offset, PROBE_BYTES)
    if any(end.strip(b"\0") for end in disk.read_ends()):
        raise OSError(5, "the drive does not keep what is written to it")


def _sectors(ends: bytes) -> Iterator[bytes]:
    return (ends[at : at + SECTOR_BYTES] for at in range(0, len(ends), SECTOR_BYTES))


def _sums(ends: bytes) -> str:
    sums = (hashlib.blake2b(page, digest_size=_SUM_BYTES).hexdigest() for page in _sectors(ends))
    return "".join(sums)


def _is_rest_of(begun: Begun, ends: bytes) -> bool:
    """Return whether every sector is as it was, or zero."""
    now = _sums(ends)
    if len(now) != len(begun.sums):
        return False
    width = 2 * _SUM_BYTES
    pairs = zip(_sectors(ends), range(0, len(now), width), strict=True)
    return all(
        page == _ZERO or now[at : at + width] == begun.sums[at : at + width] for page, at in pairs
    )
