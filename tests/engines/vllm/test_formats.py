"""What vLLM's caches are called: equal names mean equal bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from memkv.integrations.vllm.engine import element_names
from memkv.integrations.vllm.geometry import BlockRuns
from memkv.integrations.vllm.memory import InPlaceMemory
from memkv.integrations.vllm.messages import RankFormat
from memkv.integrations.vllm.worker_side import layer_memory, rank_format

LAYERS = ("layers.0", "layers.1")


class Layer(AttentionLayerBase):  # type: ignore[misc]  # vLLM has no types here
    """What vLLM asks of every layer beside its type of cache, nobody asks for here."""

    def __init__(self, kv_cache_dtype: str) -> None:
        self.kv_cache_dtype = kv_cache_dtype

    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: object) -> Any:
        raise NotImplementedError


def format_of(*kv_cache_dtypes: str, dtype: torch.dtype = torch.uint8) -> RankFormat:
    """Describe a worker of two layers, whose tensors are of the same type."""
    layers = dict(zip(LAYERS, map(Layer, kv_cache_dtypes), strict=True))
    config: Any = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context=layers)
    )
    caches = {name: torch.zeros(4, 2, 16, 128, dtype=dtype) for name in LAYERS}
    groups: Any = SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=list(LAYERS))])
    memory = InPlaceMemory([BlockRuns([layer_memory(one) for one in caches.values()], 4)])
    return rank_format(
        caches, groups, [0], memory, ["TEST"], elements=element_names(config)
    )


@pytest.mark.parametrize(("said", "named"), [
    ("fp8_e5m2", "float8_e5m2"), ("fp8_per_token_head", "fp8_per_token_head"), ("nvfp4", "nvfp4"),
    ("turboquant_4bit_nc", "turboquant_4bit_nc"), ("auto", "uint8"),
])
def test_elements_of_one_byte_are_named_as_the_engine_calls_them(said: str, named: str) -> None:
    assert format_of(said, said).kv_dtype == named


def test_names_of_one_type_are_one_name() -> None:
    assert format_of("fp8", "fp8") == format_of("fp8_e4m3", "fp8_e4m3")
    assert format_of("fp8", "fp8").kv_dtype.startswith("float8_e4m3fn")


def test_types_that_tensors_know_are_theirs() -> None:
    assert format_of("auto", "auto", dtype=torch.bfloat16).kv_dtype == "bfloat16"
    assert format_of("float16", "float16", dtype=torch.float16).kv_dtype == "float16"


def test_layers_of_different_types_are_told_apart() -> None:
    one, other = format_of("fp8", "fp8_e5m2"), format_of("fp8_e5m2", "fp8")
    assert one.kv_dtype == other.kv_dtype
    assert "+" in one.kv_dtype
    assert one.layout != other.layout
