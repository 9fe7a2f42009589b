"""LoRA adapters in vLLM processes that share a pool: blocks belong to weights, whatever is called
how and lies where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memkv.testing.proxied_pool import Pair, Prompt
from memkv.testing.vllm_process import Generated, LoraAdapter, VllmProcess

RANK, ALPHA = 8, 16
PROMPT_TOKENS, BLOCKS = 500, 15  # the last token is computed
MakeAdapter = Callable[[int, Path], None]

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def engines(start: Callable[..., VllmProcess]) -> Iterator[Pair]:
    """Two engines that keep all adapters of these tests loaded."""
    arguments = {"enable_lora": True, "max_lora_rank": RANK, "max_loras": 4}
    pair = start("adapted-first", **arguments), start("adapted-second", **arguments)
    for engine in pair:
        engine.wait_ready()
    yield pair
    assert [engine.close() for engine in pair] == [0, 0]


@pytest.fixture(scope="module")
def make_adapter(model: Path) -> MakeAdapter:
    """Write a random adapter, another one for each seed, that changes answers as much as weights
    of its own would."""
    shape = json.loads((model / "config.json").read_text())
    width, heads = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    rows = {"q_proj": width, "v_proj": heads * shape["num_key_value_heads"]}

    def make_adapter(seed: int, folder: Path) -> None:
        random = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(shape["num_hidden_layers"]):
            for name, length in rows.items():
                head = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                down = torch.randn(RANK, width, generator=random) / width**0.5
                up = torch.randn(length, RANK, generator=random) / RANK**0.5
                tensors[f"{head}.lora_A.weight"] = down.bfloat16()
                tensors[f"{head}.lora_B.weight"] = up.bfloat16()
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA,
            "target_modules": list(rows), "bias": "none",
        }))
        save_file(tensors, folder / "adapter_model.safetensors")

    return make_adapter


def check_computed(answer: Generated, computed: Generated) -> None:
    """Nothing came from the pool, the reason is counted, and it is what the engine computes."""
    assert answer.cached == [0]
    assert answer.reasons() == {"never_stored": BLOCKS}
    assert (answer.tokens, answer.logprobs) == (computed.tokens, computed.logprobs)


def test_two_adapters_with_one_name_do_not_share(
    engines: Pair, prompt: Prompt, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    first, second = engines
    one, two = (LoraAdapter("sql", tmp_path / name) for name in ("one", "two"))
    for seed, adapter in enumerate((one, two)):
        make_adapter(seed, adapter.path)
    tokens = prompt(100, PROMPT_TOKENS)
    theirs = first.generate(tokens, lora=one)
    assert theirs.reasons() == {"never_stored": BLOCKS}
    computed = second.compute(tokens, lora=two)
    check_computed(second.generate(tokens, lora=two), computed)
    base = second.compute(tokens)
    answers = [theirs.tokens, computed.tokens, base.tokens]
    assert all(answers.count(answer) == 1 for answer in answers), "adapters change nothing"


def test_the_same_adapter_elsewhere_under_another_name_does_share(
    engines: Pair, prompt: Prompt, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    first, second = engines
    mine, copy = LoraAdapter("mine", tmp_path / "mine"), LoraAdapter("copy", tmp_path / "copy")
    make_adapter(2, mine.path)
    shutil.copytree(mine.path, copy.path)
    tokens = prompt(101, PROMPT_TOKENS)
    computed = first.generate(tokens, max_tokens=40, lora=mine)
    again = first.generate(tokens, max_tokens=40, lora=mine)
    loaded = second.generate(tokens, max_tokens=40, lora=copy)
    assert loaded.cached == [BLOCKS * 32]
    assert loaded.reasons()["present"] == BLOCKS
    assert loaded.tokens == computed.tokens
    assert loaded.logprobs == again.logprobs  # to the last bit
    # What was generated is shared too.
    longer = tokens + computed.tokens[0] + prompt(102, 20)
    theirs = second.compute(longer, lora=copy)
    loaded = second.generate(longer, lora=copy)
    assert loaded.cached == [16 * 32]
    assert loaded.tokens == theirs.tokens


def test_other_files_at_the_same_path_do_not_share(
    engines: Pair, prompt: Prompt, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """As on two machines. vLLM's own hashes are equal then."""
    first, second = engines
    adapter = LoraAdapter("placed", tmp_path / "placed")
    make_adapter(3, adapter.path)
    tokens, fresh = prompt(103, PROMPT_TOKENS), prompt(104, PROMPT_TOKENS)
    theirs = first.generate(tokens, lora=adapter)
    make_adapter(4, adapter.path)
    computed = second.compute(tokens, lora=adapter)
    check_computed(second.generate(tokens, lora=adapter), computed)
    assert computed.tokens != theirs.tokens
    # The first engine goes on with what it has loaded, which nobody can know: it shares no more.
    assert first.compute(tokens, lora=adapter).tokens == theirs.tokens
    unshared = first.generate(fresh, lora=adapter)
    assert unshared.reasons() == {}
    check_computed(
        second.generate(fresh, lora=adapter), second.compute(fresh, lora=adapter)
    )


def test_a_salt_equal_to_an_adapters_name_is_a_miss(
    engines: Pair, prompt: Prompt, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    first, second = engines
    adapter = LoraAdapter("tenant", tmp_path / "tenant")
    make_adapter(5, adapter.path)
    tokens = prompt(105, PROMPT_TOKENS)
    theirs = first.generate(tokens, lora=adapter)
    computed = second.compute(tokens)
    assert computed.tokens != theirs.tokens
    check_computed(second.generate(tokens, salt="tenant"), computed)
    check_computed(second.generate(tokens), computed)
    adapted = second.compute(tokens, lora=adapter)
    assert adapted.tokens == theirs.tokens
    check_computed(second.generate(tokens, lora=adapter, salt="tenant"), adapted)
    # And it is the salt alone that kept them apart.
    assert second.generate(tokens, lora=adapter).cached == [BLOCKS * 32]
