"""What has to be known of an engine's configuration, and which engines the connector serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memkv.integrations.keys import Rank
from memkv.integrations.vllm.adapters import Hasher
from memkv.integrations.vllm.planner import CacheShape

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


def why_not(config: VllmConfig, caches: KVCacheConfig) -> str | None:
    """Return why blocks of this engine cannot be shared; None when they can."""
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.kv_cache_interface import AttentionSpec

    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism spreads a block's tokens over ranks"
    if not caches.kv_cache_groups:
        return "the model has no KV cache"
    if tuple(caches.prefix_cacheable_group_ids) != tuple(range(len(caches.kv_cache_groups))):
        return "the model has cache groups whose blocks have no hashes"
    specs = [_spec(group.kv_cache_spec) for group in caches.kv_cache_groups]
    for spec in specs:
        if not isinstance(spec, AttentionSpec) or not spec.has_layer_views:
            return f"{type(spec).__name__}: only caches of attention layers are stored"
    sizes = {spec.block_size for spec in specs}
    block_tokens, hash_tokens = resolve_kv_cache_block_sizes(caches, config)
    if sizes != {block_tokens} or block_tokens != hash_tokens:
        return f"cache groups with blocks of {sorted(sizes)} tokens, hashed by {hash_tokens}"
    return None


def why_not_pipelined(config: VllmConfig, caches: KVCacheConfig) -> str | None:
    """Return why layers cannot wait for their own parts of a load; None when they can. A step that
    began with such a load must be undone when it fails, and vLLM 0.32 does that only here."""
    parallel = config.parallel_config
    if not keeps_all_blocks(caches):
        return "the model has several cache groups, or a window"
    if config.scheduler_config.async_scheduling:
        return "asynchronous scheduling has begun the next step; say --no-async-scheduling"
    if parallel.pipeline_parallel_size > 1 or parallel.use_ubatching:
        return "pipeline parallelism and micro-batches have several steps under way"
    if config.speculative_config is not None:
        return "a draft model computes after the step"
    if getattr(config, "use_v2_model_runner", True):  # no other one where there is no choice
        return "Model Runner V2 cannot undo a step; say VLLM_USE_V2_MODEL_RUNNER=0"
    return None


def keeps_all_blocks(caches: KVCacheConfig) -> bool:
    """Is there one cache group, whose blocks are kept from the first?"""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    specs = [_spec(group.kv_cache_spec) for group in caches.kv_cache_groups]
    return len(specs) == 1 and isinstance(specs[0], FullAttentionSpec)


def hooked_layers(config: VllmConfig) -> list[str]:
    """Return the layers that call `wait_for_layer_load` before they read their cache."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    layers = get_layers_from_vllm_config(config, AttentionLayerBase)
    return [name for name, layer in layers.items() if isinstance(layer, Attention | MLAAttention)]


def cache_shape(caches: KVCacheConfig) -> CacheShape:
    """Return block size and windows of the cache groups."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    specs = [_spec(group.kv_cache_spec) for group in caches.kv_cache_groups]
    return CacheShape(
        int(specs[0].block_size),
        tuple(
            int(spec.sliding_window) if isinstance(spec, SlidingWindowSpec) else None
            for spec in specs
        ),
    )


def block_hasher(config: VllmConfig, caches: KVCacheConfig) -> Hasher:
    """Return how the engine makes hashes of a request's blocks."""
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, resolve_kv_cache_block_sizes

    _, hash_tokens = resolve_kv_cache_block_sizes(caches, config)
    algorithm = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    hasher: Hasher = get_request_block_hasher(hash_tokens, algorithm)
    return hasher


def parallel_ranks(config: VllmConfig, caches: KVCacheConfig) -> list[tuple[Rank, ...]]:
    """Return what tells the bytes of each worker apart, in the order of their (pp, tp) ranks.

    Workers that hold copies of the same KV, such as those of a latent cache, are one rank.
    """
    parallel = config.parallel_config
    pp, tp = parallel.pipeline_parallel_size, parallel.tensor_parallel_size
    copies = max(1, caches.kv_tp_replicas)
    ranks = []
    for pp_rank in range(pp):
        for tp_rank in range(tp):
            rank = [Rank("pp", pp_rank, pp)] if pp > 1 else []
            if tp > copies:
                rank.append(Rank("tp", tp_rank // copies, tp // copies))
            ranks.append(tuple(rank))
    return ranks


def rank_of_worker(config: VllmConfig, caches: KVCacheConfig) -> tuple[int, bool]:
    """Return which of `parallel_ranks` this process is, and whether it is the first of copies."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    tp_rank = int(get_tp_group().rank_in_group)
    rank = int(get_pp_group().rank_in_group) * config.parallel_config.tensor_parallel_size
    return rank + tp_rank, tp_rank % max(1, caches.kv_tp_replicas) == 0


def attention_kernels(config: VllmConfig) -> list[str]:
    """Return who gives the bytes of this engine's cache their meaning. Kernels for CPUs pack keys
    as their instructions want them."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    kernels = set()
    for layer in get_layers_from_vllm_config(config, AttentionLayerBase).values():
        name = str(layer.get_attn_backend().get_name())
        instructions = getattr(layer, "isa", None)
        kernels.add(f"{name}-{instructions}" if instructions else name)
    return sorted(kernels)


def element_names(config: VllmConfig) -> dict[str, str]:
    """Return what the elements of each layer's cache are. Tensors do not say it: vLLM keeps floats
    of 8 bits, of either kind, and shorter ones as plain bytes."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.platforms import current_platform

    same = {"fp8_e5m2": "float8_e5m2"}
    for name in ("fp8", "fp8_e4m3"):  # of two kinds, by the processor
        same[name] = str(current_platform.fp8_dtype()).removeprefix("torch.")
    names = {}
    for name, layer in get_layers_from_vllm_config(config, AttentionLayerBase).items():
        said = str(getattr(layer, "kv_cache_dtype", "auto"))
        names[name] = same.get(said, said)
    return names


def _spec(spec: KVCacheSpec) -> KVCacheSpec:
    """Return the spec of one layer where a group has one for each, all of one kind."""
    inner = getattr(spec, "kv_cache_specs", None)
    return next(iter(inner.values())) if inner else spec
