"""Memory of somebody else that flash is read into without a copy in DRAM.

A record is read in one operation: its header page and its last page into two sectors of DRAM, all
between straight into the target. How long the block is stands in the header, so that of the last
page only what belongs to the block is copied.
"""

from collections.abc import Sequence

from memkv._hotpath import address_of
from memkv.limits import SECTOR_BYTES

BOUNCE_SECTORS = 2  # header page and last page
ENDS_BYTES = BOUNCE_SECTORS * SECTOR_BYTES
PARTS_MAX = 1000  # a vector of the kernel has 1024 pieces


class Target:
    """Where one block goes: writable pieces of memory that outlive the read. Aligned ones are read
    into without a copy."""

    __slots__ = ("_direct", "parts", "room")

    def __init__(self, parts: Sequence[memoryview], room: int) -> None:
        """`room`: bytes of all pieces. Without pieces nothing is read straight into it."""
        self.parts = parts
        self.room = room
        self._direct = 0 < len(parts) <= PARTS_MAX and _aligned(parts)

    def takes(self, sectors: int) -> bool:
        """Say whether a record of so many sectors may be read straight into it."""
        body = (sectors - BOUNCE_SECTORS) * SECTOR_BYTES
        return self._direct and 0 < body < self.room

    def first(self, size_bytes: int) -> list[memoryview]:
        """Return the pieces of its first `size_bytes`."""
        found: list[memoryview] = []
        for part in self.parts:
            if size_bytes <= 0:
                break
            found.append(part[:size_bytes])
            size_bytes -= len(part)
        return found

    def put(self, offset: int, data: memoryview) -> None:
        """Copy `data` to `offset`; it fits."""
        for part in self.parts:
            if not data.nbytes:
                return
            if offset < len(part):
                piece = data[: len(part) - offset]
                part[offset : offset + len(piece)] = piece
                data = data[len(piece) :]
                offset = 0
            else:
                offset -= len(part)

    def wipe(self, sectors: int) -> None:
        """Clear what a drive wrote that may be another tenant's."""
        for piece in self.first((sectors - BOUNCE_SECTORS) * SECTOR_BYTES):
            piece[:] = bytes(len(piece))


def _aligned(parts: Sequence[memoryview]) -> bool:
    return all(address_of(part) % SECTOR_BYTES == 0 for part in parts) and all(
        len(part) % SECTOR_BYTES == 0 for part in parts[:-1]
    )
