"""Moves chunks between the host cache and the pool, and says when their rows are free again.

The engine's thread hands over jobs and collects what ended; neither waits. Between them the thread
of `Transfers` works. A row belongs to its job until the job is taken as ended, which is not before
the last byte of a late answer can have been written.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memkv.client.options import BlockHint, PutOptions
from memkv.integrations.parts import Part
from memkv.integrations.stores import Stored
from memkv.integrations.transfers import Transfers
from memkv.integrations.vllm_tier.naming import ChunkNames, split
from memkv.reasons import MissReason


@dataclass(frozen=True)
class Job:
    """Chunks of one request that are moved together. `rows`: their places in the host cache."""

    number: int
    is_load: bool
    chunks: Sequence[bytes]
    rows: Sequence[int]
    request: str
    hints: Sequence[BlockHint] = ()


@dataclass(frozen=True)
class Ended:
    """A job that is over; its rows are free."""

    job: Job
    done: Sequence[bool]
    """For each chunk, whether it was loaded, or is in the pool."""
    moved: Sequence[bool]
    """For each chunk, whether its bytes were on their way at all."""
    seconds: float

    @property
    def is_whole(self) -> bool:
        return all(self.done)

    def of(self, wanted: bool) -> list[bytes]:
        """Return the chunks that were done, or those that were not."""
        return [
            chunk for chunk, done in zip(self.job.chunks, self.done, strict=True) if done is wanted
        ]


class ChunkMover:
    """Of one host cache. Used by the engine's thread."""

    def __init__(
        self, transfers: Transfers, names: ChunkNames, base: int, row_bytes: int, *,
        store_bytes_max: int, put_options: PutOptions,
    ) -> None:
        """`base`: where the host cache begins. `store_bytes_max`: of rows that stores may keep from
        being reused; more are not stored, so that a slow pool never takes the host cache away."""
        self._transfers = transfers
        self._names = names
        self._base = base
        self._row_bytes = row_bytes
        self._store_bytes_max = max(store_bytes_max, row_bytes)
        self._put_options = put_options
        self._store_bytes = 0
        self._open = 0
        self._ended: deque[Ended] = deque()
        self._news = threading.Event()

    def load(self, job: Job) -> None:
        """Begin to fill the job's rows."""
        began_s = time.monotonic()

        def ended(found: Sequence[object | None]) -> None:
            done = [header is not None for header in found]
            self._end(Ended(job, done, done, time.monotonic() - began_s))

        self._open += 1
        self._transfers.load(self._objects(job), ended, request=job.request)

    def store(self, job: Job) -> None:
        """Begin to store the job's rows, or drop the job at once."""
        began_s = time.monotonic()

        def ended(outcome: Sequence[Stored]) -> None:
            done = [stored is not Stored.DROPPED for stored in outcome]
            moved = [stored is Stored.NEW for stored in outcome]
            self._end(Ended(job, done, moved, time.monotonic() - began_s))

        self._open += 1
        size_bytes = len(job.chunks) * self._row_bytes
        self._store_bytes += size_bytes
        is_too_much = self._store_bytes > self._store_bytes_max and self._store_bytes > size_bytes
        if is_too_much or not self._names.is_known:
            self._transfers.dropped.note(job.request, MissReason.BUSY, len(job.chunks))
            nothing = [False] * len(job.chunks)
            self._end(Ended(job, nothing, nothing, 0.0))
            return
        self._transfers.store(
            self._objects(job), ended, request=job.request, options=self._put_options,
            hints=job.hints,
        )

    def take_ended(self) -> list[Ended]:
        """Return the jobs that ended since the last call."""
        self._news.clear()
        taken = []
        while self._ended:
            ended = self._ended.popleft()
            taken.append(ended)
            self._open -= 1
            if not ended.job.is_load:
                self._store_bytes -= len(ended.job.chunks) * self._row_bytes
        return taken

    def drain(self, complaint_s: float, complain: Callable[[int], None]) -> None:
        """Wait until every job has ended; `complain` is told how many have not, every
        `complaint_s`. What ended is left for `take_ended`."""
        while self._open > len(self._ended):
            if not self._news.wait(complaint_s):
                complain(self._open - len(self._ended))
            self._news.clear()

    # --- inside -------------------------------------------------------------------------------
    def _end(self, ended: Ended) -> None:
        """Any thread."""
        self._ended.append(ended)
        self._news.set()

    def _objects(self, job: Job) -> list[list[Part]]:
        objects = []
        for chunk, row in zip(job.chunks, job.rows, strict=True):
            block_hash, group = split(chunk)
            place = (self._base + row * self._row_bytes, self._row_bytes)
            objects.append(self._names.kind(group).parts(block_hash, [place]))
        return objects
