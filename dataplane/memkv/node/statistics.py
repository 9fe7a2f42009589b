"""Counters of a worker's server. Each thread counts for itself; `statistics()` adds up.

So counting takes no lock. A sum read while threads count may lag by what is under way.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from memkv.status import Status
from memkv.wire.opcodes import Opcode

LATENCY_BUCKETS = 25  # bucket b counts requests that took under 2^b us; the last takes all others


class ThreadCounters:
    """What one thread did. Written by that thread alone."""

    def __init__(self) -> None:
        self.items: dict[tuple[int, int], int] = {}
        self.latency: dict[int, list[int]] = {}
        self.bytes_in = 0
        self.bytes_out = 0

    def item(self, opcode: int, status: int) -> None:
        """Count one block, key or whole request with its status."""
        key = (opcode, status)
        self.items[key] = self.items.get(key, 0) + 1

    def items_of(self, opcode: int, statuses: Iterable[int]) -> None:
        """Count a batch."""
        for status, count in Counter(statuses).items():
            key = (opcode, status)
            self.items[key] = self.items.get(key, 0) + count

    def request(self, opcode: int, duration_ns: int) -> None:
        """Count a request that was served."""
        buckets = self.latency.get(opcode)
        if buckets is None:
            buckets = self.latency[opcode] = [0] * LATENCY_BUCKETS
        buckets[min((duration_ns // 1000).bit_length(), LATENCY_BUCKETS - 1)] += 1


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """What happened to connections since start."""

    accepted: int = 0
    refused_sessions: int = 0
    """HELLOs answered with BUSY or DENIED."""
    refused_lanes: int = 0
    refused_connections: int = 0
    """Closed at once: too many connections in a handshake, or no file descriptor left."""
    protocol_errors: int = 0
    timed_out: int = 0
    """Closed inside a handshake or a frame that did not go on."""
    stalled: int = 0
    """Closed because the peer did not take or send bytes in time."""
    tls_errors: int = 0
    """Closed because their TLS failed: no TLS, or not believed."""
    internal_errors: int = 0
    map_behind: int = 0
    """Requests sent by a newer shard map than this worker has."""


class ConnectionCounters:
    """Counts what is rare enough for a lock. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ConnectionCounts()

    def add(self, name: str) -> None:
        """Add one to a field of `ConnectionCounts`."""
        with self._lock:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + 1})

    def counts(self) -> ConnectionCounts:
        """Return a moment of them."""
        return self._counts


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A moment of a worker's server. Gauges: sessions, lanes, connections, local_*; the rest since
    start."""

    sessions: int
    lanes: int
    connections: int
    items: Mapping[tuple[Opcode, Status], int]
    """Blocks and keys by operation and status; a request refused as a whole counts as one."""
    latency_us: Mapping[Opcode, tuple[int, ...]]
    """Requests by how long they took, from the whole request to the end of the response:
    element b counts those under 2^b us."""
    bytes_in: int
    """Payload of puts, dropped payload included."""
    bytes_out: int
    """Payload of gets."""
    events: ConnectionCounts
    local_regions: int = 0
    """Pieces of memory that clients on this machine share now."""
    local_mapped_bytes: int = 0
    """What of them is mapped."""

    def requests(self, opcode: Opcode) -> int:
        """Return how many requests of an operation were served."""
        return sum(self.latency_us.get(opcode, ()))


def merge_items(threads: Iterable[ThreadCounters]) -> Mapping[tuple[Opcode, Status], int]:
    """Add up the items of all threads."""
    total: Counter[tuple[Opcode, Status]] = Counter()
    for counters in threads:
        for (opcode, status), count in list(counters.items.items()):
            total[Opcode(opcode), Status(min(status, 0))] += count
    return MappingProxyType(dict(total))


def merge_latency(threads: Iterable[ThreadCounters]) -> Mapping[Opcode, tuple[int, ...]]:
    """Add up the histograms of all threads."""
    total: dict[Opcode, list[int]] = {}
    for counters in threads:
        for opcode, buckets in list(counters.latency.items()):
            sums = total.setdefault(Opcode(opcode), [0] * LATENCY_BUCKETS)
            for index, count in enumerate(buckets):
                sums[index] += count
    return MappingProxyType({opcode: tuple(sums) for opcode, sums in total.items()})
