"""How SGLang's pages are named in a pool. Knows SGLang's types by their shape only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memkv.client.options import BlockHint
from memkv.errors import CallerError
from memkv.integrations.hints import hints_of
from memkv.integrations.keys import Namespace, Rank
from memkv.integrations.settings import PoolSettings

HASHING = "sglang/sha256"  # over all tokens so far, adapter and cache salt first
KV = "kv"
SHARDED_POOLS = frozenset({"mamba"})
"""Pools whose ranks differ even where those of the model's KV do not (MLA)."""
GEOMETRY = (
    "start_layer", "end_layer", "layer_num", "head_num", "head_dim", "v_head_dim", "kv_cache_dim",
    "kv_lora_rank", "qk_rope_head_dim", "head_group_num", "dcp_size",
)  # fmt: skip
"""Attributes of SGLang's host pools that say what a page holds; each has some of them."""


class StorageConfig(Protocol):
    """`sglang.srt.mem_cache.hicache_storage.HiCacheStorageConfig`."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    attn_cp_rank: int
    attn_cp_size: int
    dcp_rank: int
    dcp_size: int
    is_mla_model: bool
    model_name: str | None


class Page(Protocol):
    """A torch.Tensor."""

    nbytes: int


class HostPool(Protocol):
    """`sglang.srt.mem_cache.pool_host.HostKVCache`; what else it has depends on its kind."""

    page_size: int
    layout: str
    dtype: object

    def get_page_buffer_meta(self, indices: object) -> tuple[Sequence[object], Sequence[object]]:
        """Return address and size of each piece of memory of pages."""

    def get_dummy_flat_data_page(self) -> Page: ...


def page_namespace(
    settings: PoolSettings, config: StorageConfig, pool: HostPool, name: str, way: str
) -> Namespace:
    """Return the namespace of a host pool's pages. `way`: "zero-copy" or "flat", which order the
    bytes of a page differently. Raises CallerError when the engine does not name its model."""
    if not config.model_name:
        raise CallerError(
            "SGLang says no model name, and without one pages of two models would be one: start "
            "it with --served-model-name"
        )
    geometry = ",".join(
        f"{attribute}={value}" for attribute in GEOMETRY
        if isinstance(value := getattr(pool, attribute, None), int)
    )
    return Namespace(
        config.model_name, settings.revision,
        kv_dtype=str(pool.dtype).removeprefix("torch."),
        layout=f"sglang:{type(pool).__name__}/{pool.layout}/{way}/{name}/{geometry}",
        block_tokens=pool.page_size,
        hashing=HASHING,
        ranks=_ranks(config, pool, name),
    )


def _ranks(config: StorageConfig, pool: HostPool, name: str) -> tuple[Rank, ...]:
    """Return the axes on which this pool's bytes differ. The latent cache of MLA is the same on
    every tensor-parallel rank, and only one of them writes it."""
    replicated = config.is_mla_model and name not in SHARDED_POOLS and (
        not name.startswith("draft") or "MLA" in type(pool).__name__
    )
    ranks = [] if replicated else [Rank("tp", config.tp_rank, config.tp_size)]
    for axis, index, count in (
        ("pp", config.pp_rank, config.pp_size),
        ("cp", config.attn_cp_rank, config.attn_cp_size),
        ("dcp", config.dcp_rank, config.dcp_size),
    ):
        if count > 1:
            ranks.append(Rank(axis, index, count))
    return tuple(ranks)


def page_hash(key: str) -> bytes:
    """Return SGLang's name of a page, a hash in hexadecimal or, for others, a text, as bytes."""
    try:
        return b"h" + bytes.fromhex(key)
    except ValueError:
        return b"t" + key.encode()


def page_hints(keys: Sequence[str], prefix_keys: Sequence[str] | None) -> list[BlockHint]:
    """Return where pages stand in their prompt; `prefix_keys`: what comes before them."""
    before = list(prefix_keys or ())
    head = [page_hash(key) for key in [*before, *keys][:1]]
    return hints_of(head * (len(before) + len(keys)), first=len(before))


def leading(hits: Sequence[bool]) -> int:
    """Return how many hits there are before the first miss."""
    return next((number for number, hit in enumerate(hits) if not hit), len(hits))


def restorable(pages: int, hits: Sequence[bool], trailing: int | None) -> list[int]:
    """Return the lengths of prefixes, of at most `pages`, that a side pool can restore. `trailing`:
    it needs so many pages before the end only; None: it needs them all."""
    if trailing is None:
        return list(range(1, min(leading(hits), pages) + 1))
    return [
        length for length in range(1, pages + 1)
        if all(hits[max(0, length - max(1, trailing)) : length])
    ]
