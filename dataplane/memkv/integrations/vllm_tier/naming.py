"""Names of the host cache's chunks: what beside the tokens decides which bytes one has.

A chunk is a row of vLLM's host cache: `blocks_per_chunk` blocks of one cache group, of all layers
and all workers, one worker after the other. Its bytes depend on everything that vLLM's own tiers
put into the names of their files (`FileMapper.from_offloading_spec`), and on what those leave out:
the weights' revision, how hashes are made, the order of axes, the length of a row. With
`canonical_layout` vLLM itself says which bytes are the same under other parallelism.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from memkv.errors import CallerError
from memkv.integrations.blocks import PAYLOAD_BYTES_MAX
from memkv.integrations.keys import Namespace
from memkv.integrations.parts import ObjectKind

GROUP_BYTES = 4  # of a cache group's number, big-endian, at the end of vLLM's OffloadKey


class Group(Protocol):
    """A cache group, as vLLM's `OffloadingGroupConfig` has it."""

    @property
    def group_id(self) -> int: ...
    @property
    def tokens_per_block(self) -> int: ...
    @property
    def layer_names(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class CacheShape:
    """What the bytes of an engine's chunks depend on, apart from model and tokens."""

    groups: tuple[Group, ...]
    kv_dtype: str
    tokens_per_hash: int
    blocks_per_chunk: int
    row_bytes: int
    parallel: tuple[tuple[str, int], ...]
    """Sizes of the axes of parallelism; () where the bytes do not depend on them."""
    order: str
    """Of the axes, and who gives it its meaning: vLLM's version, since its versions promise nothing
    to each other, or its canonical format."""

    @cached_property
    def layout(self) -> str:
        """The layout's name. Fields that people look for are spelt out, the rest is a digest."""
        groups = [
            [group.group_id, group.tokens_per_block, list(group.layer_names)]
            for group in self.groups
        ]
        digest = hashlib.blake2b(json.dumps(groups).encode(), digest_size=16).hexdigest()
        ranks = ".".join(f"{axis}{size}" for axis, size in self.parallel) or "any"
        return (
            f"vllm:chunk/{self.order}/{ranks}/blocks{self.blocks_per_chunk}"
            f"/hash{self.tokens_per_hash}/row{self.row_bytes}/groups-{digest}"
        )


class ChunkNames:
    """Keys of an engine's chunks."""

    def __init__(
        self, shape: CacheShape, model: str, revision: str, hashing: Callable[[], str | None],
        part_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        """`hashing`: how block hashes are made; None while the engine has not decided it.
        `part_bytes_max`: longer rows are cut."""
        self._shape = shape
        self._model = model
        self._revision = revision
        self._hashing = hashing
        self._part_bytes_max = part_bytes_max
        self._tokens = {
            group.group_id: group.tokens_per_block * shape.blocks_per_chunk
            for group in shape.groups
        }
        self._kinds: dict[int, ObjectKind] = {}

    @property
    def is_known(self) -> bool:
        """Can chunks be named yet?"""
        return bool(self._kinds) or self._hashing() is not None

    def kind(self, group: int) -> ObjectKind:
        """Return what all chunks of a cache group have in common. RuntimeError before `is_known`,
        CallerError for a group that the engine did not announce."""
        known = self._kinds.get(group)
        if known is None:
            hashing = self._hashing()
            if hashing is None:
                raise RuntimeError("chunks are named before the engine knows how it hashes")
            if group not in self._tokens:
                raise CallerError(f"cache group {group}; the engine has {sorted(self._tokens)}")
            namespace = Namespace(
                model=self._model, revision=self._revision, kv_dtype=self._shape.kv_dtype,
                layout=self._shape.layout, block_tokens=self._tokens[group], hashing=hashing,
            )
            known = ObjectKind(
                namespace, self._shape.row_bytes, group, dtype="uint8",
                part_bytes_max=self._part_bytes_max,
            )
            self._kinds[group] = known
        return known

    def tokens(self, group: int) -> int:
        """Return how many tokens a chunk of a group holds."""
        return self._tokens[group]

    def keys(self, offload_key: bytes) -> list[bytes]:
        """Return the keys of a chunk's blocks: one, or several where a row is longer than a
        block."""
        block_hash, group = split(offload_key)
        return self.kind(group).keys(block_hash)


def split(offload_key: bytes) -> tuple[bytes, int]:
    """Return block hash and cache group of vLLM's name of a chunk."""
    return offload_key[:-GROUP_BYTES], int.from_bytes(offload_key[-GROUP_BYTES:], "big")
