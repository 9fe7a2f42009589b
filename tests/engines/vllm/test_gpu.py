"""The connector beside a GPU: blocks by way of pinned memory, and what direct loads ask of CUDA."""

from __future__ import annotations

import os

import pytest
import torch

from memkv.integrations.vllm.gpu_direct import CudaDriver
from memkv.limits import MIB
from memkv.testing.proxied_pool import Prompt, StartEngine
from memkv.testing.waiting import eventually

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

ENGINE: dict[str, object] = {
    "dtype": "float32", "kv_cache_memory_bytes": 256 * MIB, "gpu_memory_utilization": 0.3,
    "attention_backend": "TRITON_ATTN",
}


@pytest.mark.parametrize("gpu_direct", [False, True], ids=["copied", "direct"])
def test_a_second_engine_answers_from_blocks_of_the_first_one(
    start: StartEngine, prompt: Prompt, gpu_direct: bool
) -> None:
    """Without a NIC the direct way falls back to copies."""
    first, second = (
        start(f"{name}-{gpu_direct}", connector={"gpu_direct": gpu_direct}, **ENGINE)
        for name in ("first", "second")
    )
    for engine in (first, second):
        engine.wait_ready()
    tokens = prompt(1 + gpu_direct, 500)
    computed = first.generate(tokens)
    assert computed.cached == [0]
    again = first.generate(tokens)
    loaded = second.generate(tokens)
    assert loaded.cached == [480]
    assert loaded.tokens == computed.tokens
    assert loaded.logprobs == again.logprobs


def test_the_driver_exports_memory_of_the_gpu() -> None:
    memory = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
    driver = CudaDriver()
    fd = driver.export(memory.data_ptr(), memory.nbytes)
    try:
        assert "dmabuf" in os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    eventually(driver.after_model(), "an empty stream's end")
    driver.show_writes()
