"""Blocks by way of an arena, with torch's own tensors: the same bytes as in place."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from memkv.errors import CallerError
from memkv.integrations.vllm.geometry import BlockRuns
from memkv.integrations.vllm.memory import InPlaceMemory
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.integrations.vllm.staging import StagedMemory
from memkv.integrations.vllm.worker_side import layer_memory
from memkv.testing.pool_in_memory import PoolInMemory

BLOCKS, SHAPE = 6, (2, 4, 16)  # heads, tokens, content
ORDERS = {"by layers": (0, 1, 2, 3), "by tokens": (0, 2, 1, 3)}


class Cache:
    """Two layers in one storage, as vLLM allocates them."""

    def __init__(self, order: tuple[int, ...]) -> None:
        shape = (BLOCKS, *SHAPE)
        raw = torch.randint(0, 30_000, (2, *(shape[axis] for axis in order)), dtype=torch.int16)
        self.layers = [layer.permute(*(order.index(axis) for axis in range(4))) for layer in raw]
        self.runs = [BlockRuns([layer_memory(layer) for layer in self.layers], BLOCKS)]
        self.in_place = InPlaceMemory(self.runs)
        self.staged = StagedMemory(
            PoolInMemory(), self.runs, self.layers, BLOCKS,
            arena_bytes=8 * self.runs[0].payload_bytes, slot_bytes=4 * self.runs[0].payload_bytes,
        )


@pytest.fixture(params=list(ORDERS.values()), ids=list(ORDERS))
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    cache = Cache(request.param)
    yield cache
    cache.staged.close()


def blocks(*places: int) -> list[PlacedBlock]:
    return [PlacedBlock(number, 0, place, b"") for number, place in enumerate(places)]


def content(pieces: tuple[list[int], list[int]]) -> bytes:
    return b"".join(
        ctypes.string_at(address, size) for address, size in zip(*pieces, strict=True)
    )


def test_a_put_is_what_it_would_be_in_place(cache: Cache) -> None:
    batch = cache.staged.begin_put(blocks(4, 1))
    assert batch is not None
    assert batch.is_ready()
    in_place = cache.in_place.begin_put(blocks(4, 1))
    assert [content(one) for one in batch.pieces] == [content(one) for one in in_place.pieces]


def test_a_get_lands_where_it_belongs_and_nowhere_else(cache: Cache) -> None:
    before = [layer.clone() for layer in cache.layers]
    batch = cache.staged.begin_get(blocks(5, 0, 3))
    assert batch is not None
    for number, (addresses, sizes) in enumerate(batch.pieces):
        for address, size in zip(addresses, sizes, strict=True):
            ctypes.memset(address, number + 1, size)
    batch.land([True, False, True])
    assert batch.is_landed()
    for layer, old in zip(cache.layers, before, strict=True):
        assert (layer[5] == 0x0101).all()
        assert (layer[3] == 0x0303).all()
        for place in (0, 1, 2, 4):
            assert (layer[place] == old[place]).all()


def test_there_is_no_room_for_more_batches_than_slots(cache: Cache) -> None:
    batches = [cache.staged.begin_get(blocks(0)) for _ in range(2)]
    assert cache.staged.begin_put(blocks(1)) is None
    assert batches[0] is not None
    batches[0].close()
    assert cache.staged.begin_put(blocks(1)) is not None


def test_an_arena_for_less_than_two_batches_is_refused() -> None:
    cache = Cache(ORDERS["by layers"])
    with pytest.raises(CallerError, match="staging_bytes must be at least"):
        StagedMemory(PoolInMemory(), cache.runs, cache.layers, BLOCKS,
                     arena_bytes=cache.runs[0].payload_bytes, slot_bytes=1)
