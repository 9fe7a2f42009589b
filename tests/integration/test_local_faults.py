"""Shared memory when nodes stop and die in the middle: real processes, killed by real signals.

The contract: a call ends by its deadline and a fence budget; a buffer that may still be written is
QUARANTINED until `completions()` gives it back, and not one byte of it changes after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import memkv.aio
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.limits import FENCE_BUDGET_MS, MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.pattern import block, seed_of
from memkv.status import Status
from memkv.testing.shared_memory import SharedMemory
from memkv.testing.waiting import eventually

DEADLINE_MS = 1_000
BLOCKS, SIZE = 12, 4 * MIB
WAIT_S = 60
CALL_S_MAX = 10 * (DEADLINE_MS + FENCE_BUDGET_MS) / 1000  # generous: machines are slow

CLIENT = """
import sys
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.testing.shared_memory import SharedMemory

endpoint, pool, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = Client(ConnectOptions(endpoint, pool=pool, deadline_ms=20_000))
assert client.wait_ready(20_000)
memory = SharedMemory(size * count)
client.register_buffer(memory.address, size * count, fd=memory.fd)
places = [memory.address + n * size for n in range(count)]
keys = [f"block-{n}" for n in range(count)]
print("ready", flush=True)
while True:
    client.batch_get_into(keys, places, [size] * count)
"""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalPool]:
    plan = PoolPlan(tmp_path / "pool", 1, 384 * MIB, 96 * MIB)
    with LocalPool(plan) as pool:
        yield pool
    shutil.rmtree(plan.directory)  # pytest keeps directories, and drives are large


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(BLOCKS * SIZE) as memory:
        yield memory


@pytest.fixture
def client(pool: LocalPool, memory: SharedMemory) -> Iterator[Client]:
    options = ConnectOptions(pool.endpoint, pool=pool.plan.name, deadline_ms=DEADLINE_MS)
    with Client(options) as client:
        assert client.wait_ready(20_000)
        assert client.register_buffer(memory.address, memory.size_bytes, fd=memory.fd) == 0
        [session] = client.attachment.core.sessions()
        eventually(lambda: session.local.lanes is not None, "local lanes")
        for n, key in enumerate(KEYS):
            memory.write(n * SIZE, content(key))
            end = time.monotonic() + WAIT_S
            while put(client, memory, n, key) != 0:  # BUSY while flash is slow
                assert time.monotonic() < end
        assert client.stats().local_keys >= BLOCKS
        yield client


MARK = b"\xee" * 8
KEYS = [f"block-{n}" for n in range(BLOCKS)]


def content(key: str) -> bytes:
    return bytes(block(seed_of(key), SIZE))


def put(client: Client, memory: SharedMemory, n: int, key: str) -> int:
    return client.batch_put_from([key], [memory.address + n * SIZE], [SIZE])[0]


def places(memory: SharedMemory) -> list[int]:
    return [memory.address + n * SIZE for n in range(BLOCKS)]


def worker_pid(pool: LocalPool) -> int:
    return pool.nodes[0].child.processes()[1]


def given_back(client: Client, wanted: set[int]) -> set[int]:
    """Collect the addresses that `completions()` gives back until all are there."""
    free: set[int] = set()
    end = time.monotonic() + WAIT_S
    while not wanted <= free:
        assert time.monotonic() < end, f"{len(wanted - free)} buffers never came back"
        select.select([client.event_fd], [], [], 1.0)
        for completion in client.completions():
            free.update(completion.released)
    return free


@pytest.mark.parametrize("ending", ["SIGCONT", "SIGKILL"])
def test_a_stopped_node_costs_the_deadline_and_quarantines(
    pool: LocalPool, client: Client, memory: SharedMemory, ending: str
) -> None:
    pid = worker_pid(pool)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        results = client.batch_get_into(KEYS, places(memory), [SIZE] * BLOCKS)
        took_s = time.monotonic() - began
    finally:
        os.kill(pid, signal.SIGCONT if ending == "SIGCONT" else signal.SIGKILL)
    assert DEADLINE_MS / 1000 <= took_s < CALL_S_MAX
    assert set(results) <= {Status.QUARANTINED, Status.TIMEOUT}
    assert Status.QUARANTINED in results
    assert client.stats().quarantined == results.count(Status.QUARANTINED)
    held = {p for p, r in zip(places(memory), results, strict=True) if r == Status.QUARANTINED}
    free = given_back(client, held)
    assert free >= held
    nobody_writes(memory)


def test_the_asyncio_face_gives_buffers_back_too(
    pool: LocalPool, client: Client, memory: SharedMemory
) -> None:
    async def run() -> None:
        options = client.attachment.core.options
        mine = await memkv.aio.connect(
            pool.endpoint, pool=pool.plan.name, deadline_ms=options.deadline_ms
        )
        async with mine, asyncio.timeout(WAIT_S):
            with SharedMemory(2 * SIZE) as target:
                mine.register_buffer(target.address, target.size_bytes, fd=target.fd)
                session = mine.attachment.core.sessions()[0]
                while session.local.lanes is None:
                    await asyncio.sleep(0)
                places = [target.address, target.address + SIZE]
                pid = worker_pid(pool)
                os.kill(pid, signal.SIGSTOP)
                try:
                    results = await mine.batch_get_into(KEYS[:2], places, [SIZE] * 2)
                finally:
                    os.kill(pid, signal.SIGCONT)
                assert results == [Status.QUARANTINED] * 2
                free: set[int] = set()
                while not free >= set(places):
                    await asyncio.sleep(0)
                    free.update(*[done.released for done in mine.completions()])
                nobody_writes(target)

    asyncio.run(run())


def test_a_node_stopped_in_the_middle(
    pool: LocalPool, client: Client, memory: SharedMemory
) -> None:
    pid = worker_pid(pool)
    for round_number in range(4):
        memory.write(round_number * SIZE, MARK)
        jobs = {
            client.submit_get_into(KEYS[a : a + 4], places(memory)[a : a + 4], [SIZE] * 4): a
            for a in range(0, BLOCKS, 4)
        }
        until_something_is_written(memory, round_number)
        os.kill(pid, signal.SIGSTOP)
        results: dict[int, list[int]] = {}
        free: set[int] = set()
        end = time.monotonic() + CALL_S_MAX
        while len(results) < len(jobs):
            assert time.monotonic() < end, "a job outlived its deadline"
            select.select([client.event_fd], [], [], 0.1)
            for completion in client.completions():
                free.update(completion.released)
                if completion.job_id:
                    results[completion.job_id] = completion.results
        held = set()
        for job, start in jobs.items():
            for n, result in enumerate(results[job], start):
                assert result in (SIZE, Status.QUARANTINED, Status.TIMEOUT, Status.UNAVAILABLE)
                if result == SIZE:
                    assert memory.read(n * SIZE, SIZE) == content(KEYS[n])
                elif result == Status.QUARANTINED:
                    held.add(memory.address + n * SIZE)
        os.kill(pid, signal.SIGCONT)
        given_back(client, held - free)
        nobody_writes(memory)
        eventually(
            lambda: client.batch_get_into(KEYS[:1], places(memory)[:1], [SIZE]) == [SIZE],
            "a hit after the pause",
        )


def until_something_is_written(memory: SharedMemory, first: int) -> None:
    """Let a transfer get under way: spin until a mark is gone, not longer than a moment."""
    end = time.monotonic() + 0.02
    while memory.read(first * SIZE, len(MARK)) == MARK and time.monotonic() < end:
        pass


def nobody_writes(memory: SharedMemory) -> None:
    """Nothing changes in memory that is the caller's again."""
    mark = b"\x99" * memory.size_bytes
    memory.write(0, mark)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert memory.read(0, memory.size_bytes) == mark, "a free buffer was written"


