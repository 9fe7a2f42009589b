"""A thread that runs a client's jobs for an engine: what engines call only leaves a note.

Engines hand over work on threads of their own (a controller's, an event loop's) which must not
wait, not even for the GIL-bound part of a submission. So `call` queues an action and returns;
actions and the ends of jobs run on the loop's thread, one after another, and need no locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from memkv.client.events import Completion
from memkv.client.options import PutOptions
from memkv.client.reasons import RequestReasons
from memkv.client.routing import Key
from memkv.status import Status

log = logging.getLogger(__name__)

POLL_MS = 500  # between ticks; work wakes the loop
CLOSE_WAIT_S = 5.0  # a closed client ends its calls at once; after this they are given up

OnEnd = Callable[[list[int]], None]


class JobClient(Protocol):
    """The part of `memkv.Client` that runs jobs."""

    @property
    def event_fd(self) -> int: ...
    def submit_get_into_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> int: ...
    def submit_put_from_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> int: ...
    def submit_is_exist(self, keys: Sequence[Key], lease_ms: int = 0) -> int: ...
    def submit_why(self, keys: Sequence[Key]) -> int: ...
    @property
    def reasons(self) -> RequestReasons: ...
    def completions(self) -> list[Completion]: ...
    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int: ...
    def unregister_buffer(self, ptr: int) -> int: ...
    def batch_remove(self, keys: Sequence[Key]) -> list[int]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Job:
    """`first_pieces`: where the memory of each key begins, for jobs whose memory is written.
    `quarantined`: those of them that may still be written after the results are there."""

    key_count: int
    on_end: OnEnd
    first_pieces: Sequence[int] = ()
    results: list[int] | None = None
    quarantined: frozenset[int] = frozenset()


class JobLoop:
    """Owns the client from now on. `call` may be called from any thread, the rest where it says.

    Every job ends: `on_end` gets one result a key, once all of the job's memory is free. A get that
    was QUARANTINED therefore ends when the client has given its memory back.
    """

    def __init__(
        self, client: JobClient, tick: Callable[[], None] | None = None, name: str = "memkv-jobs"
    ) -> None:
        """`tick` is called now and then on the loop's thread, at least every POLL_MS."""
        self._client = client
        self._tick = tick or (lambda: None)
        self._process = os.getpid()
        self._jobs: dict[int, _Job] = {}
        self._in_quarantine: list[_Job] = []
        self._held: Counter[int] = Counter()
        """How many buffers that begin there were not given back yet: puts share header pages."""
        self._actions: deque[Callable[[], None]] = deque()
        self._closing = self._closed = False
        self._lock = threading.Lock()  # of _closing, and of what is queued before it
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, action: Callable[[], None]) -> bool:
        """Have the loop's thread run `action` soon; False when it never will: closed, or another
        process than the one that connected."""
        if os.getpid() != self._process:
            return False
        with self._lock:
            if self._closing:
                return False
            self._actions.append(action)
            os.eventfd_write(self._wake_fd, 1)
        return True

    # --- on the loop's thread -----------------------------------------------------------------
    def get(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        on_end: OnEnd,
    ) -> None:
        """Start a get into memory that must stay until `on_end`."""
        job = _Job(len(keys), on_end, [pieces[0] for pieces in ptrs])
        self._start(job, lambda: self._client.submit_get_into_multi(keys, ptrs, sizes))

    def put(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions, on_end: OnEnd,
    ) -> None:
        """Start a put of memory that must stay until `on_end`."""
        job = _Job(len(keys), on_end, [pieces[0] for pieces in ptrs])
        self._start(job, lambda: self._client.submit_put_from_multi(keys, ptrs, sizes, options))

    def exists(self, keys: Sequence[Key], lease_ms: int, on_end: OnEnd) -> None:
        """Start a lookup."""
        job = _Job(len(keys), on_end)
        self._start(job, lambda: self._client.submit_is_exist(keys, lease_ms))

    def why(self, keys: Sequence[Key], on_end: OnEnd) -> None:
        """Start asking why blocks are not there; results are numbers of `MissReason`."""
        job = _Job(len(keys), on_end)
        self._start(job, lambda: self._client.submit_why(keys))

    # --- any thread ---------------------------------------------------------------------------
    def close(self) -> None:
        """Close the client; what is under way ends. Waits for that, at most CLOSE_WAIT_S."""
        with self._lock:
            if self._closing or os.getpid() != self._process:
                return
            self._closing = True
        self._client.close()  # calls in flight end now
        self._closed = True
        os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            os.close(self._wake_fd)

    # --- inside -------------------------------------------------------------------------------
    def _start(self, job: _Job, submit: Callable[[], int]) -> None:
        try:
            self._jobs[submit()] = job
        except Exception:  # a bug, here or in who made the keys: a miss like any other
            log.exception("a job of %d keys was not taken", job.key_count)
            self._actions.append(partial(job.on_end, [Status.INTERNAL] * job.key_count))
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        poller.register(self._client.event_fd, select.POLLIN)
        closed_at: float | None = None
        while True:
            poller.poll(POLL_MS)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            self._take_completions()
            while self._actions:
                _guarded(self._actions.popleft())
            _guarded(self._tick)
            if self._closed:
                closed_at = closed_at or time.monotonic()
                waiting = self._jobs or self._in_quarantine or self._actions
                if not waiting or time.monotonic() > closed_at + CLOSE_WAIT_S:
                    break
        self._give_up()

    def _take_completions(self) -> None:
        for completion in self._client.completions():
            if completion.job_id:
                self._ended(self._jobs.pop(completion.job_id, None), completion.results)
            else:
                self._released(completion.released)

    def _ended(self, job: _Job | None, results: list[int]) -> None:
        if job is None:
            return
        job.results = results
        held = [
            first for first, result in zip(job.first_pieces, results, strict=False)
            if result == Status.QUARANTINED
        ]
        if held:
            log.warning(
                "%d buffers may still be written after their deadline; they are kept back until "
                "the node or the device is done with them", len(held),
            )
            job.quarantined = frozenset(held)
            self._in_quarantine.append(job)
            self._held.update(held)
        else:
            _guarded(partial(job.on_end, results))

    def _released(self, addresses: Sequence[int]) -> None:
        self._held.subtract(addresses)
        free = {address for address in addresses if self._held[address] <= 0}
        for address in free:
            del self._held[address]
        for job in list(self._in_quarantine):
            job.quarantined -= free
            if not job.quarantined:
                self._in_quarantine.remove(job)
                _guarded(partial(job.on_end, job.results or []))

    def _give_up(self) -> None:
        """End what a closed client did not: nobody waits for ever."""
        left, self._jobs = list(self._jobs.values()), {}
        for job in left + self._in_quarantine:
            _guarded(partial(job.on_end, [Status.UNAVAILABLE] * job.key_count))


def _guarded(action: Callable[[], None]) -> None:
    """Run one action; what it raises is its own affair, not that of the others."""
    try:
        action()
    except Exception:
        log.exception("an action of the job loop failed")
