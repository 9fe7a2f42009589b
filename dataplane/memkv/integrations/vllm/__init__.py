"""vLLM keeps its KV in a MemKV pool: `MemKVConnector`, for `--kv-transfer-config`.

    {"kv_connector": "MemKVConnector", "kv_connector_module_path": "memkv.integrations.vllm",
     "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}

`planner.py` decides without I/O what is looked up, loaded and stored; `lookups.py` and `mover.py`
do it through a client; `geometry.py` knows where a block's bytes lie. None of these imports vLLM.
`scheduler_side.py`, `worker_side.py`, `identity.py`, `adapters.py` and `connector.py` adapt them to
the engine.
docs/vllm.md is for who runs it.
"""

from __future__ import annotations

__all__ = ["MemKVConnector"]


def __getattr__(name: str) -> object:
    # vLLM asks for the class by name; whoever only plans never needs the engine.
    if name == "MemKVConnector":
        from memkv.integrations.vllm.connector import MemKVConnector

        return MemKVConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
