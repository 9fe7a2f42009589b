"""The job loop: every job ends, once, on the loop's thread, and not before its memory is free."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import pytest

from memkv.client.events import Completion
from memkv.client.options import DEFAULT_PUT, PutOptions
from memkv.client.reasons import RequestReasons
from memkv.client.routing import Key
from memkv.integrations import jobs
from memkv.integrations.jobs import JobLoop
from memkv.status import Status
from memkv.testing.waiting import WAIT_S, eventually


class FakeClient:
    """Jobs end when the test says so."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.started: list[int] = []
        self.refuses = False
        self.closed = False
        self.reasons = RequestReasons()
        self._ids = itertools.count(1)
        self._done: deque[Completion] = deque()

    def submit_get_into_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> int:
        return self._begin()

    def submit_put_from_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> int:
        return self._begin()

    def submit_is_exist(self, keys: Sequence[Key], lease_ms: int = 0) -> int:
        return self._begin()

    def submit_why(self, keys: Sequence[Key]) -> int:
        return self._begin()

    def batch_remove(self, keys: Sequence[Key]) -> list[int]:
        return [0] * len(keys)

    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int:
        return 0

    def unregister_buffer(self, ptr: int) -> int:
        return 0

    def completions(self) -> list[Completion]:
        done = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def close(self) -> None:
        self.closed = True

    def end(self, job_id: int, results: list[int], released: tuple[int, ...] = ()) -> None:
        self._done.append(Completion(job_id, results, released))
        os.eventfd_write(self.event_fd, 1)

    def _begin(self) -> int:
        if self.refuses:
            raise ValueError("no")
        job_id = next(self._ids)
        self.started.append(job_id)
        return job_id


class Ends:
    """What `on_end` was told, and where."""

    def __init__(self) -> None:
        self.results: list[list[int]] = []
        self.threads: set[str] = set()

    def __call__(self, results: list[int]) -> None:
        self.threads.add(threading.current_thread().name)
        self.results.append(results)

    def wait(self, count: int = 1) -> list[list[int]]:
        eventually(lambda: len(self.results) >= count, f"the end of {count} jobs")
        return self.results


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def loop(client: FakeClient) -> Iterator[JobLoop]:
    made = JobLoop(client, name="the-loop")
    yield made
    made.close()


def test_an_end_comes_on_the_loop(client: FakeClient, loop: JobLoop) -> None:
    ends = Ends()
    assert loop.call(lambda: loop.exists(["a", "b"], 0, ends))
    eventually(lambda: bool(client.started), "a start")
    assert not ends.results
    client.end(1, [1, 0])
    assert ends.wait() == [[1, 0]]
    assert ends.threads == {"the-loop"}


def test_memory_in_quarantine_is_free_before_its_job_ends(
    client: FakeClient, loop: JobLoop
) -> None:
    ends, after = Ends(), Ends()
    quarantined = int(Status.QUARANTINED)
    loop.call(lambda: loop.get(["a", "b", "c"], [[10, 11], [20, 21], [30, 31]], [[1, 1]] * 3, ends))
    loop.call(lambda: loop.exists(["later"], 0, after))
    eventually(lambda: len(client.started) == 2, "two starts")
    client.end(1, [2, quarantined, quarantined])
    client.end(0, [], (99, 20))
    client.end(2, [1])
    assert after.wait() == [[1]]
    assert not ends.results, "the memory at 30 may still be written"
    client.end(0, [], (30,))
    assert ends.wait() == [[2, quarantined, quarantined]]


def test_a_put_in_quarantine_ends_likewise(client: FakeClient, loop: JobLoop) -> None:
    ends = Ends()
    loop.call(lambda: loop.put(["a"], [[10, 11]], [[1, 1]], DEFAULT_PUT, ends))
    eventually(lambda: bool(client.started), "a start")
    client.end(1, [int(Status.QUARANTINED)])
    client.end(0, [], (10,))
    assert ends.wait() == [[Status.QUARANTINED]]


def test_puts_that_share_a_header_wait_for_each_of_their_buffers(
    client: FakeClient, loop: JobLoop
) -> None:
    ends, after = Ends(), Ends()
    quarantined = int(Status.QUARANTINED)
    loop.call(lambda: loop.put(["a", "b"], [[10, 11], [10, 21]], [[1, 1]] * 2, DEFAULT_PUT, ends))
    loop.call(lambda: loop.exists(["later"], 0, after))
    eventually(lambda: len(client.started) == 2, "two starts")
    client.end(1, [quarantined, quarantined])
    client.end(0, [], (10,))
    client.end(2, [1])
    assert after.wait() == [[1]]
    assert not ends.results, "one of the two may still be read"
    client.end(0, [], (10,))
    assert ends.wait() == [[quarantined, quarantined]]


def test_what_the_client_refuses_ends_too(client: FakeClient, loop: JobLoop) -> None:
    client.refuses = True
    ends = Ends()
    loop.call(lambda: loop.exists(["a", "b"], 0, ends))
    assert ends.wait() == [[Status.INTERNAL] * 2]


def test_an_action_that_raises_harms_nobody_else(client: FakeClient, loop: JobLoop) -> None:
    ends = Ends()

    def fails(results: list[int] | None = None) -> None:
        raise RuntimeError("mine")

    loop.call(fails)
    loop.call(lambda: loop.exists(["a"], 0, fails))
    loop.call(lambda: loop.exists(["a"], 0, ends))
    eventually(lambda: len(client.started) == 2, "two starts")
    client.end(1, [1])
    client.end(2, [1])
    assert ends.wait() == [[1]]


def test_close_ends_what_is_under_way_and_takes_nothing_more(
    client: FakeClient, loop: JobLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CLOSE_WAIT_S", 0.1)
    ends = Ends()
    loop.call(lambda: loop.exists(["a", "b"], 0, ends))
    loop.call(lambda: loop.get(["c"], [[10]], [[1]], ends))
    eventually(lambda: len(client.started) == 2, "two starts")
    client.end(2, [int(Status.QUARANTINED)])
    loop.close()
    assert client.closed
    assert sorted(map(len, ends.results)) == [1, 2]
    assert not loop.call(lambda: None)
    loop.close()


def test_ticks_come_without_work(client: FakeClient) -> None:
    ticked = threading.Event()
    loop = JobLoop(client, tick=ticked.set)
    assert ticked.wait(WAIT_S)
    loop.close()
