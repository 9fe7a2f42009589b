"""Moves blocks through one client as fast as it can, or at a given pace, and times it.

Two jobs are in flight, so that the next one is under way while the last one's results are taken:
that keeps `depth` blocks outstanding. The content is the pattern of each key; one block of every
turn is compared byte by byte beside the checks that the client makes for all.
"""

import fcntl
import mmap
import os
import random
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memkv import _hotpath, pattern
from memkv.bench.processes import cpu_s
from memkv.bench.results import MeasurementFailed
from memkv.bench.statistics import gb_per_s, percentile
from memkv.client.options import Durability, PutOptions
from memkv.client.sync import Client
from memkv.status import Status

JOBS_IN_FLIGHT = 2
DEPTH_DEFAULT = 16
WAIT_MS = 30_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: payload per second and the time of each call."""

    size_bytes: int
    seconds: float
    calls_us: tuple[float, ...]
    cpu_s: float

    @property
    def gbps(self) -> float:
        return gb_per_s(self.size_bytes, self.seconds)

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (self.size_bytes / 1e9) if self.size_bytes else 0.0

    def p_us(self, fraction: float) -> float:
        """Return a percentile of the calls' times."""
        return percentile(self.calls_us, fraction)


class Pump:
    """Blocks of one size and the memory to move them. Not thread-safe; close before the client."""

    def __init__(
        self, client: Client, size_bytes: int, depth: int = DEPTH_DEFAULT,
        pids: Sequence[int] = (), shared: bool = False,
    ) -> None:  # fmt: skip
        """`shared`: memory that a node on this machine may write itself (local transport)."""
        self.size_bytes = size_bytes
        self.per_job = max(1, depth // JOBS_IN_FLIGHT)
        self._client = client
        self._pids = pids
        total_bytes = size_bytes * self.per_job * JOBS_IN_FLIGHT
        self._fd = sealed_memory(total_bytes) if shared else None
        self._memory = mmap.mmap(-1 if self._fd is None else self._fd, total_bytes)
        self._view = memoryview(self._memory)
        self._base = _hotpath.address_of(self._memory)
        self._events = select.poll()
        self._events.register(client.event_fd, select.POLLIN)
        self._random = random.Random(1)
        self._cursor = 0
        for place in range(self.per_job * JOBS_IN_FLIGHT):
            pattern.fill(self.block(place), place)
        client.register_buffer(self._base, total_bytes, fd=self._fd)

    def block(self, place: int) -> memoryview:
        """Return the memory of one place."""
        return self._view[place * self.size_bytes : (place + 1) * self.size_bytes]

    def fill_pool(self, keys: Sequence[str], durability: Durability = "cached") -> None:
        """Store the pattern of each key. Raises MeasurementFailed when a put is refused."""
        for begin in range(0, len(keys), self.per_job):
            part = keys[begin : begin + self.per_job]
            for place, key in enumerate(part):
                pattern.fill(self.block(place), pattern.seed_of(key))
            todo = list(range(len(part)))
            while todo:  # BUSY means that flash is slower than this loop: the same put may work now
                results = self._client.batch_put_from(
                    [part[i] for i in todo],
                    [self._base + i * self.size_bytes for i in todo],
                    [self.size_bytes] * len(todo), PutOptions(durability=durability),
                )  # fmt: skip
                check(results, (0, Status.BUSY), "put")
                todo = [i for i, r in zip(todo, results, strict=True) if r == Status.BUSY]

    def get_each(self, keys: Sequence[str]) -> None:
        """Get every key once, so that a DRAM tier that can hold them does."""
        for begin in range(0, len(keys), self.per_job):
            part = keys[begin : begin + self.per_job]
            places = [self._base + i * self.size_bytes for i in range(len(part))]
            results = self._client.batch_get_into(part, places, [self.size_bytes] * len(part))
            check(results, (self.size_bytes,), "get")

    def get(self, keys: Sequence[str], seconds: float, pace_gbps: float = 0.0) -> Sample:
        """Get `keys` for a while, round and round in one random order.

        So a block comes back as late as it can: a DRAM tier smaller than the data never has it.
        """
        order = list(keys)
        random.Random(len(order)).shuffle(order)  # the same one in every turn

        def submit(job: int) -> int:
            first, self._cursor = self._cursor, self._cursor + self.per_job
            chosen = [order[i % len(order)] for i in range(first, self._cursor)]
            return self._client.submit_get_into(chosen, *self._places(job))

        return self._run(submit, self._check_get, seconds, pace_gbps)

    def put(self, prefix: str, seconds: float, pace_gbps: float = 0.0) -> Sample:
        """Put new blocks for a while; their content does not matter here and is not made anew."""
        count = 0

        def submit(job: int) -> int:
            nonlocal count
            keys = [f"{prefix}/{count + i}" for i in range(self.per_job)]
            count += self.per_job
            return self._client.submit_put_from(keys, *self._places(job))

        return self._run(submit, self._check_put, seconds, pace_gbps)

    def _places(self, job: int) -> tuple[list[int], list[int]]:
        begin = self._base + job * self.per_job * self.size_bytes
        pointers = [begin + i * self.size_bytes for i in range(self.per_job)]
        return pointers, [self.size_bytes] * self.per_job

    def _check_get(self, job: int, results: Sequence[int]) -> int:
        check(results, (self.size_bytes,), "get")
        return self.size_bytes * len(results)

    def _check_put(self, job: int, results: Sequence[int]) -> int:
        check(results, (0, Status.BUSY), "put")
        return self.size_bytes * sum(1 for result in results if result == 0)

    def _run(
        self, submit: Callable[[int], int], take: Callable[[int, Sequence[int]], int],
        seconds: float, pace_gbps: float,
    ) -> Sample:
        """Keep up to JOBS_IN_FLIGHT jobs under way; with a pace, one more each time one is due.

        Looks before it waits for the eventfd: every wait gives the GIL away, and beside a busy
        Python thread it comes back after a switch of threads. So a paced load that is on time
        costs one for a job, like an engine that looks once in each of its steps.
        """
        cpu_before = cpu_s(["self", *self._pids])
        due_s = self.size_bytes * self.per_job / (pace_gbps * 1e9) if pace_gbps else 0.0
        moved, times = 0, []
        begin = now = last = time.perf_counter()
        idle = list(range(1, JOBS_IN_FLIGHT))
        started = {submit(0): (0, begin)}
        due = begin + due_s
        while started or now - begin < seconds:
            if now < due and now - begin < seconds:
                time.sleep(due - now)  # the pace: no job is due before
            ended = self._client.completions()
            now = time.perf_counter()
            for done in ended:
                job, since = started.pop(done.job_id)
                idle.append(job)
                times.append((now - since) * 1e6)
                moved += take(job, done.results)
                last = now
            if idle and now - begin < seconds:
                job = idle.pop(0)
                started[submit(job)] = (job, now)
                due += due_s
            elif started and not ended and not self._events.poll(WAIT_MS):
                raise MeasurementFailed("a call did not end: the client broke its deadline")
            now = time.perf_counter()
        return Sample(
            moved, last - begin, tuple(times), cpu_s(["self", *self._pids]) - cpu_before
        )

    def verify_one(self, keys: Sequence[str]) -> None:
        """Get one block and compare every byte. Raises MeasurementFailed."""
        key = self._random.choice(keys)
        result = self._client.batch_get_into([key], [self._base], [self.size_bytes])[0]
        check([result], (self.size_bytes,), "get")
        if pattern.first_wrong_byte(self.block(0), pattern.seed_of(key)) is not None:
            raise MeasurementFailed(f"block {key} came back with wrong bytes")

    def close(self) -> None:
        """Give the memory back."""
        self._client.unregister_buffer(self._base)
        if self._fd is not None:
            os.close(self._fd)


def sealed_memory(size_bytes: int) -> int:
    """Return a memfd that cannot shrink: a node that maps it cannot be made to fault."""
    fd = os.memfd_create("memkv-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def check(results: Sequence[int], allowed: Sequence[int], what: str) -> None:
    """Raise MeasurementFailed at the first result that is not allowed."""
    for result in results:
        if result not in allowed:
            name = Status(result).name if result < 0 else f"{result} bytes"
            raise MeasurementFailed(
                f"a {what} of the measurement ended with {name}; is the pool big enough and alone?"
            )
