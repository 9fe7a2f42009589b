"""Where blocks of a paged cache lie: every byte of a block once, and none of another block."""

from __future__ import annotations

import itertools
from math import prod

import pytest

from memkv.errors import CallerError
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory, cut_layers

BLOCKS, HEADS, TOKENS, CONTENT = 5, 2, 4, 6
BASE = 1 << 20
LAYOUTS = {  # vLLM's names: the order of layers, blocks, heads, tokens, content in memory
    "LBHNC": 3, "LBNHC": 3, "LHBNC": 6, "BLHNC": 1, "BLNHC": 1, "BHLNC": 6,
}
LAYERS = 3


def layers_of(layout: str) -> list[LayerMemory]:
    lengths = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": TOKENS, "C": CONTENT}
    strides, step = {}, 1
    for axis in reversed(layout):
        strides[axis], step = step, step * lengths[axis]
    return [
        LayerMemory(
            BASE + 2 * layer * strides["L"], (BLOCKS, HEADS, TOKENS, CONTENT),
            tuple(strides[axis] for axis in "BHNC"), 2,
        )
        for layer in range(LAYERS)
    ]


def bytes_of_block(layers: list[LayerMemory], block: int) -> set[int]:
    found = set()
    for layer in layers:
        for index in itertools.product(*(range(length) for length in layer.shape[1:])):
            offset = block * layer.strides[0] + sum(
                position * stride for position, stride in zip(index, layer.strides[1:], strict=True)
            )
            found |= {layer.address + 2 * offset, layer.address + 2 * offset + 1}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_the_bytes_of_a_block_and_nothing_else(layout: str) -> None:
    layers = layers_of(layout)
    runs = BlockRuns(layers, BLOCKS)
    assert runs.payload_bytes == LAYERS * HEADS * TOKENS * CONTENT * 2
    for block in range(BLOCKS):
        addresses, sizes = runs.pieces(block)
        assert sum(sizes) == runs.payload_bytes
        found = [address + byte for address, size in zip(addresses, sizes, strict=True)
                 for byte in range(size)]
        assert len(found) == len(set(found))
        assert set(found) == bytes_of_block(layers, block)


@pytest.mark.parametrize(("layout", "count"), LAYOUTS.items())
def test_what_lies_together_is_one_piece(layout: str, count: int) -> None:
    assert len(BlockRuns(layers_of(layout), BLOCKS).runs) == count


def test_blocks_that_kernels_see_in_parts_are_whole_again() -> None:
    shape = (BLOCKS * 2, HEADS, TOKENS // 2, CONTENT)
    dense = LayerMemory(BASE, shape, (prod(shape[1:]), 12, 6, 1), 2)
    runs = BlockRuns([dense], BLOCKS)
    assert runs.pieces(1) == ([BASE + 96], [96])


def test_layers_that_share_a_cache_are_stored_once() -> None:
    layer = layers_of("LBHNC")[0]
    assert BlockRuns([layer, layer], BLOCKS).payload_bytes == HEADS * TOKENS * CONTENT * 2


def test_refuses_memory_that_overlaps_itself() -> None:
    with pytest.raises(CallerError, match="no memory of its own"):
        BlockRuns([LayerMemory(BASE, (BLOCKS, 4, 4), (16, 0, 1), 2)], BLOCKS)
    with pytest.raises(CallerError, match="parts of blocks"):
        BlockRuns([LayerMemory(BASE, (7, 4), (4, 1), 2)], BLOCKS)


@pytest.mark.parametrize(("size", "parts"), [
    (0, [0, 0, 0]), (1, [0, 1, 2]), (2, [0, 0, 1]), (3, [0, 0, 0]), (9, [0, 0, 0]),
])
def test_layers_are_cut_into_parts_that_have_every_byte_once(size: int, parts: list[int]) -> None:
    layers = layers_of("LBHNC")
    cut, part_of = cut_layers([*layers, layers[0]], size)  # the last one shares the first's cache
    assert part_of == [*parts, 0]
    assert [layer for part in cut for layer in part] == layers
    assert [len(part) for part in cut] == [parts.count(number) for number in range(parts[-1] + 1)]
