"""How LMCache's objects are named in a pool. Knows LMCache's types by their shape only."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from memkv.integrations.keys import Namespace, Rank
from memkv.integrations.parts import ObjectKind
from memkv.integrations.settings import PoolSettings

SALT_BYTES_MAX = 512  # longer ones are replaced by their digest


class Dtype(Protocol):
    """A torch.dtype."""

    @property
    def itemsize(self) -> int: ...


class ObjectKey(Protocol):
    """`lmcache.v1.distributed.api.ObjectKey`."""

    @property
    def chunk_hash(self) -> bytes: ...
    @property
    def model_name(self) -> str: ...
    @property
    def kv_rank(self) -> int: ...
    @property
    def object_group_id(self) -> int: ...
    @property
    def cache_salt(self) -> str: ...


class MemoryLayout(Protocol):
    """`lmcache.v1.distributed.api.MemoryLayoutDesc`."""

    @property
    def shapes(self) -> Sequence[Sequence[int]]: ...
    @property
    def dtypes(self) -> Sequence[Dtype]: ...


class EngineKey(Protocol):
    """`lmcache.utils.CacheEngineKey`; a key of one layer also has `layer_id`."""

    @property
    def model_name(self) -> str: ...
    @property
    def world_size(self) -> int: ...
    @property
    def worker_id(self) -> int: ...
    @property
    def chunk_hash_hex(self) -> str: ...
    @property
    def dtype(self) -> object: ...
    @property
    def tags(self) -> Sequence[tuple[str, object]] | None: ...


class Metadata(Protocol):
    """`lmcache.v1.metadata.LMCacheMetadata`: what scheduler and workers both know."""

    @property
    def kv_shape(self) -> Sequence[int]: ...
    @property
    def chunk_size(self) -> int: ...


def dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def hashing_name(algorithm: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return how chunk hashes are made. All but blake3 begin with Python's own hash of None, which
    is another one in every process unless PYTHONHASHSEED is set."""
    if algorithm == "blake3":
        return "lmcache/blake3"
    return f"lmcache/{algorithm}/{environment.get('PYTHONHASHSEED', 'unset')}"


def layout_bytes(shapes: Sequence[Sequence[int]], dtypes: Sequence[Dtype]) -> int:
    return sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)
    )


class L2Names:
    """Names of objects of LMCache's server (L2 adapter).

    An object's key has no layout of its own, so that of its memory goes into the namespace, unless
    `layout` says one: LMCache's serdes store other bytes than a lookup describes.
    """

    def __init__(self, settings: PoolSettings, hashing: str, layout: str = "") -> None:
        self._settings = settings
        self._hashing = hashing
        self._layout = layout

    def kind(
        self, key: ObjectKey, shapes: Sequence[Sequence[int]], dtypes: Sequence[Dtype],
        size_bytes: int | None = None,
    ) -> ObjectKind:
        """Return the kind of the object of `key` with this layout. `size_bytes`: of its memory."""
        names = tuple(dtype_name(dtype) for dtype in dtypes)
        layout = tuple(zip(names, map(tuple, shapes), strict=True))
        if self._layout:
            size_bytes, layout = size_bytes or 1, ()
        namespace = _l2_namespace(
            self._settings.revision, self._hashing, self._layout, key.model_name, key.kv_rank,
            key.cache_salt, layout,
        )
        return ObjectKind(
            namespace, size_bytes or layout_bytes(shapes, dtypes), key.object_group_id,
            shape=layout[0][1] if len(layout) == 1 else (),
            part_bytes_max=self._settings.part_bytes_max,
        )

    @property
    def is_layout_fixed(self) -> bool:
        return bool(self._layout)


@lru_cache(maxsize=4096)
def _l2_namespace(
    revision: str, hashing: str, fixed: str, model: str, kv_rank: int, salt: str,
    layout: tuple[tuple[str, tuple[int, ...]], ...],
) -> Namespace:
    text = fixed or ",".join(f"{name}{list(shape)}" for name, shape in layout)
    dtypes = sorted({name for name, _ in layout})
    shape = layout[0][1] if layout else ()
    return Namespace(
        model, revision,
        kv_dtype="+".join(dtypes) or fixed,
        # kv_rank packs world size and ranks as LMCache counts them; other engines' ranks differ.
        layout=f"lmcache:l2/kv_rank={kv_rank:08x}/{text}",
        # [2 or 1, layers, tokens, hidden]; of others the layout says it all.
        block_tokens=shape[2] if len(shape) == 4 else 1,
        hashing=hashing,
        cache_salt=salt_bytes(salt.encode()),
    )


class ChunkNames:
    """Names of chunks of LMCache inside an engine (remote connector).

    Made of what the scheduler knows, too: it looks up what workers store.
    """

    def __init__(self, settings: PoolSettings, metadata: Metadata, hashing: str) -> None:
        self._settings = settings
        layers, self._factor, _, heads, head_size = metadata.kv_shape
        self._axes = f"H{heads}.D{head_size}"
        self._layers = layers
        self._chunk_size = metadata.chunk_size
        self._hashing = hashing

    def kind(
        self, key: EngineKey, size_bytes: int, shape: tuple[int, ...] = (),
        tokens: int | None = None,
    ) -> ObjectKind:
        """Return the kind of the chunk of `key`, `size_bytes` long."""
        namespace = _chunk_namespace(
            self._settings.revision, self._hashing, self._layout(key), self._chunk_size,
            key.model_name, dtype_name(key.dtype), key.world_size, key.worker_id, _tags(key),
        )
        return ObjectKind(
            namespace, size_bytes, shape=shape, tokens=tokens,
            part_bytes_max=self._settings.part_bytes_max,
        )

    def _layout(self, key: EngineKey) -> str:
        """Axes as docs/keys.md spells them; chunks of one layer say which one."""
        layer = getattr(key, "layer_id", None)
        factor = f"K{self._factor}." if self._factor > 1 else ""
        if layer is None:
            return f"{factor}L{self._layers}.T.{self._axes}"
        return f"lmcache:layer={layer}of{self._layers}/T.{factor}{self._axes}"


@lru_cache(maxsize=4096)
def _chunk_namespace(
    revision: str, hashing: str, layout: str, chunk_size: int, model: str, dtype: str,
    world_size: int, worker_id: int, tags: bytes,
) -> Namespace:
    return Namespace(
        model, revision, dtype, layout, chunk_size, hashing,
        ranks=(Rank("worker", worker_id, world_size),),
        cache_salt=salt_bytes(tags),
    )


def _tags(key: EngineKey) -> bytes:
    """Return a request's tags, each length-prefixed, so that no two lists look the same."""
    texts = [text for name, value in key.tags or () for text in (name, str(value))]
    return b"".join(b"%d:" % len(text.encode()) + text.encode() for text in texts)


def salt_bytes(salt: bytes) -> bytes:
    """Return a salt that fits a namespace."""
    if len(salt) <= SALT_BYTES_MAX:
        return salt
    return b"blake2b:" + hashlib.blake2b(salt, digest_size=32).digest()
