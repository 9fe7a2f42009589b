"""Blocks of a cache that the client cannot reach, a GPU's say, by way of registered host memory.

An arena is cut into slots, each for one batch. A put is gathered on the device, run by run, and
copied into a slot; a get lands in a slot and is scattered from there. Both go on a stream of their
own beside the model's, and are over when an event behind them has happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from memkv.errors import CallerError
from memkv.integrations.arena import Arena, Registrar
from memkv.integrations.vllm.geometry import BlockRuns, Run
from memkv.integrations.vllm.memory import Pieces
from memkv.integrations.vllm.planner import PlacedBlock

if TYPE_CHECKING:
    from torch import Tensor

SLOTS_MIN = 2  # one is filled while the other one is sent


class StagedMemory:
    """A cache on any device that torch knows."""

    def __init__(
        self, client: Registrar, groups: Sequence[BlockRuns], caches: Sequence[Tensor],
        block_count: int, *, arena_bytes: int, slot_bytes: int,
    ) -> None:
        """`caches`: tensors whose storages hold all runs of the groups."""
        self.payload_bytes = tuple(group.payload_bytes for group in groups)
        slot_bytes = max(slot_bytes, *self.payload_bytes)
        if arena_bytes < SLOTS_MIN * slot_bytes:
            raise CallerError(
                f"staging_bytes must be at least {SLOTS_MIN * slot_bytes}, not {arena_bytes}"
            )
        self._device = caches[0].device
        self._views = [
            [(run, _blocks_of(run, caches, block_count)) for run in group.runs] for group in groups
        ]
        self._arena = Arena(client, arena_bytes // slot_bytes * slot_bytes)
        self._host = torch.frombuffer(self._arena.view, dtype=torch.uint8)
        self._slot_bytes = slot_bytes
        self._free = list(range(self._arena.size_bytes // slot_bytes))
        self._stream: Any = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
            # Copies from memory that the device has not pinned would hold the engine's thread up.
            status = torch.cuda.cudart().cudaHostRegister(
                self._arena.address, self._arena.size_bytes, 0
            )
            if int(status) != 0:
                raise CallerError(f"cudaHostRegister of the staging arena failed: {status}")

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> StagedBatch | None:
        return self._batch(blocks)

    def begin_put(self, blocks: Sequence[PlacedBlock]) -> StagedBatch | None:
        batch = self._batch(blocks)
        if batch is not None:
            batch.gather()
        return batch

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._arena.address)
        del self._host
        self._arena.close()

    def _batch(self, blocks: Sequence[PlacedBlock]) -> StagedBatch | None:
        return StagedBatch(self, self._free.pop(), blocks) if self._free else None


class StagedBatch:
    """One batch in its slot: for each group and run, the blocks' bytes side by side."""

    is_private = True

    def __init__(self, memory: StagedMemory, slot: int, blocks: Sequence[PlacedBlock]) -> None:
        self._memory = memory
        self._slot = slot
        self._event: Any = None
        self._parts: list[tuple[Tensor, int, int, list[int], list[int]]] = []
        """View of the cache, offset in the arena, bytes of a piece, positions and places."""
        positions: dict[int, list[int]] = defaultdict(list)
        for position, block in enumerate(blocks):
            positions[block.group].append(position)
        self.pieces: list[Pieces] = [([], []) for _ in blocks]
        offset = slot * memory._slot_bytes
        for group, members in positions.items():
            places = [blocks[position].place for position in members]
            for run, view in memory._views[group]:
                self._parts.append((view, offset, run.size_bytes, members, places))
                for position in members:
                    self.pieces[position][0].append(memory._arena.address + offset)
                    self.pieces[position][1].append(run.size_bytes)
                    offset += run.size_bytes

    def gather(self) -> None:
        """Copy the blocks' bytes into the slot."""
        with self._beside_the_model():
            for view, offset, size, _, places in self._parts:
                host = self._staged(offset, size, len(places))
                host.copy_(view.index_select(0, self._index(places)), non_blocking=True)

    def is_ready(self) -> bool:
        return self._event is None or bool(self._event.query())

    def land(self, arrived: Sequence[bool]) -> bool:
        """Copy blocks that arrived from the slot to their places."""
        with self._beside_the_model():
            for view, offset, size, members, places in self._parts:
                kept = [index for index, position in enumerate(members) if arrived[position]]
                if not kept:
                    continue
                there = self._staged(offset, size, len(places)).to(view.device, non_blocking=True)
                if len(kept) < len(places):
                    there = there.index_select(0, self._index(kept))
                view.index_copy_(0, self._index([places[index] for index in kept]), there)
        return True

    def is_landed(self) -> bool:
        return self.is_ready()

    def precede(self) -> None:
        """The model's stream waits for the copies; the thread does not."""
        if self._event is not None:
            torch.cuda.current_stream(self._memory._device).wait_event(self._event)

    def close(self) -> None:
        self._memory._free.append(self._slot)

    def _staged(self, offset: int, size: int, count: int) -> Tensor:
        return self._memory._host[offset : offset + size * count].view(count, size)

    def _index(self, places: list[int]) -> Tensor:
        """Return row numbers on the device. From pinned memory: from other memory the thread would
        wait for the copy, and so for the model before it."""
        device = self._memory._device
        numbers = torch.tensor(places, dtype=torch.int64, pin_memory=device.type == "cuda")
        return numbers.to(device, non_blocking=True)

    def _beside_the_model(self) -> _Beside:
        return _Beside(self)


class _Beside:
    """Work on the memory's own stream, after what the model has begun; an event is its end."""

    def __init__(self, batch: StagedBatch) -> None:
        self._batch = batch
        self._stream = batch._memory._stream
        self._context: Any = None

    def __enter__(self) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._batch._memory._device))
            self._context = torch.cuda.stream(self._stream)
            self._context.__enter__()

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._batch._event = torch.cuda.Event()
            self._batch._event.record(self._stream)
            self._context.__exit__(*exception)


def _blocks_of(run: Run, caches: Sequence[Tensor], block_count: int) -> Tensor:
    """Return a run of every block as rows of bytes over the cache's own storage."""
    for cache in caches:
        storage = cache.untyped_storage()
        offset = run.address - storage.data_ptr()
        if 0 <= offset < storage.nbytes():
            view = torch.empty(0, dtype=torch.uint8, device=cache.device)
            return view.set_(storage, offset, (block_count, run.size_bytes), (run.stride_bytes, 1))
    raise CallerError("a cache's run lies in none of its storages")