def test_a_node_killed_in_the_middle_frees_what_it_wrote(
    pool: LocalPool, client: Client, memory: SharedMemory
) -> None:
    memory.write(0, MARK)
    jobs = [
        client.submit_get_into(KEYS[a : a + 4], places(memory)[a : a + 4], [SIZE] * 4)
        for a in range(0, BLOCKS, 4)
    ]
    until_something_is_written(memory, 0)
    os.kill(worker_pid(pool), signal.SIGKILL)
    ended: set[int] = set()
    end = time.monotonic() + CALL_S_MAX
    while len(ended) < len(jobs):
        assert time.monotonic() < end, "a job outlived its deadline"
        select.select([client.event_fd], [], [], 0.1)
        for completion in client.completions():
            assert set(completion.results) <= {
                SIZE, Status.UNAVAILABLE, Status.TIMEOUT, Status.QUARANTINED, Status.MISS
            }
            ended.add(completion.job_id)
    nobody_writes(memory)
    memory.write(0, bytes(SIZE))  # the supervisor starts the worker again: local lanes come back
    eventually(
        lambda: client.batch_get_into(KEYS[:1], places(memory)[:1], [SIZE]) == [SIZE]
        or put(client, memory, 0, "new") == 0,
        "a hit or a put at the next worker",
    )
    memory.write(0, content("again"))
    eventually(lambda: put(client, memory, 0, "again") == 0, "a put")
    before = client.stats().local_keys

    def comes_by_a_local_lane() -> bool:
        memory.write(SIZE, bytes(SIZE))
        found = client.batch_get_into(["again"], [memory.address + SIZE], [SIZE]) == [SIZE]
        assert not found or memory.read(SIZE, SIZE) == content("again")
        return found and client.stats().local_keys > before

    eventually(comes_by_a_local_lane, "local lanes at the next worker")


def test_closing_while_the_node_is_stopped_claims_nothing(
    pool: LocalPool, client: Client, memory: SharedMemory
) -> None:
    pid = worker_pid(pool)
    os.kill(pid, signal.SIGSTOP)
    try:
        results = client.batch_get_into(KEYS[:4], places(memory)[:4], [SIZE] * 4)
        assert Status.QUARANTINED in results
        client.close()  # the node is still stopped when this returns
        assert not any(completion.released for completion in client.completions())
    finally:
        os.kill(pid, signal.SIGCONT)
    held = {p for p, r in zip(places(memory), results, strict=False) if r == Status.QUARANTINED}
    given_back(client, held)
    nobody_writes(memory)


def test_killed_clients_leave_nothing_in_the_node(
    pool: LocalPool, client: Client, memory: SharedMemory
) -> None:
    pid = worker_pid(pool)
    client.unregister_buffer(memory.address)
    eventually(lambda: shared_mappings(pid) == 0, "the end of the first mapping")
    descriptors = descriptors_of(pid)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, pool.endpoint, pool.plan.name, str(SIZE), str(BLOCKS)],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            eventually(lambda: shared_mappings(pid) == 1, "the mapping")
            process.kill()
        eventually(lambda: shared_mappings(pid) == 0, "the end of a killed client's mapping")
        eventually(lambda: descriptors_of(pid) <= descriptors, "the end of its descriptors")


def shared_mappings(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").count("memfd:memkv-test")


def descriptors_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
