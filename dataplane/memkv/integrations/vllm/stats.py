"""What the connector counted, for vLLM's log and its Prometheus metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

NAMES = {
    "hit_tokens": "Tokens that were loaded instead of computed, or were tried to be",
    "loads": "Loads that ended",
    "loads_failed": "Loads that did not bring everything: the rest was computed",
    "load_blocks": "Blocks loaded",
    "load_bytes": "Bytes loaded",
    "load_seconds": "Seconds from the begin of each load to its end, added up",
    "layer_wait_seconds": "Seconds that layers waited for their part of a load",
    "store_blocks": "Blocks stored",
    "store_bytes": "Bytes stored",
    "stores_dropped": "Blocks that were not stored",
    "requests_not_shared": "Requests whose blocks could not be named; the log says why",
    "busy_seconds": "CPU seconds of the engine's threads inside the connector",
}
BY_REASON = {
    "lookup": "Blocks asked for, by what was found",
    "missed": "Blocks that were asked for and not there, by why (of each request's first ones)",
    "load_missed": "Blocks that a load did not bring, by reason",
    "store_dropped": "Blocks that the pool did not take, by reason",
}


@dataclass
class MemKVStats(KVConnectorStats):  # type: ignore[misc]  # engines have no types here
    """Counts since the last reading, by name; `lookup_*` and their like end in a reason."""

    def reset(self) -> None:
        self.data: dict[str, float] = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        return {name: round(count, 3) for name, count in sorted(self.data.items())}


class MemKVPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]  # engines have no types here
    """`vllm:memkv_*` counters."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        labels = arguments[2]
        self._plain = {
            name: self._counter_cls(f"vllm:memkv_{name}", text, labelnames=labels)
            for name, text in NAMES.items()
        }
        self._by_reason = {
            name: self._counter_cls(f"vllm:memkv_{name}", text, labelnames=[*labels, "reason"])
            for name, text in BY_REASON.items()
        }

    def observe(self, transfer_stats_data: dict[str, float], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for name, count in transfer_stats_data.items():
            if name in self._plain:
                self._plain[name].labels(*values).inc(count)
                continue
            for prefix, counter in self._by_reason.items():
                if name.startswith(f"{prefix}_"):
                    counter.labels(*values, name.removeprefix(f"{prefix}_")).inc(count)
