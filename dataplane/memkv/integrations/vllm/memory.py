"""How a batch of blocks meets the client: in place, or through a copy of them (staging.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memkv.integrations.vllm.geometry import BlockRuns
from memkv.integrations.vllm.planner import PlacedBlock

Pieces = tuple[list[int], list[int]]
"""Addresses and sizes of one block's bytes, in the order in which they are stored."""


class Batch(Protocol):
    """Blocks of one call of the client, from its preparation to its end."""

    pieces: list[Pieces]
    is_private: bool
    """Are its pieces no memory of the engine, so that it does not matter who still writes there?"""

    def is_ready(self) -> bool:
        """May the call begin? A put waits until the engine's bytes have been copied out."""

    def land(self, arrived: Sequence[bool]) -> bool:
        """A get is over: bring the blocks that arrived to their places. False: they cannot be
        used."""

    def is_landed(self) -> bool:
        """Is every block in its place?"""

    def precede(self) -> None:
        """What the model begins from now on finds in their places what `land` was told of."""

    def close(self) -> None:
        """Nobody uses the pieces any more."""


class BlockMemory(Protocol):
    """An engine's cache, as the mover sees it."""

    payload_bytes: tuple[int, ...]
    """Of a block, for each group."""

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        """Prepare memory that blocks are read into; None while there is no room."""

    def begin_put(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        """Prepare memory that blocks are stored from; None while there is no room."""

    def close(self) -> None: ...


class InPlaceBatch:
    """The client reads and writes the engine's own memory."""

    is_private = False

    def __init__(self, pieces: list[Pieces]) -> None:
        self.pieces = pieces

    def is_ready(self) -> bool:
        return True

    def land(self, arrived: Sequence[bool]) -> bool:
        return True

    def is_landed(self) -> bool:
        return True

    def precede(self) -> None:
        pass

    def close(self) -> None:
        pass


class InPlaceMemory:
    """A cache that the CPU reaches: no byte is copied by this process."""

    def __init__(self, groups: Sequence[BlockRuns]) -> None:
        self._groups = groups
        self.payload_bytes = tuple(group.payload_bytes for group in groups)

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> InPlaceBatch:
        return InPlaceBatch([self._groups[block.group].pieces(block.place) for block in blocks])

    begin_put = begin_get

    def close(self) -> None:
        pass


class CopiedLoads:
    """Loads by way of copies, stores from the cache itself."""

    def __init__(self, copied: BlockMemory, in_place: BlockMemory) -> None:
        self._copied = copied
        self._in_place = in_place
        self.payload_bytes = in_place.payload_bytes

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        return self._copied.begin_get(blocks)

    def begin_put(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        return self._in_place.begin_put(blocks)

    def close(self) -> None:
        self._copied.close()
        self._in_place.close()
