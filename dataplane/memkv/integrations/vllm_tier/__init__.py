"""vLLM's host cache gets a MemKV pool behind it: `MemKVSecondaryTier`, for `TieringOffloadingSpec`.

    {"type": "MemKVSecondaryTier", "module_path": "memkv.integrations.vllm_tier"}

vLLM moves blocks between GPU and host memory and decides what stays there; the tier moves them
between host memory and the pool. `manager.py` and `metrics.py` adapt the engine's classes; the rest
imports nothing of vLLM: `naming.py` names chunks, `lookups.py` remembers answers, `regions.py`
finds the file behind the engine's memory, `hints.py` reads what routers say. docs/vllm-tier.md is
for who runs it.
"""

from __future__ import annotations

__all__ = ["MemKVSecondaryTier"]


def __getattr__(name: str) -> object:
    # vLLM asks for the class by name; whoever only names chunks never needs the engine.
    if name == "MemKVSecondaryTier":
        from memkv.integrations.vllm_tier.manager import MemKVSecondaryTier

        return MemKVSecondaryTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
