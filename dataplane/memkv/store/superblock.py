"""The superblock: whose drive this is, how it is cut, and how often it was opened.

Two copies, sectors 0 and 1, written and flushed one after the other, so that one is always whole.
A drive is formatted only when its first MiB is zero: anything else may be somebody's data.
"""

from collections.abc import Generator
from typing import NamedTuple

from memkv.errors import ConfigError
from memkv.limits import GIB, MIB, SECTOR_BYTES, SEGMENT_BYTES_MAX, SEGMENTS_PER_STORE_MIN
from memkv.store.config import Randomness, StoreConfig
from memkv.store.foreign import PROBE_BYTES, describe, signature_at_end
from memkv.store.layout import (
    FORMAT_VERSION,
    SUPERBLOCK_AREA_BYTES,
    SUPERBLOCK_MAGIC,
    Superblock,
    aligned_buffer,
    decode_superblock,
    encode_superblock,
)
from memkv.store.requests import IoKind, IoRequest

SEGMENT_BYTES_MIN = 8 * SECTOR_BYTES  # a header, a footer and a few records
SEGMENTS_MIN = 8  # spare ones, an open one for each queue, and some that hold blocks
COPIES = 2
DISCARD_BYTES = 16 * GIB  # of a drive being formatted, in one request; no reads wait meanwhile

Steps = Generator[list[IoRequest], None, None]


class _Copy(NamedTuple):
    """One copy as found: its version and content when whole."""

    version: int
    superblock: Superblock | None


