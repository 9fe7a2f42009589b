"""A device in memory that keeps un-flushed writes in a list and does to them what drives do.

Everything follows from the seed. Reads see un-flushed writes, as those of a real device do. At a
crash each of them is kept, lost or torn per 512 bytes, in an order of its own. Operations complete
when `wait` is called, in a shuffled order, so a flush covers exactly the writes whose tokens came
back before it.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memkv.limits import SECTOR_BYTES
from memkv.testing.faults import HONEST, Faults

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEAR_BYTES = 512
EIO = 5
EOPNOTSUPP = 95
ETIMEDOUT = 110


class PowerLoss(Exception):
    """The simulated machine stopped; go on with `device.after_crash()`."""


class PendingWrite:
    """One write that no flush has covered."""

    __slots__ = ("before", "data", "offset")

    def __init__(self, offset: int, data: bytes, before: bytes) -> None:
        self.offset = offset
        self.data = data
        self.before = before


class WriteListDevice:
    """Implements `memkv.io.device.Device` over a bytearray. Not thread-safe."""

    def __init__(self, seed: int, faults: Faults = HONEST, size_bytes: int = 0,
                 image: bytearray | None = None) -> None:  # fmt: skip
        """`image` is taken over; without it the device is zeroed."""
        self.random = random.Random(seed)
        self.faults = faults
        self.image = bytearray(size_bytes) if image is None else image
        self.operations = 0
        self.crashed = False
        self.written: list[tuple[int, int]] = []
        self._written_known: set[tuple[int, int]] = set()
        self._pending: list[PendingWrite] = []
        self._broken_kind = ""
        self.discard_bytes_max = len(self.image)
        self.can_fill = True
        self.discarded: Counter[str] = Counter()
        """Discards, by what the range reads as since."""
        self.unreadable: set[int] = set()
        """Sectors whose reads fail."""

    @property
    def size_bytes(self) -> int:
        """Size of the image."""
        return len(self.image)

    def open_queue(self, depth: int) -> "WriteListQueue":
        """Return a queue; its operations run when it waits."""
        return WriteListQueue(self, depth)

    def close(self) -> None:
        """Nothing to release."""

    # --- operations, called by queues --------------------------------------------------------

    def begin(self, kind: str) -> int | None:
        """Count an operation; return its forced result, None when it may go on."""
        if self.crashed:
            raise PowerLoss
        self.operations += 1
        faults = self.faults
        if faults.crash_at and self.operations >= faults.crash_at:
            self.crashed = True
            raise PowerLoss
        if faults.fail_at and self.operations == faults.fail_at:
            self._broken_kind = kind if faults.fail_for_good else ""
            return -faults.fail_errno
        if self._broken_kind == kind:
            return -faults.fail_errno
        return None

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers."""
        forced = self.begin("read")
        if forced is not None:
            return forced
        size = sum(map(len, buffers))
        if self.unreadable and not self.unreadable.isdisjoint(
            range(offset // SECTOR_BYTES, (offset + size) // SECTOR_BYTES)
        ):
            return -EIO
        self._rot(offset, size)
        if self._chance(self.faults.misdirected_read):
            offset = self._elsewhere(offset, size)
        with memoryview(self.image) as image:
            for buffer in buffers:
                buffer[:] = image[offset : offset + len(buffer)]
                offset += len(buffer)
        return size

    def write(self, offset: int, data: bytes) -> int:
        """Put a write on the list."""
        forced = self.begin("write")
        if forced is not None:
            if forced == 0:  # a short count: part of it may be there
                self._put(offset, data[: len(data) // 2])
                return len(data) // 2
            return forced
        where = (offset, len(data))
        if self._chance(self.faults.lost_write):
            return len(data)
        if self._chance(self.faults.misdirected_write):
            offset = self._elsewhere(offset, len(data))
        if where not in self._written_known:
            self._written_known.add(where)
            self.written.append(where)
        self._put(offset, data)
        return len(data)

    def flush(self, covered: int) -> int:
        """Make the oldest `covered` writes of the list stay."""
        forced = self.begin("flush")
        if forced is None and self._chance(self.faults.fail_flush):
            forced = -5
        if forced is not None and forced < 0:
            self._lose(self._pending[:covered])
            del self._pending[:covered]
            return forced
        del self._pending[:covered]
        return 0

    def discard(self, offset: int, length: int) -> int:
        """Forget a range: it reads as zeros from now on, as it was, or each sector as zeros, as
        ones or as it was. Like a write it may be undone, in part too, until a flush covers it."""
        forced = self.begin("discard")
        if forced is not None:
            return min(forced, 0)
        if self._chance(self.faults.discard_refused):
            return -EOPNOTSUPP
        outcome = self.random.choice(("zeros", "kept", "mixed"))
        self.discarded[outcome] += 1
        if outcome == "zeros":
            self._put(offset, bytes(length))
        elif outcome == "mixed":
            with memoryview(self.image) as image:
                sectors = [
                    self.random.choice((b"\0" * SECTOR_BYTES, b"\xff" * SECTOR_BYTES,
                                        bytes(image[at : at + SECTOR_BYTES])))
                    for at in range(offset, offset + length, SECTOR_BYTES)
                ]  # fmt: skip
            self._put(offset, b"".join(sectors))
        return 0

    @property
    def unflushed(self) -> int:
        """Writes on the list."""
        return len(self._pending)

    @property
    def pending(self) -> list[PendingWrite]:
        """A copy of the list, the oldest first; its writes never change."""
        return list(self._pending)

    def take_pending(self, writes: list[PendingWrite]) -> None:
        """Go on from a copied image with the list that belonged to it."""
        self._pending = list(writes)

    def _put(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        with memoryview(self.image) as image:
            self._pending.append(PendingWrite(offset, data, bytes(image[offset:end])))
        self.image[offset:end] = data

    def _chance(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    def _elsewhere(self, offset: int, size: int) -> int:
        same = [o for o, length in self.written if length == size and o != offset]
        return self.random.choice(same) if same else offset

    def _rot(self, offset: int, size: int) -> None:
        if self._chance(self.faults.rot):
            position = offset + self.random.randrange(size)
            self.image[position] ^= 1 << self.random.randrange(8)
        if offset >= self.faults.rot_from and self._chance(self.faults.rot_in_headers):
            sector = self.random.randrange(max(1, size // 4096))
            position = offset + 4096 * sector + self.random.randrange(*self.faults.rot_bytes)
            self.image[position] ^= 1 << self.random.randrange(8)

    # --- crash -------------------------------------------------------------------------------

    def crash(self) -> None:
        """Decide the fate of every un-flushed write; the device then is as after a reboot."""
        self._lose(self._pending)
        self._pending = []
        self.crashed = False

    def _lose(self, writes: list[PendingWrite]) -> None:
        """Take the writes back, then let some happen after all, in any order."""
        for write in reversed(writes):
            self.image[write.offset : write.offset + len(write.data)] = write.before
        order = list(writes)
        self.random.shuffle(order)
        for write in order:
            fate = self.random.random()
            if fate < self.faults.crash_kept:
                self.image[write.offset : write.offset + len(write.data)] = write.data
            elif fate < self.faults.crash_kept + self.faults.crash_torn:
                for at in range(0, len(write.data), TEAR_BYTES):
                    if self.random.random() < 0.5:
                        piece = write.data[at : at + TEAR_BYTES]
                        self.image[write.offset + at : write.offset + at + len(piece)] = piece

    def after_crash(self, faults: Faults | None = None, seed: int | None = None) -> None:
        """Crash now, and go on with other faults."""
        self.crash()
        if faults is not None:
            self.faults = faults
        if seed is not None:
            self.random = random.Random(seed)
        self.operations = 0
        self._broken_kind = ""


class WriteListQueue:
    """Implements `memkv.io.device.DeviceQueue`."""

    def __init__(self, device: WriteListDevice, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._waiting: list[tuple[int, str, int, list[memoryview]]] = []
        self._lengths: dict[int, int] = {}  # of discards, by token

    @property
    def in_flight(self) -> int:
        """Operations not yet returned by `wait`."""
        return len(self._waiting)

    def guard(self, fd: int) -> bool:
        """Nothing outlives this process."""
        return True

    def register_arena(self, arena: "Buffer") -> bool:
        """Refused, which is harmless."""
        return False

    def _add(self, token: int, kind: str, offset: int, buffers: Sequence["Buffer"]) -> None:
        if len(self._waiting) >= self._depth:
            raise ValueError(f"{self._depth} operations are in flight already")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        for view in views:
            if offset % 4096 or len(view) % 4096:
                raise ValueError("direct I/O wants whole sectors")
        if offset + sum(map(len, views)) > self._device.size_bytes:
            raise ValueError("beyond the end of the device")
        self._waiting.append((token, kind, offset, views))

    def read(self, token: int, offset: int, buffers: Sequence["Buffer"]) -> None:
        """Queue a read."""
        self._add(token, "read", offset, buffers)

    def write(self, token: int, offset: int, buffers: Sequence["Buffer"]) -> None:
        """Queue a write."""
        self._add(token, "write", offset, buffers)

    def flush(self, token: int) -> None:
        """Queue a flush of the writes that have completed until now."""
        self._add(token, "flush", 0, [])
        self._waiting[-1] = (token, "flush", self._device.unflushed, [])

    def discard(self, token: int, offset: int, length: int) -> None:
        """Queue a discard."""
        self._add(token, "discard", offset, [])
        if length % SECTOR_BYTES or not 0 < length <= self._device.size_bytes - offset:
            raise ValueError("not a range of the device")
        self._lengths[token] = length

    def wait(self, min_complete: int, timeout_ms: int) -> list[tuple[int, int]]:
        """Run a random part of what is queued, at least `min_complete`, in random order."""
        if self._device.crashed:
            raise PowerLoss  # what was lost with the power never completes
        if not self._waiting or min_complete == 0:
            return []
        randomness = self._device.random
        count = max(min_complete, randomness.randint(1, len(self._waiting)))
        results = []
        for _ in range(min(count, len(self._waiting))):
            token, kind, offset, views = self._waiting.pop(
                randomness.randrange(len(self._waiting))
            )
            if kind == "discard":
                results.append((token, self._device.discard(offset, self._lengths.pop(token))))
            else:
                results.append((token, self._run(kind, offset, views)))
        return results

    def _run(self, kind: str, offset: int, views: list[memoryview]) -> int:
        device = self._device
        if kind == "read":
            return device.read(offset, views)
        if kind == "write":
            return device.write(offset, b"".join(views))
        return device.flush(min(offset, device.unflushed))

    def close(self) -> None:
        """Drop what is queued."""
        self._waiting = []
