"""SGLang's host cache of keys and values, made by its own classes on a CPU, with known content."""

from __future__ import annotations

import hashlib

import torch
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

PAGE, LAYERS, HEADS, DIM = 16, 4, 4, 64
DEVICE_TOKENS = 128
BUDGET_BYTES = 1 << 28  # SGLang leaves 10 GB of the machine free unless it is told


def host_pool(
    layout: str = "page_first", dtype: torch.dtype = torch.bfloat16, layers: int = LAYERS
) -> MHATokenToKVPoolHost:
    """Return a pool of a dozen pages over device buffers that nobody uses."""
    k, v = (
        tuple(torch.zeros(DEVICE_TOKENS, HEADS, DIM, dtype=dtype) for _ in range(layers))
        for _ in range(2)
    )
    info = MHABufferInfo(
        buffers=KVBuffers(
            k=k, v=v, k_data_ptrs=_pointers(k), v_data_ptrs=_pointers(v), layout=KVBufferLayout.NHD
        ),
        page_size=PAGE, head_num=HEADS, head_dim=DIM, v_head_dim=DIM, dtype=dtype,
        device=torch.device("cpu"),
    )
    with host_memory_budget_scope(BUDGET_BYTES):
        pool = MHATokenToKVPoolHost(
            info, 1.5, 0, PAGE, layout, pin_memory=False, device="cpu",
            device_capacity_tokens=DEVICE_TOKENS, start_layer=0, end_layer=layers,
        )
    pool.kv_buffer.zero_()
    return pool


def fill(pool: MHATokenToKVPoolHost, page: int, name: str) -> None:
    """Give a page content of its own."""
    size = pool.get_dummy_flat_data_page().numel()
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[:7], "big") + page)
    content = torch.randint(-99, 99, (size,), generator=generator).to(pool.dtype)
    pool.set_from_flat_data_page(page * PAGE, content)


def page_of(pool: MHATokenToKVPoolHost, page: int) -> torch.Tensor:
    return pool.get_data_page(page * PAGE)


def indices(*pages: int) -> torch.Tensor:
    """Return the slots of pages, as SGLang names them."""
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def hashes(name: str, count: int) -> list[str]:
    """Return names of pages as SGLang makes them: SHA-256 in hexadecimal."""
    return [hashlib.sha256(f"{name}-{number}".encode()).hexdigest() for number in range(count)]


def _pointers(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)
