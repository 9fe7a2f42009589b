"""A pool whose nodes can be made to lie, and the engines beside it, for tests with real engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memkv.localpool.pool import LocalPool
from memkv.testing.proxy import FaultProxy
from memkv.testing.vllm_process import VllmProcess

StartEngine = Callable[..., VllmProcess]
Pair = tuple[VllmProcess, VllmProcess]
Prompt = Callable[[int, int], list[int]]
"""Makes tokens of a seed and a length."""


@dataclass
class ProxiedPool:
    """A pool, and what stands between it and its clients: one proxy a node."""

    pool: LocalPool
    proxies: list[FaultProxy]
