"""An engine's cache that blocks reach by way of other memory, for tests without a device."""

from __future__ import annotations

from collections.abc import Sequence

from memkv.integrations.vllm.geometry import BlockRuns
from memkv.integrations.vllm.memory import InPlaceBatch, InPlaceMemory, Pieces
from memkv.integrations.vllm.planner import PlacedBlock


class PrivateMemory(InPlaceMemory):
    """As StagedMemory: what is late writes into no place of the engine. Notes what is closed."""

    def __init__(self, groups: Sequence[BlockRuns]) -> None:
        super().__init__(groups)
        self.closed_batches = 0
        self.is_closed = False

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> PrivateBatch:
        return PrivateBatch(self, super().begin_get(blocks).pieces)

    begin_put = begin_get

    def close(self) -> None:
        self.is_closed = True


class PrivateBatch(InPlaceBatch):
    """Of a PrivateMemory."""

    is_private = True

    def __init__(self, memory: PrivateMemory, pieces: list[Pieces]) -> None:
        super().__init__(pieces)
        self._memory = memory

    def close(self) -> None:
        self._memory.closed_batches += 1
