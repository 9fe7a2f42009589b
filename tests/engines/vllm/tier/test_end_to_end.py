"""Two vLLM processes on a GPU, with nothing in common but the pool behind their host caches."""

from __future__ import annotations

import itertools

import pytest
import torch

from memkv.client.block_watch import BlockWatch
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool
from memkv.store.feeds import STORED
from memkv.testing.proxied_pool import Pair, Prompt, StartEngine
from memkv.testing.vllm_process import VllmProcess
from memkv.testing.waiting import eventually

BLOCK_TOKENS = 16
CHUNK_TOKENS = 64
CHUNKS = 15
PROMPT_TOKENS = CHUNKS * CHUNK_TOKENS + 40
STORED_S_MAX = 60.0

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="from end to end a GPU is needed: vLLM makes no offloading worker on CPUs",
    ),
]


@pytest.fixture(scope="module")
def tiered(endpoint: str, launch: StartEngine) -> Pair:
    tier = {
        "type": "MemKVSecondaryTier", "module_path": "memkv.integrations.vllm_tier",
        "endpoint": endpoint, "lookup_deadline_ms": 10_000, "deadline_ms": 20_000,
    }
    tiering = {
        "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 256 * MIB,
        "block_size": CHUNK_TOKENS, "secondary_tiers": [tier],
    }
    arguments: dict[str, object] = {
        "block_size": BLOCK_TOKENS, "max_model_len": 2048, "dtype": "float32",
        "kv_cache_memory_bytes": 256 * MIB, "gpu_memory_utilization": 0.3,
        "attention_backend": "TRITON_ATTN",
        "kv_transfer_config": {
            "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
            "kv_connector_extra_config": tiering,
        },
    }
    pair = launch("first", None, **arguments), launch("second", None, **arguments)
    for engine in pair:
        engine.wait_ready()
    return pair


def wait_stored(watch: BlockWatch, engine: VllmProcess, prompt: Prompt, chunks: int) -> None:
    """Have the engine step on until the pool has told of so many new chunks."""
    seeds = itertools.count(10_000)
    stored = 0

    def is_stored() -> bool:
        nonlocal stored
        engine.generate(prompt(next(seeds), 20), max_tokens=2)  # shorter than a chunk
        stored += sum(event.kind == STORED for update in watch.poll() for event in update.events)
        return stored >= chunks

    eventually(is_stored, f"storing {chunks} chunks", STORED_S_MAX)


def test_tokens_are_equal_from_end_to_end(
    pool: LocalPool, tiered: Pair, prompt: Prompt
) -> None:
    first, second = tiered
    watch = pool.watcher().watch_blocks()
    tokens = prompt(1, PROMPT_TOKENS)
    while watch.poll():  # what others stored
        pass
    computed = first.generate(tokens)
    assert computed.cached == [0]
    wait_stored(watch, first, prompt, CHUNKS)
    again = first.generate(tokens)
    loaded = second.generate(tokens)
    assert loaded.cached == [CHUNKS * CHUNK_TOKENS]
    assert loaded.tokens == computed.tokens == again.tokens
    other = prompt(2, PROMPT_TOKENS)
    assert second.generate(other).cached == [0]


def test_chunks_that_the_pool_lost_are_computed(
    pool: LocalPool, tiered: Pair, prompt: Prompt
) -> None:
    """The last test of the pool: it kills every node."""
    first, second = tiered
    tokens = prompt(3, PROMPT_TOKENS)
    computed = first.generate(tokens)
    for node in pool.nodes:
        pool.kill(node)
    try:
        answer = second.generate(tokens)
    finally:
        for node in pool.nodes:
            pool.start_again(node)
        pool.wait_complete(timeout_s=60.0)
    assert answer.cached == [0]
    assert answer.tokens == computed.tokens
