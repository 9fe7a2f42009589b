"""What a client counts. `Client.stats()` returns a frozen copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from memkv.client.buffers import Scatter
from memkv.reasons import MissReason, reason_of
from memkv.status import Status


@dataclass(slots=True)
class ClientCounters:
    """Live counters of one client; plain additions under the GIL, exact enough for metrics."""

    gets: int = 0
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    puts: int = 0
    puts_dropped: int = 0
    bytes_written: int = 0
    corrupt: int = 0
    timeouts: int = 0
    busy: int = 0
    unavailable: int = 0
    wrong_owner: int = 0
    quarantined: int = 0
    copies_to_new_owner: int = 0
    copies_dropped: int = 0
    local_keys: int = 0
    local_fallbacks: int = 0
    rdma_keys: int = 0
    rdma_fallbacks: int = 0
    prefetched: int = 0
    prefetches_dropped: int = 0
    miss_reasons: dict[str, int] = field(default_factory=dict)

    def count_gets(self, results: Sequence[int]) -> None:
        """Add one batch of get results."""
        self.gets += len(results)
        for status in results:
            if status >= 0:
                self.hits += 1
                self.bytes_read += status
            else:
                self.misses += 1
                self._count_failure(status)
                label = reason_of(status).label
                self.miss_reasons[label] = self.miss_reasons.get(label, 0) + 1

    def count_puts(self, results: Sequence[int], scatters: Sequence[Scatter]) -> None:
        """Add one batch of put results."""
        self.puts += len(results)
        for status, scatter in zip(results, scatters, strict=True):
            if status >= 0:
                self.bytes_written += sum(size for _, size in scatter)
            else:
                self.puts_dropped += 1
                self._count_failure(status)

    def count_prefetches(self, results: Sequence[int]) -> None:
        """Add one batch of prefetch results."""
        dropped = sum(1 for status in results if status < 0)
        self.prefetches_dropped += dropped
        self.prefetched += sum(1 for status in results if status > 0)

    def _count_failure(self, status: int) -> None:
        if status == Status.TIMEOUT:
            self.timeouts += 1
        elif status == Status.BUSY:
            self.busy += 1
        elif status == Status.UNAVAILABLE:
            self.unavailable += 1
        elif status == Status.QUARANTINED:
            self.quarantined += 1

    def frozen(self, request_reasons: Mapping[MissReason, int]) -> ClientStatistics:
        """Return a copy; `request_reasons`: what integrations counted."""
        reasons = {reason.label: count for reason, count in request_reasons.items()}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["miss_reasons"] = dict(self.miss_reasons)  # in one step: others count meanwhile
        return ClientStatistics(**values, request_reasons=reasons)


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """One reading of a client's counters.

    gets, hits, misses: keys asked for, found, and not found for whatever reason
    bytes_read, bytes_written: payload of hits and of accepted puts
    puts, puts_dropped: keys given, and those refused or lost on the way
    corrupt: answers whose checks failed (each became a miss unless a verified re-read passed)
    timeouts, busy, unavailable: keys that ended so
    wrong_owner: answers that named a newer owner
    quarantined: keys whose buffer was not given back by the deadline
    copies_to_new_owner, copies_dropped: background copies of blocks found at a previous owner
    local_keys: keys asked for or put through shared memory
    local_fallbacks: keys that would have been, but for a worker that was not ready for it: over TCP
    rdma_keys: keys asked for or put over RDMA
    rdma_fallbacks: keys in registered memory that went over TCP, though their worker serves RDMA
    prefetched, prefetches_dropped: keys of prefetches that are or will be in a worker's DRAM, and
        those that nobody could be asked to bring there, or who was asked would not
    miss_reasons: misses by what their results say; `unexplained` ones by `Client.why` alone
    request_reasons: blocks that integrations looked up, by `MissReason`; `present` are hits
    """

    gets: int
    hits: int
    misses: int
    bytes_read: int
    puts: int
    puts_dropped: int
    bytes_written: int
    corrupt: int
    timeouts: int
    busy: int
    unavailable: int
    wrong_owner: int
    quarantined: int
    copies_to_new_owner: int
    copies_dropped: int
    local_keys: int
    local_fallbacks: int
    rdma_keys: int
    rdma_fallbacks: int
    prefetched: int
    prefetches_dropped: int
    miss_reasons: Mapping[str, int]
    request_reasons: Mapping[str, int]
