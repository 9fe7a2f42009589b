"""SIGSTOP of a node: every call ends at its deadline, and the late node writes into nothing."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from memkv._hotpath import address_of
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.limits import FENCE_BUDGET_MS, MIB
from memkv.localpool.pool import LocalNode, LocalPool
from memkv.status import Status

WAIT_MS = 60_000
DEADLINE_MS = 500
SLACK_S = 10  # of a busy machine; without a deadline the calls would take for ever
BLOCK_BYTES = 3 * MIB
KEYS = 10  # enough that a signal comes before the last answer
ROUNDS_MAX = 200  # on a machine that delays signals most of them come after the last answer
LOST = {Status.TIMEOUT, Status.UNAVAILABLE}


@pytest.fixture
def client(pool: LocalPool) -> Iterator[Client]:
    options = ConnectOptions(pool.endpoint, deadline_ms=DEADLINE_MS, bootstrap_timeout_ms=WAIT_MS)
    with Client(options) as made:
        assert made.wait_ready(WAIT_MS)
        yield made


def signal_nodes(nodes: list[LocalNode], number: signal.Signals) -> None:
    for node in nodes:
        for pid in node.child.processes():
            os.kill(pid, number)


def is_stopped(node: LocalNode) -> bool:
    """A thread stops when it comes back from the kernel, a moment after the signal."""
    threads = [p for pid in node.child.processes() for p in Path(f"/proc/{pid}/task").iterdir()]
    states = [(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads]
    return set(states) == {"T"}


@contextmanager
def stopped(pool: LocalPool) -> Iterator[None]:
    signal_nodes(pool.nodes, signal.SIGSTOP)
    try:
        until(lambda: all(map(is_stopped, pool.nodes)), "a stop of every thread")
        yield
    finally:
        signal_nodes(pool.nodes, signal.SIGCONT)


def until(holds: Callable[[], bool], what: str) -> None:
    clock = SystemClock()
    deadline_ns = deadline_after_ms(clock, WAIT_MS)
    while not holds():
        assert clock.monotonic_ns() < deadline_ns, f"in vain: {what}"


def block(key: str) -> bytes:
    return (key.encode().ljust(16) * (BLOCK_BYTES // 16))[:BLOCK_BYTES]


def store(client: Client, keys: list[str]) -> None:
    for key in keys:
        until(partial(put_works, client, key), "a put")


def put_works(client: Client, key: str) -> bool:
    return client.put(key, block(key)) == Status.OK


def within_deadline(call: Callable[[], list[int]]) -> list[int]:
    began = time.monotonic()
    results = call()
    assert time.monotonic() - began < (DEADLINE_MS + FENCE_BUDGET_MS) / 1000 + SLACK_S
    return results


def test_a_get_from_a_stopped_node_ends_and_its_buffer_stays_as_it_is(
    pool: LocalPool, client: Client
) -> None:
    keys = [f"stopped-{n}" for n in range(KEYS)]
    store(client, keys)
    targets = [bytearray(BLOCK_BYTES) for _ in keys]
    pointers, sizes = [address_of(t) for t in targets], [BLOCK_BYTES] * len(keys)
    with stopped(pool):
        results = within_deadline(lambda: client.batch_get_into(keys, pointers, sizes))
        assert set(results) <= LOST
        assert Status.TIMEOUT in results
        for target in targets:
            target[:] = b"\xa5" * BLOCK_BYTES
    # The nodes answer now, late. Wait until they have served others behind that.
    until(lambda: client.get(keys[0]) == block(keys[0]), "a hit after the stop")
    assert all(target == b"\xa5" * BLOCK_BYTES for target in targets)


def test_a_node_stopped_in_the_middle_of_its_answers_writes_no_more(
    pool: LocalPool, client: Client
) -> None:
    keys = [f"middle-{n}" for n in range(KEYS)]
    store(client, keys)
    targets = [bytearray(BLOCK_BYTES) for _ in keys]
    pointers, sizes = [address_of(t) for t in targets], [BLOCK_BYTES] * len(keys)
    lost = rounds = 0
    while rounds < 10 or (not lost and rounds < ROUNDS_MAX):
        rounds += 1
        until(lambda: client.get(keys[0]) is not None, "a hit")
        job = client.submit_get_into(keys, pointers, sizes)
        until(lambda: any(target[0] for target in targets), "the first bytes")
        with stopped(pool):
            results = completed(client, job)
            for target in targets:
                target[:] = bytes(BLOCK_BYTES)
        until(lambda: client.get(keys[0]) is not None, "a hit after the stop")
        assert all(t.count(0) == BLOCK_BYTES for t in targets), "written after the job's end"
        assert set(results) <= LOST | {BLOCK_BYTES}
        lost += sum(result in LOST for result in results)
    assert lost > 0, "the stops were to come in the middle of answers"


def completed(client: Client, job: int) -> list[int]:
    while True:
        assert select.select([client.event_fd], [], [], WAIT_MS / 1000)[0]
        for done in client.completions():
            if done.job_id == job:
                return done.results


def test_a_put_to_a_stopped_node_ends_and_its_buffer_is_free(
    pool: LocalPool, client: Client
) -> None:
    """What is written into the buffer afterwards must never be stored."""
    store(client, ["warm"])
    source = bytearray(block("put"))
    with stopped(pool):
        results = within_deadline(
            lambda: client.batch_put_from(["put"], [address_of(source)], [BLOCK_BYTES])
        )
        assert set(results) <= LOST
        source[:] = b"\xa5" * BLOCK_BYTES
    until(lambda: client.get("warm") == block("warm"), "a hit after the stop")
    assert client.get("put") in (None, block("put"))


def test_a_stopped_node_is_not_waited_for_again_and_again(
    pool: LocalPool, client: Client
) -> None:
    store(client, ["again"])
    with stopped(pool):
        began = time.monotonic()
        for n in range(200):
            assert client.get(f"nothing-{n}") is None
        # 200 deadlines would be 100 s.
        assert time.monotonic() - began < 40 * DEADLINE_MS / 1000 + SLACK_S
        exists = within_deadline(lambda: client.batch_is_exist(["again"]))
        assert set(exists) <= LOST
        assert set(within_deadline(lambda: client.batch_remove(["nothing"]))) <= LOST
