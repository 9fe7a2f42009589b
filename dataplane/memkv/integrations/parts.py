"""An engine's object as blocks of the pool: one, or several where it is longer than a block.

A part is a block of its own with a namespace of its own: the layout says which part of how many it
is. So an object cut differently, or of another length, has other keys, and parts of two objects
never make a third one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from memkv.client.buffers import Scatter
from memkv.integrations.blocks import PAYLOAD_BYTES_MAX, BlockFormat
from memkv.integrations.keys import Namespace, block_key


@dataclass(frozen=True, slots=True)
class Part:
    """One block of the pool and the engine's memory for its payload."""

    key: bytes
    format: BlockFormat
    pieces: Scatter


@dataclass(frozen=True)
class ObjectKind:
    """What all objects of one kind have in common: namespace, group, length, and how it is told.

    `shape`, `tokens`, `dtype`, `coding` and `details` go into the header as they are.
    """

    namespace: Namespace
    payload_bytes: int
    group: int = 0
    shape: tuple[int, ...] = ()
    tokens: int | None = None
    dtype: str | None = None
    coding: str = "raw"
    details: bytes = b""
    part_bytes_max: int = PAYLOAD_BYTES_MAX

    @property
    def part_count(self) -> int:
        return -(-self.payload_bytes // self.part_bytes_max)

    def keys(self, block_hash: bytes) -> list[bytes]:
        """Return the keys of an object's parts."""
        return [
            block_key(kind_format[0], block_hash, self.group) for kind_format in _parts_of(self)
        ]

    def parts(self, block_hash: bytes, pieces: Sequence[tuple[int, int]]) -> list[Part]:
        """Return an object's parts. `pieces`: its memory, (address, bytes) each, as long in all as
        its payload."""
        return [
            Part(block_key(namespace, block_hash, self.group), form, scatter)
            for (namespace, form), scatter in zip(
                _parts_of(self), _cut(pieces, self.part_bytes_max), strict=True
            )
        ]


@lru_cache(maxsize=4096)
def _parts_of(kind: ObjectKind) -> tuple[tuple[Namespace, BlockFormat], ...]:
    """Return namespace and format of each part. The shape is the object's, so a part has none."""
    count = kind.part_count
    found = []
    for number in range(count):
        namespace, shape = kind.namespace, kind.shape
        if count > 1:
            cut = f"{kind.payload_bytes}/{kind.part_bytes_max}"
            layout = f"{namespace.layout};part={number}of{count}:{cut}"
            namespace, shape = replace(namespace, layout=layout), ()
        size_bytes = min(kind.part_bytes_max, kind.payload_bytes - number * kind.part_bytes_max)
        found.append((namespace, BlockFormat.of(
            namespace, size_bytes, shape=shape, group=kind.group, tokens=kind.tokens,
            dtype=kind.dtype, coding=kind.coding, details=kind.details,
        )))
    return tuple(found)


def _cut(pieces: Sequence[tuple[int, int]], size_bytes: int) -> list[Scatter]:
    """Cut memory into parts of `size_bytes`, the last one of what is left."""
    parts: list[Scatter] = []
    part: list[tuple[int, int]] = []
    room = size_bytes
    for address, length in pieces:
        while length:
            taken = min(length, room)
            part.append((address, taken))
            address, length, room = address + taken, length - taken, room - taken
            if not room:
                parts.append(tuple(part))
                part, room = [], size_bytes
    if part:
        parts.append(tuple(part))
    return parts
