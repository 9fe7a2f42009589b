"""vLLM processes share KV through a pool, and nothing the pool does changes what they answer.

Engines start slowly: tests share two, and go from a healthy pool to a broken one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memkv.limits import KIB
from memkv.testing.proxied_pool import Pair, Prompt, ProxiedPool, StartEngine
from memkv.testing.proxy import faithful

BLOCK_BYTES = 32 * 4 * 4 * 2 * 64 * 2  # tokens, layers, heads, K and V, elements, bfloat16
MAKE_MODEL = Path(__file__).parents[3] / "deploy/dev/vllm/make_model.py"

pytestmark = pytest.mark.timeout(1800)


def test_a_second_process_answers_from_blocks_that_the_first_one_stored(
    pair: Pair, prompt: Prompt
) -> None:
    first, second = pair
    tokens = prompt(1, 500)
    computed = first.generate(tokens)
    assert computed.cached == [0]
    again = first.generate(tokens)
    loaded = second.generate(tokens)
    assert loaded.cached == [480]  # all full blocks but none beyond the last token
    assert loaded.reasons() == {"present": 15, "loaded_bytes": 15 * BLOCK_BYTES}
    assert loaded.tokens == computed.tokens
    # The same KV gives the same arithmetic as the engine's own cache, to the last bit.
    assert loaded.logprobs == again.logprobs


def test_generated_tokens_are_stored_too(pair: Pair, prompt: Prompt) -> None:
    first, second = pair
    tokens = prompt(2, 100)
    answer = first.generate(tokens, max_tokens=40)
    conversation = tokens + answer.tokens[0] + prompt(3, 20)
    theirs = second.generate(conversation)
    assert theirs.cached == [128]  # the last generated token was never computed
    assert theirs.tokens == first.generate(conversation).tokens


def test_a_salt_is_a_miss_and_shares_with_the_same_salt(pair: Pair, prompt: Prompt) -> None:
    first, second = pair
    tokens = prompt(4, 200)
    plain = first.generate(tokens)
    salted = second.generate(tokens, salt="tenant-a")
    assert salted.cached == [0]
    assert salted.reasons() == {"never_stored": 6}
    assert salted.tokens == plain.tokens
    theirs = first.generate(tokens, salt="tenant-a")
    assert theirs.cached == [192]
    assert theirs.tokens == plain.tokens


def test_requests_that_crowd_each_other_out_answer_as_alone(pair: Pair, prompt: Prompt) -> None:
    """The second engine holds 47 blocks, four requests that end with 13: they are preempted while
    blocks are stored and loaded, and places change hands."""
    first, second = pair
    prompts = [prompt(10 + number, 350) for number in range(6)]
    # Half of them are in the pool, half are stored by who computes them here.
    alone = [first.generate(tokens, max_tokens=40) for tokens in prompts[:3]]
    crowd = second.generate(*prompts, max_tokens=40)
    alone += [first.generate(tokens, max_tokens=40) for tokens in prompts[3:]]
    assert crowd.preemptions
    assert crowd.tokens == [one.tokens[0] for one in alone]


@pytest.mark.parametrize("changed", [
    {"block_size": 64}, {"dtype": "float32"},
    {"hf_overrides": {"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}}},
], ids=["block size", "dtype", "positions"])
def test_another_block_size_dtype_or_scaling_of_positions_is_a_miss(
    pair: Pair, start: StartEngine, prompt: Prompt, changed: dict[str, object]
) -> None:
    first, _ = pair
    tokens = prompt(20, 200)
    first.generate(tokens)
    other = start("-".join(changed), **changed)
    other.wait_ready()
    computed = other.compute(tokens)
    answer = other.generate(tokens)
    assert answer.cached == [0]
    assert answer.reasons() == {"never_stored": 199 // int(str(changed.get("block_size", 32)))}
    assert (answer.tokens, answer.logprobs) == (computed.tokens, computed.logprobs)
    assert other.close() == 0


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(),
    reason="vLLM for CPUs has caches of 8 bits with AVX-512 only; test_formats.py has their names",
)
def test_floats_of_eight_bits_of_the_other_kind_are_a_miss(
    start: StartEngine, prompt: Prompt
) -> None:
    """Their tensors are alike: plain bytes, as many."""
    kinds = [start(name, kv_cache_dtype=name) for name in ("fp8_e4m3", "fp8_e5m2")]
    for engine in kinds:
        engine.wait_ready()
    tokens = prompt(22, 200)
    for engine in kinds:
        assert engine.generate(tokens).reasons() == {"never_stored": 6}
    assert [engine.close() for engine in kinds] == [0, 0]


def test_another_model_of_the_same_name_is_a_miss(
    pair: Pair, start: StartEngine, prompt: Prompt, model: Path, tmp_path: Path
) -> None:
    """Two folders called alike: same configuration, same shapes, other weights."""
    first, _ = pair
    tokens = prompt(21, 200)
    theirs = first.generate(tokens)
    subprocess.run(
        [sys.executable, MAKE_MODEL, tmp_path / model.name, "--hidden", "256", "--layers", "4",
         "--kv-heads", "4", "--seed", "1"], check=True,
    )
    assert (tmp_path / model.name / "config.json").read_bytes() == (
        model / "config.json"
    ).read_bytes()
    other = start("other-model", of=tmp_path / model.name)
    other.wait_ready()
    computed = other.compute(tokens)
    answer = other.generate(tokens)
    assert answer.cached == [0]
    assert answer.reasons() == {"never_stored": 6}
    assert (answer.tokens, answer.logprobs) == (computed.tokens, computed.logprobs)
    assert answer.tokens != theirs.tokens, "the models are the same, and so this shows nothing"
    assert other.close() == 0


def test_flipped_bits_are_computed_anew(pair: Pair, proxied: ProxiedPool, prompt: Prompt) -> None:
    first, second = pair
    tokens = prompt(30, 600)
    computed = first.generate(tokens)
    lies = []

    def flip(sent: int, piece: bytearray) -> bool:
        if len(piece) > 8 * KIB:  # payload
            piece[len(piece) // 2] ^= 1
            lies.append(sent)
        return True

    for proxy in proxied.proxies:
        proxy.fault = flip
    try:
        answer = second.generate(tokens)
    finally:
        for proxy in proxied.proxies:
            proxy.fault = faithful
    assert lies
    assert answer.reasons()["corrupt"] == 1
    assert answer.tokens == computed.tokens
    assert second.generate(tokens).tokens == computed.tokens


def test_a_pool_that_is_killed_in_the_middle_fails_no_request(
    pair: Pair, proxied: ProxiedPool, prompt: Prompt
) -> None:
    first, second = pair
    prompts = [prompt(40 + number, 900) for number in range(3)]
    computed = [first.generate(tokens) for tokens in prompts]
    second.begin(*prompts)
    for node in proxied.pool.nodes:
        proxied.pool.kill(node)
    answer = second.end()
    assert answer.tokens == [one.tokens[0] for one in computed]
    fresh = prompt(50, 300)
    assert second.generate(fresh).tokens == first.generate(fresh).tokens
