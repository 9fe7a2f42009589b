"""Cascade and promotion through vLLM's own manager, byte for byte, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.kv_hints import KvHintAction, KvHintsEnvelope
from vllm.v1.kv_offload.base import (
    Locality,
    Medium,
    ReqContext,
    get_offload_block_hash,
)
from vllm.v1.kv_offload.tiering.base import TieringOffloadingMetrics
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from memkv.integrations.vllm_tier import MemKVSecondaryTier
from memkv.integrations.vllm_tier.metrics import PREFETCHES, READS, WRITES
from memkv.limits import MIB
from memkv.testing.vllm_tiering import BLOCK_TOKENS, EngineShape, TieredCache
from memkv.testing.waiting import eventually

CHUNKS = 12
SHAPE = EngineShape()


class SecondEngine(Protocol):
    """See conftest.py."""

    def look(self, endpoint: str, name: str, count: int) -> list[str]: ...


def test_a_second_process_reads_what_the_first_one_stored(
    endpoint: str, second_engine: SecondEngine
) -> None:
    with TieredCache({"endpoint": endpoint}) as cache:
        cache.store("second", cache.chunks("second", CHUNKS))
        assert cache.count(WRITES, "present") == CHUNKS
    assert second_engine.look(endpoint, "second", CHUNKS + 1) == ["same"] * CHUNKS + ["miss"]


def test_only_what_is_there_comes_from_the_pool(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as first, TieredCache({"endpoint": endpoint}) as other:
        keys = first.chunks("partly", 8)
        first.store("partly", keys[:5])
        looked = other.look("partly", keys)
        assert looked.found == [other.content(key) for key in keys[:5]] + [None] * 3
        reads = other.reads(8)
        assert (reads.pop("present"), sum(reads.values())) == (5, 3)
        assert reads["never_stored"] >= 1, reads
        assert other.count(TieringOffloadingMetrics.CHUNK_HITS, "1:MemKVSecondaryTier") == 5
        read = other.count(TieringOffloadingMetrics.READ_BYTES, "1:MemKVSecondaryTier")
        assert read == 5 * other.row_bytes
        assert other.count(TieringOffloadingMetrics.READ_TIME, "1:MemKVSecondaryTier") > 0


def test_what_another_engine_stored_is_not_stored_again(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as first, TieredCache({"endpoint": endpoint}) as other:
        keys = first.chunks("twice", 4)
        first.store("twice", keys)
        other.store("twice", keys)
        assert other.count(WRITES, "present") == 4
        assert other.tier._client.stats().bytes_written == 0


def test_an_emptied_host_cache_is_filled_from_the_pool(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as cache:
        keys = cache.chunks("emptied", CHUNKS)
        cache.store("emptied", keys, settle=False)
        cache.forget()
        assert cache.look("emptied", keys).found == [cache.content(key) for key in keys]


@pytest.mark.parametrize("shape", [
    replace(SHAPE, group_tokens=(16, 32)),
    replace(SHAPE, block_bytes=5 * 1024 * 1024, blocks_per_chunk=4, chunks=8),
    replace(SHAPE, tp=2),
    replace(SHAPE, block_bytes=1000, chunks=16),
], ids=["two cache groups", "rows longer than a block", "two ranks", "rows with padding"])
def test_other_shapes_of_caches(endpoint: str, shape: EngineShape) -> None:
    # The pool's segments have 8 MiB, and no block is longer than its segment.
    options = {"endpoint": endpoint, "store_share": 1.0, "block_bytes_max": 6 * MIB}
    with TieredCache(options, shape) as first, TieredCache(options, shape) as other:
        for group in range(len(shape.group_tokens)):
            keys = first.chunks("shapes", 3, group=group)
            first.store("shapes", keys)
            assert other.look("shapes", keys).found == [other.content(key) for key in keys]


def test_workers_here_use_the_host_cache_itself(endpoint: str) -> None:
    options = {"endpoint": endpoint, "share_memory": True}
    with TieredCache(options) as first, TieredCache(options) as other:
        keys = first.chunks("shared", CHUNKS)
        first.store("shared", keys)
        assert other.look("shared", keys).found == [other.content(key) for key in keys]
        assert first.tier._client.stats().local_keys >= CHUNKS
        assert other.tier._client.stats().local_keys >= CHUNKS


def test_stored_chunks_are_announced_as_events_of_storage(endpoint: str) -> None:
    options = {"endpoint": endpoint, "enable_kv_events": True}
    with TieredCache(options) as cache:
        keys = cache.chunks("events", 3)
        cache.store("events", keys)
        events = [event for event in cache.events() if event.medium is Medium.STORAGE]
        assert [(event.keys, event.removed, event.locality) for event in events] == [
            (keys, False, Locality.REMOTE)
        ]
        assert [event for event in cache.events() if event.medium is Medium.STORAGE] == []
    with TieredCache(options, replace(SHAPE, events=False)) as silent:
        silent.store("no events", silent.chunks("no events", 3))
        assert silent.events() == []


def test_a_router_may_have_chunks_brought_near(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as first, TieredCache({"endpoint": endpoint}) as other:
        keys = first.chunks("hinted", 4)
        first.store("hinted", keys)
        hashes = [get_offload_block_hash(key).hex() for key in keys]
        hints = KvHintsEnvelope("0.1", "message", [
            KvHintAction("one", "kv.prefetch", "1.0", {"block_hashes": hashes}),
            KvHintAction("two", "kv.unknown", "1.0", {"block_hashes": hashes}),
            KvHintAction("three", "kv.prefetch", "1.0", {"block_hashes": ["not hex"]}),
        ])
        looked = other.look("hinted", keys, context=ReqContext(req_id="hinted", kv_hints=hints))
        assert looked.found == [other.content(key) for key in keys]
        assert other.count(PREFETCHES) == 4
        eventually(lambda: other.tier._client.stats().prefetched == 4, "the prefetch")


def test_what_is_counted_is_declared_to_vllm(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as cache:
        extra = dict(cache.spec.extra_config)
        declared = TieringOffloadingSpec.build_metric_definitions(extra)
        cache.store("declared", cache.chunks("declared", 2))
        cache.look("undeclared", cache.chunks("undeclared", 2))
        assert {READS, WRITES} <= {name for name, _ in cache.counts} <= set(declared)
        for name, labels in cache.counts:
            assert len(labels) == len(declared[name].labelnames), name
        (config,) = extra["secondary_tiers"]
        assert SecondaryTierFactory.get_tier_class(config) is MemKVSecondaryTier
        assert set(cache.tier.config_info()) == set(MemKVSecondaryTier.config_info_keys(config))


def test_other_bytes_are_misses(endpoint: str) -> None:
    with TieredCache({"endpoint": endpoint}) as first:
        keys = first.chunks("mine", 3)
        first.store("mine", keys)
    others = {
        "model": replace(SHAPE, model="tests/other"),
        "dtype": replace(SHAPE, dtype="float8_e4m3fn"),
        "chunk": replace(SHAPE, blocks_per_chunk=8, block_bytes=32 * 1024),
        "block": replace(SHAPE, group_tokens=(2 * BLOCK_TOKENS,)),
        "ranks": replace(SHAPE, tp=2, block_bytes=32 * 1024),
        "order": replace(SHAPE, order="LBHNC"),
        "format": replace(SHAPE, canonical=True),
        "bytes": replace(SHAPE, block_bytes=128 * 1024),
    }
    for name, shape in others.items():
        with TieredCache({"endpoint": endpoint}, shape) as other:
            # The very same names, whatever the other engine would call its own chunks.
            assert other.look(name, keys).found == [None] * 3, name
            assert set(other.reads(3)) <= {"never_stored", "unexplained"}, name
    for name, options in {
        "revision": {"revision": "another"}, "name": {"model": "another"},
    }.items():
        with TieredCache({"endpoint": endpoint, **options}) as other:
            assert other.look(name, keys).found == [None] * 3, name


def test_salts_and_adapters_of_one_name_are_misses(endpoint: str) -> None:
    """vLLM puts them into its hashes; a name alone says nothing."""
    with TieredCache({"endpoint": endpoint}) as cache:
        cache.store("named", cache.chunks("named", 2))
        one = LoRARequest("name", 1, "/adapters/one")
        cache.store("named", cache.chunks("named", 2, adapter=one))
        for other in (
            cache.chunks("named", 2, salt="name"),
            cache.chunks("named", 2, salt="other"),
            cache.chunks("named", 2, adapter=LoRARequest("name", 1, "/adapters/two")),
            cache.chunks("named", 2, adapter=one, salt="name"),
        ):
            assert cache.look("named", other).found == [None] * 2


def test_a_canonical_layout_is_shared_by_other_parallelism(endpoint: str) -> None:
    one = replace(SHAPE, canonical=True)
    two = replace(SHAPE, canonical=True, tp=2, block_bytes=SHAPE.block_bytes // 2)
    with TieredCache({"endpoint": endpoint}, one) as first:
        keys = first.chunks("canonical", 3)
        first.store("canonical", keys)
    with TieredCache({"endpoint": endpoint}, two) as other:
        assert other.look("canonical", keys).found == [other.content(key) for key in keys]


def test_settings_that_mean_nothing_keep_the_engine_from_starting(endpoint: str) -> None:
    with pytest.raises(ValueError, match="unknown endpont"):
        TieredCache({"endpont": endpoint})
