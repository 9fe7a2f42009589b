"""Blocks found at a previous owner, waiting to be put to the new one in the background.

The bytes are copied out of the caller's buffer before the call returns. The queue is bounded: what
does not fit is dropped and counted, since the node's own pull moves it anyway.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from memkv import _hotpath
from memkv.client.buffers import Scatter
from memkv.client.statistics import ClientCounters
from memkv.limits import COPY_QUEUE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class PendingCopy:
    """One verified block on its way to its new owner."""

    block_id: bytes
    slot: bytes
    data: bytearray


class CopyQueue:
    """Bounded queue between callers and the keeper. Thread-safe."""

    def __init__(self, counters: ClientCounters, bytes_max: int = COPY_QUEUE_BYTES_MAX) -> None:
        self._counters = counters
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._queue: deque[PendingCopy] = deque()
        self._bytes = 0

    def add(self, block_id: bytes, slot: bytes, scatter: Scatter, size_bytes: int) -> bool:
        """Copy `size_bytes` out of `scatter` and queue them; False when there is no room."""
        with self._lock:
            if self._bytes + size_bytes > self._bytes_max:
                self._counters.copies_dropped += 1
                return False
            self._bytes += size_bytes
        copy = PendingCopy(block_id, slot, gather_bytes(scatter, size_bytes))
        with self._lock:
            self._queue.append(copy)
        return True

    def take(self) -> PendingCopy | None:
        """Return the oldest copy, which the caller now owns, or None."""
        with self._lock:
            if not self._queue:
                return None
            copy = self._queue.popleft()
            self._bytes -= len(copy.data)
            return copy

    def __len__(self) -> int:
        return len(self._queue)


def gather_bytes(scatter: Scatter, size_bytes: int) -> bytearray:
    """Copy the first `size_bytes` of a scatter list into one buffer."""
    data = bytearray(size_bytes)
    target, filled = memoryview(data), 0
    for address, length in scatter:
        piece = min(length, size_bytes - filled)
        if piece <= 0:
            break
        _hotpath.copy_memory(target[filled : filled + piece], _hotpath.memory_at(address, piece))
        filled += piece
    return data
