"""What the tier has to know of an engine's configuration."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.integrations.vllm_tier.naming import CacheShape, ChunkNames
from memkv.integrations.vllm_tier.settings import TierSettings

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

logger = logging.getLogger("vllm.memkv")


def chunk_names(spec: OffloadingSpec, row_bytes: int, settings: TierSettings) -> ChunkNames:
    """Return the names of an engine's chunks."""
    from memkv.integrations.vllm.identity import weights_digest

    name = str(spec.config.model.name)
    revision = settings.pool.revision
    folder = Path(name)
    if folder.is_dir():
        # A path says nothing of what lies there; two folders of one name must not share.
        revision = revision or weights_digest(folder)
        name = folder.name
    elif not revision:
        logger.warning(
            'vLLM does not tell its tiers which revision of %s runs. Say "revision" in the tier\'s '
            "settings if engines of this pool may run several.", name,
        )
    return ChunkNames(
        cache_shape(spec, row_bytes), settings.model or name, revision, hashing,
        settings.pool.part_bytes_max,
    )


def cache_shape(spec: OffloadingSpec, row_bytes: int) -> CacheShape:
    """Read what the bytes of chunks depend on."""
    config = spec.config
    return CacheShape(
        groups=tuple(config.groups),
        kv_dtype=str(config.model.dtype),
        tokens_per_hash=int(config.cache.tokens_per_hash),
        blocks_per_chunk=int(config.cache.blocks_per_chunk),
        row_bytes=row_bytes,
        parallel=_parallel(spec),
        order=_order(spec),
    )


def hashing() -> str | None:
    """Name how block hashes are made: by the hash that every chain begins with, which depends on
    algorithm and seed. None before the engine made it."""
    from vllm.v1.core import kv_cache_utils

    first = getattr(kv_cache_utils, "NONE_HASH", None)
    if first is None:
        return None
    return f"vllm/none-hash-{hashlib.blake2b(first, digest_size=8).hexdigest()}"


def _parallel(spec: OffloadingSpec) -> tuple[tuple[str, int], ...]:
    """Return the sizes of the axes on which bytes depend. vLLM calls some layouts independent of
    parallelism block by block; a whole chunk is so only in its canonical layout."""
    parallel = spec.config.parallel
    if spec.config.canonical_layout and parallel.is_parallelism_agnostic:
        return ()
    if spec.replicated_layout:
        return (("copy", 1),)
    return (
        ("tp", int(parallel.tp_size)), ("pp", int(parallel.pp_size)),
        ("pcp", int(parallel.pcp_size)), ("dcp", int(parallel.dcp_size)),
    )


def _order(spec: OffloadingSpec) -> str:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import (
        canonical_format_id,
    )

    layout = spec.config.kv_cache_layout
    if spec.config.canonical_layout and layout is not None:
        return f"canonical-{canonical_format_id(layout)}"
    release = ".".join(str(vllm.__version__).split(".")[:2])
    return f"{release}-{layout}"