def plan(capacity_bytes: int, config: StoreConfig, random: Randomness) -> Superblock:
    """Return the superblock of a new store. Raises ConfigError for a device that is too small."""
    room = capacity_bytes - SUPERBLOCK_AREA_BYTES
    size = config.segment_bytes or min(SEGMENT_BYTES_MAX, capacity_bytes // SEGMENTS_PER_STORE_MIN)
    size -= size % SECTOR_BYTES
    if size < SEGMENT_BYTES_MIN or room // max(size, 1) < SEGMENTS_MIN:
        raise ConfigError(
            f"the device has {capacity_bytes} bytes, too few for a store; give it at least"
            f" {4 * MIB} bytes (a pool of any use has gigabytes): a larger device, or a file made"
            " anew with more --capacity"
        )
    worker_uuid = config.worker_uuid or random.getrandbits(128).to_bytes(16, "little")
    device_uuid = random.getrandbits(128).to_bytes(16, "little")
    return Superblock(device_uuid, worker_uuid, 0, capacity_bytes, size, room // size)


class SuperblockOpener:
    """Reads, checks and renews the superblock. `steps` yields I/O; afterwards `result` is set."""

    def __init__(
        self, capacity_bytes: int, config: StoreConfig, random: Randomness, discards: bool = False
    ) -> None:
        """`discards`: tell a drive that is formatted that all of it is unused."""
        self._discards = discards
        self.discarded_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._config = config
        self._random = random
        self.formatted = False
        self._failed = False
        self.result: Superblock | None = None

    def steps(self) -> Steps:
        """Open the drive for one more incarnation. Raises ConfigError when it is unfit."""
        if self._capacity_bytes < SUPERBLOCK_AREA_BYTES + SEGMENTS_MIN * SEGMENT_BYTES_MIN:
            plan(self._capacity_bytes, self._config, self._random)
        area = aligned_buffer(COPIES * SECTOR_BYTES)
        yield from self._read_copies(area)
        found = self._newest(area)
        if found is None:
            area = aligned_buffer(SUPERBLOCK_AREA_BYTES)
            yield from self._read(area)
            found = self._newest(area)  # where only the first attempt to read failed
        if found is None:
            yield from self._refuse_foreign(area)
            found = plan(self._capacity_bytes, self._config, self._random)
            self.formatted = True
            if self._discards:  # before our first byte is written: nothing to be hit by it
                yield from self._discard(SUPERBLOCK_AREA_BYTES, self._capacity_bytes)
        self._check(found)
        found = found._replace(incarnation=found.incarnation + 1)
        for copy in range(COPIES):
            page = encode_superblock(found)
            yield [IoRequest(IoKind.WRITE, copy * SECTOR_BYTES, [page], self._note)]
            yield [IoRequest(IoKind.FLUSH, 0, [], self._note)]
            if self._failed:
                raise ConfigError(
                    "the superblock cannot be written; the device may be read-only, full or broken:"
                    " check its permissions, the free space of its file system, and dmesg"
                )
        self.result = found

    def _discard(self, start: int, end: int) -> Steps:
        """Discard in pieces, up to the first that is refused, which is harmless."""
        for offset in range(start, end, DISCARD_BYTES):
            length = min(DISCARD_BYTES, end - offset)
            yield [IoRequest(IoKind.DISCARD, offset, [], self._note, length)]
            refused, self._failed = self._failed, False
            if refused:
                return
            self.discarded_bytes += length

    def _read(self, area: memoryview) -> Steps:
        yield [IoRequest(IoKind.READ, 0, [area], self._note)]
        if self._failed:
            raise ConfigError(
                "the first MiB of the device cannot be read; check the drive (smartctl, dmesg)"
            )

    def _read_copies(self, area: memoryview) -> Steps:
        """Read each copy alone: a sector that cannot be read counts as one that is not whole."""
        for copy in range(COPIES):
            page = area[copy * SECTOR_BYTES :][:SECTOR_BYTES]
            yield [IoRequest(IoKind.READ, copy * SECTOR_BYTES, [page], self._note)]
            if self._failed:
                page[:] = bytes(SECTOR_BYTES)
            self._failed = False

    def _note(self, ok: bool, _error: int) -> None:
        self._failed = self._failed or not ok

    def _newest(self, area: memoryview) -> Superblock | None:
        """Return the newest whole copy. Raises ConfigError for another format."""
        copies = [self._read_copy(area[i * SECTOR_BYTES :][:SECTOR_BYTES]) for i in range(COPIES)]
        for copy in copies:
            if copy.version and copy.version != FORMAT_VERSION:
                raise ConfigError(
                    f"the device has store format {copy.version}, this program reads"
                    f" {FORMAT_VERSION}; use the version of MemKV that wrote it, or wipe the first"
                    " MiB to format it anew (all blocks on it are lost)"
                )
        whole = [copy.superblock for copy in copies if copy.superblock is not None]
        return max(whole, key=lambda superblock: superblock.incarnation, default=None)

    def _refuse_foreign(self, area: memoryview) -> Steps:
        """Raise ConfigError unless the area is blank, or formatting it was cut short, and nothing
        that is known keeps its mark at the other end of the device.

        Other bytes there are what is left of an earlier use: only the first MiB is ever asked to
        be wiped.
        """
        # The first copy is written first: torn, it begins with our magic and all else is zero.
        rest = area[SECTOR_BYTES:] if area[:8] == SUPERBLOCK_MAGIC else area
        tail = aligned_buffer(PROBE_BYTES)
        start = max(SUPERBLOCK_AREA_BYTES, self._capacity_bytes - PROBE_BYTES)
        last = tail[PROBE_BYTES - (self._capacity_bytes - start) :]
        yield [IoRequest(IoKind.READ, start, [last], self._note)]
        if self._failed:
            raise ConfigError(
                "the last MiB of the device cannot be read; check the drive (smartctl, dmesg)"
            )
        if bytes(rest).strip(b"\0"):
            found = describe(bytes(area), bytes(tail))
        else:
            found = signature_at_end(bytes(tail))
        if found:
            raise ConfigError(
                f"the device holds data that is not a MemKV store ({found}), and nothing on it was"
                " touched; if nobody wants it, wipe it first, for example with: wipefs --all DEVICE"
                " && dd if=/dev/zero of=DEVICE bs=1M count=1 conv=notrunc"
            )

    def _read_copy(self, page: memoryview) -> _Copy:
        decoded = decode_superblock(page)
        if decoded is None:
            return _Copy(0, None)
        version, superblock = decoded
        return _Copy(version, superblock if version == FORMAT_VERSION else None)

    def _check(self, found: Superblock) -> None:
        if found.capacity_bytes > self._capacity_bytes:
            raise ConfigError(
                f"the device was formatted with {found.capacity_bytes} bytes and has only"
                f" {self._capacity_bytes} now; restore its size, or wipe the first MiB"
            )
        wanted = self._config.worker_uuid
        if wanted is not None and wanted != found.worker_uuid:
            raise ConfigError(
                f"the device belongs to worker {found.worker_uuid.hex()}, not {wanted.hex()};"
                " point this worker at its own drive, or wipe the first MiB"
            )
