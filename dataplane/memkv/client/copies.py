"""Blocks found at a previous owner, waiting to be put to the new one in the background.

The bytes are copied out of the caller's buffer before the call returns. The queue is bounded: what
does not fit is dropped and counted, since the node's own pull moves it anyway.

What keeps a deleted block deleted: a copy is sent by the map that it was found by, after its
previous owner said once more, by that map or a newer one, that it has the block. What was deleted
before that is not there any more; a later delete reaches the new owner, which refuses the copy. A
slot that moved on since refuses copies by the older map.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memkv import _hotpath
from memkv.client.buffers import Scatter
from memkv.client.calls import Operation
from memkv.client.operations import Workers
from memkv.client.options import COPY_PUT
from memkv.client.routing import Keys
from memkv.client.statistics import ClientCounters
from memkv.limits import COPY_QUEUE_BYTES_MAX
from memkv.status import Status

if TYPE_CHECKING:
    from memkv.client.core import Routes


@dataclass(frozen=True, slots=True)
class PendingCopy:
    """One verified block on its way to its new owner."""

    block_id: bytes
    slot: bytes
    data: bytearray
    routes: Routes
    """The picture it was found by."""
    previous: int
    """Index of the worker that had it."""


class CopyQueue:
    """Bounded queue between callers and the keeper. Thread-safe."""

    def __init__(self, counters: ClientCounters, bytes_max: int = COPY_QUEUE_BYTES_MAX) -> None:
        self._counters = counters
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._queue: deque[PendingCopy] = deque()
        self._bytes = 0

    def add(
        self, block_id: bytes, slot: bytes, scatter: Scatter, size_bytes: int, routes: Routes,
        previous: int,
    ) -> bool:  # fmt: skip
        """Copy `size_bytes` out of `scatter` and queue them; False when there is no room."""
        with self._lock:
            if self._bytes + size_bytes > self._bytes_max:
                self._counters.copies_dropped += 1
                return False
            self._bytes += size_bytes
        copy = PendingCopy(block_id, slot, gather_bytes(scatter, size_bytes), routes, previous)
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


def copy_operation(workers: Workers, keys: Keys, scatter: Scatter, previous: int) -> Operation[int]:
    """Put one block that `previous` had to its new owner. Result: 0, or a negative Status."""
    started = workers.start_exists(previous, keys, [0], 0, by_this_map=True)
    for put in (False, True):
        if put:
            owner = workers.route().owner_index(keys.slot_of(0))
            started = workers.start_put(owner, keys, [0], [scatter], COPY_PUT)
        if isinstance(started, Status):
            return started
        yield started
        for call in started:
            call.outcome.finished(call)
        status = started[0].statuses()[0]
        if status != (0 if put else 1):
            return status if status < 0 else Status.MISS
    return Status.OK


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
