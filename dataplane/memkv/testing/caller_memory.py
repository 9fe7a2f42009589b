"""Memory of a caller that a store reads blocks into (`read_into`), watched for strange writes."""

import mmap
import random

from memkv.limits import SECTOR_BYTES
from memkv.store.direct import Target

FILL = 0xAA
MISALIGNED_CHANCE = 0.2  # such a block comes by way of DRAM
SPLIT_CHANCE = 0.5


class CallerMemory:
    """A slot of memory for each block of a call, in one or two pieces, full of `FILL`.

    Use it for one call at a time, and `wipe` it after each.
    """

    def __init__(self, slots: int, room: int) -> None:
        """`room`: bytes a block may have at most."""
        sectors = -(-room // SECTOR_BYTES) + 1  # one more, for what is not aligned
        self._room = room
        self._slot_bytes = sectors * SECTOR_BYTES
        self._starts = [0] * slots
        self._mapping = mmap.mmap(-1, slots * self._slot_bytes)
        self._view = memoryview(self._mapping)
        self._untouched = bytes([FILL]) * len(self._mapping)
        self.wipe()

    def targets(self, count: int, randomness: random.Random) -> list[Target]:
        """Return a target for each block of a call."""
        found = []
        for slot in range(count):
            start = slot * self._slot_bytes
            if randomness.random() < MISALIGNED_CHANCE:
                start += randomness.randrange(1, SECTOR_BYTES)
            self._starts[slot] = start
            memory = self.slot(slot, self._room)
            parts = [memory]
            if self._room > SECTOR_BYTES and randomness.random() < SPLIT_CHANCE:
                parts = [memory[:SECTOR_BYTES], memory[SECTOR_BYTES:]]
            found.append(Target(parts, self._room))
        return found

    def slot(self, slot: int, length: int) -> memoryview:
        """Return the first `length` bytes of a block's memory."""
        start = self._starts[slot]
        return self._view[start : start + length]

    def is_overrun(self, slot: int, length: int) -> bool:
        """Say whether bytes of a slot were written that lie around a block of this length."""
        first, start = slot * self._slot_bytes, self._starts[slot]
        around = self._mapping[first:start]
        around += self._mapping[start + length : first + self._slot_bytes]
        return not self._untouched.startswith(around)

    def wipe(self) -> None:
        """Make all of it as it was at first."""
        self._mapping[:] = self._untouched

    def is_untouched(self) -> bool:
        """Say whether nothing was written since the last `wipe`."""
        return self._mapping[:] == self._untouched
