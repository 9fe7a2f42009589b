"""Where the bytes of a block lie in an engine's paged cache: runs of addresses, from strides.

A stored block is its layers in the cache's order, each layer's bytes in the order of addresses.
Layers that lie side by side in one block are one run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from memkv.errors import CallerError


@dataclass(frozen=True)
class LayerMemory:
    """One layer's cache, as a tensor says it: the first axis counts blocks (or equal parts of
    blocks, for kernels that want smaller ones)."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    element_bytes: int


@dataclass(frozen=True)
class Run:
    """Bytes that lie together, at `address` for block 0 and `stride_bytes` further a block."""

    address: int
    size_bytes: int
    stride_bytes: int


class BlockRuns:
    """The runs of one cache group's blocks."""

    def __init__(self, layers: Sequence[LayerMemory], block_count: int) -> None:
        if not layers:
            raise CallerError("a cache group without layers")
        self.runs = _joined(
            [run for layer in _distinct(layers) for run in _runs(layer, block_count)]
        )
        self.payload_bytes = sum(run.size_bytes for run in self.runs)
        self._sizes = [run.size_bytes for run in self.runs]

    def pieces(self, block_id: int) -> tuple[list[int], list[int]]:
        """Return addresses and sizes of a block's pieces, in the order in which they are stored."""
        addresses = [run.address + block_id * run.stride_bytes for run in self.runs]
        return addresses, self._sizes


def cut_layers(
    layers: Sequence[LayerMemory], layers_a_part: int
) -> tuple[list[list[LayerMemory]], list[int]]:
    """Cut layers into parts of so many consecutive ones, the last of what is left; 0: into one.
    Return the parts, and the number of each layer's part. Layers that share a cache count once."""
    distinct = _distinct(layers)
    size = layers_a_part or len(distinct)
    number_of = {layer.address: index // size for index, layer in enumerate(distinct)}
    parts = [distinct[begin : begin + size] for begin in range(0, len(distinct), size)]
    return parts, [number_of[layer.address] for layer in layers]


def _distinct(layers: Sequence[LayerMemory]) -> list[LayerMemory]:
    """Layers that share another layer's cache are stored once."""
    return list({layer.address: layer for layer in layers}.values())


def _runs(layer: LayerMemory, block_count: int) -> list[Run]:
    parts = layer.shape[0]
    if block_count < 1 or parts % block_count:
        raise CallerError(f"{parts} parts of blocks in a cache of {block_count} blocks")
    ratio = parts // block_count
    axes = [
        (length, stride)
        for length, stride in zip(
            (ratio, *layer.shape[1:]), (layer.strides[0], *layer.strides[1:]), strict=True
        )
        if length > 1
    ]
    axes.sort(key=lambda axis: -axis[1])
    size = 1
    while axes and axes[-1][1] == size:
        size *= axes.pop()[0]
    if any(stride < 1 for _, stride in axes) or size * prod(length for length, _ in axes) != prod(
        (ratio, *layer.shape[1:])
    ):
        raise CallerError(f"a cache of strides {layer.strides} is no memory of its own")
    stride_bytes = layer.strides[0] * ratio * layer.element_bytes
    offsets = (
        sum(index * stride for index, (_, stride) in zip(indices, axes, strict=True))
        for indices in itertools.product(*(range(length) for length, _ in axes))
    )
    return [
        Run(layer.address + offset * layer.element_bytes, size * layer.element_bytes, stride_bytes)
        for offset in offsets
    ]


def _joined(runs: list[Run]) -> list[Run]:
    joined = [runs[0]]
    for run in runs[1:]:
        last = joined[-1]
        if (last.address + last.size_bytes, last.stride_bytes) == (run.address, run.stride_bytes):
            joined[-1] = Run(last.address, last.size_bytes + run.size_bytes, run.stride_bytes)
        else:
            joined.append(run)
    return joined
