"""The eventfd face: jobs are submitted, the engine's eventfd fires, `completions()` collects."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memkv.client.buffers import Scatter
from memkv.client.calls import ResultT
from memkv.client.core import ClientCore
from memkv.client.drive import Running, take_completion
from memkv.client.operations import (
    exists_operation,
    get_operation,
    prefetch_operation,
    put_operation,
    why_operation,
)
from memkv.client.options import PutOptions
from memkv.client.requests import Requests
from memkv.client.routing import Keys
from memkv.reasons import MissReason
from memkv.status import Status

COMPLETIONS_PER_CALL_MAX = 256  # bounds how long one call of completions() may take


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished job: one result a key, as the batch call would have returned them.

    `job_id` 0 is no job: `released` names buffers of earlier QUARANTINED results (the address
    where each begins) that nobody writes any more.
    """

    job_id: int
    results: list[int]
    released: tuple[int, ...] = ()


class EventFace:
    """Jobs in flight of one client. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._ids = itertools.count(1)
        self._advancing = threading.Lock()
        self._finished: deque[Completion] = deque()

    def submit_get(
        self, keys: Keys | None, requests: Requests | None, scatters: Sequence[Scatter], count: int
    ) -> int:
        job_id = next(self._ids)

        def on_result(results: list[int]) -> None:
            self._core.counters.count_gets(results)
            self._add(Completion(job_id, results))

        if keys is None or requests is None:
            self._end_at_once(on_result, count)
        else:
            self._start(Running(get_operation(requests, keys, scatters), on_result))
        return job_id

    def submit_put(
        self, keys: Keys | None, requests: Requests | None, scatters: Sequence[Scatter],
        options: PutOptions, count: int,
    ) -> int:
        job_id = next(self._ids)

        def on_result(results: list[int]) -> None:
            self._core.counters.count_puts(results, scatters)
            self._add(Completion(job_id, results))

        if keys is None or requests is None:
            self._end_at_once(on_result, count)
        else:
            self._start(Running(put_operation(requests, keys, scatters, options), on_result))
        return job_id

    def submit_exists(
        self, keys: Keys | None, requests: Requests | None, lease_ms: int, count: int
    ) -> int:
        job_id = next(self._ids)

        def on_result(results: list[int]) -> None:
            self._add(Completion(job_id, results))

        if keys is None or requests is None:
            self._end_at_once(on_result, count)
        else:
            self._start(Running(exists_operation(requests, keys, lease_ms), on_result))
        return job_id

    def submit_prefetch(self, keys: Keys | None, requests: Requests | None, count: int) -> int:
        job_id = next(self._ids)

        def on_result(results: list[int]) -> None:
            self._core.counters.count_prefetches(results)
            self._add(Completion(job_id, results))

        if keys is None or requests is None:
            self._end_at_once(on_result, count)
        else:
            self._start(Running(prefetch_operation(requests, keys), on_result))
        return job_id

    def submit_why(self, keys: Keys | None, requests: Requests | None, count: int) -> int:
        job_id = next(self._ids)

        def on_result(reasons: list[MissReason]) -> None:
            self._add(Completion(job_id, [int(reason) for reason in reasons]))

        if keys is None or requests is None:
            on_result([MissReason.UNAVAILABLE] * count)
            self._core.engine.notify()
        else:
            self._start(Running(why_operation(requests, keys), on_result))
        return job_id

    def completions(self) -> list[Completion]:
        """Advance what the engine reports and return the jobs that ended."""
        with self._advancing:  # a job that was late is reported twice, and the order matters
            for job in self._core.engine.completions(COMPLETIONS_PER_CALL_MAX):
                free = take_completion(job)
                if free is not None:
                    self._add(Completion(0, [], free.addresses()))
        finished = []
        # popleft may race with other callers: each job goes to one of them.
        with contextlib.suppress(IndexError):
            while True:
                finished.append(self._finished.popleft())
        return finished

    def _start(self, running: Running[ResultT]) -> None:
        running.start()
        if not running.pending:  # nobody to ask: no native job will wake the reader
            self._core.engine.notify()

    def _end_at_once(self, on_result: Callable[[list[int]], None], count: int) -> None:
        on_result([Status.UNAVAILABLE] * count)
        self._core.engine.notify()

    def _add(self, completion: Completion) -> None:
        self._finished.append(completion)
