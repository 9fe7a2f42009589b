"""What the tier counts, for vLLM's log and its Prometheus metrics.

Bytes, times, queries, hits, failures and drops of the back pressure are counted by vLLM for every
tier (`vllm:kv_offload_tiering_*`); here is why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memkv.reasons import MissReason

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

READS = "vllm:kv_offload_memkv_reads"
WRITES = "vllm:kv_offload_memkv_writes"
PREFETCHES = "vllm:kv_offload_memkv_prefetches"
LABELS = ("pool", "reason")


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Describe the metrics."""
    from vllm.v1.kv_offload.base import OffloadingCounterMetadata

    return {
        READS: OffloadingCounterMetadata(
            "Chunks that were loaded (present), or were not found or not loaded, by reason.", LABELS
        ),
        WRITES: OffloadingCounterMetadata(
            "Chunks that are in the pool (present), or were not stored, by reason.", LABELS
        ),
        PREFETCHES: OffloadingCounterMetadata(
            "Chunks that hints of requests asked to be brought near.", ("pool",)
        ),
    }


class Counted:
    """Turns totals into what was counted since the last reading."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._before: dict[tuple[str, MissReason], int] = {}
        self._prefetches = 0

    def prefetched(self, chunks: int) -> None:
        self._prefetches += chunks

    def take(
        self, reads: Mapping[MissReason, int], writes: Mapping[MissReason, int]
    ) -> OffloadingConnectorStats | None:
        """Return what is new in the totals; None when nothing is."""
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
            OffloadingConnectorStats,
        )

        stats = OffloadingConnectorStats()
        for name, totals in ((READS, reads), (WRITES, writes)):
            for reason, total in totals.items():
                new = total - self._before.get((name, reason), 0)
                self._before[name, reason] = total
                if new:
                    stats.increase_counter(name, new, (self._pool, reason.label))
        if self._prefetches:
            stats.increase_counter(PREFETCHES, self._prefetches, (self._pool,))
            self._prefetches = 0
        return None if stats.is_empty() else stats
