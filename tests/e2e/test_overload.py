"""C6: what is over a limit is refused, memory and descriptors stay bounded, others go on."""

import json
import os
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import memkv
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.limits import HANDSHAKE_TIMEOUT_MS, MIB
from memkv.localpool.facts import FactsReader, WorkerFacts
from memkv.localpool.pool import LocalNode, LocalPool
from memkv.node.supervisor import READY_FILE
from memkv.status import Status
from memkv.testing.wire_client import WireClient
from memkv.wire.frame import encode_frame
from memkv.wire.opcodes import Opcode

WAIT_MS = 120_000
RESIDENT_OVER_CONFIGURED_MAX = 150 * MIB
CROWD = 2_000


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """Crowds take descriptors on this side, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * CROWD:
        pytest.skip(f"ulimit -Hn is {hard}; a crowd needs {2 * CROWD}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * CROWD, hard))


@pytest.fixture
def node(pool: LocalPool) -> LocalNode:
    return pool.nodes[0]


def worker_pid(pool: LocalPool, node: LocalNode) -> int:
    document = json.loads((pool.plan.directory / node.name / READY_FILE).read_text())
    return int(document["workers"][0]["pid"])


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def facts_of(client: Client, node: LocalNode) -> WorkerFacts:
    with FactsReader(client) as reader:
        return next(facts for facts in reader.read() if facts.worker.node_name == node.name)


def until(holds: Callable[[], bool], what: str) -> None:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, WAIT_MS)
    while not holds():
        assert clock.monotonic_ns() < deadline_ns, f"in vain: {what}"
        pause.wait(0.05)


def serves(client: Client, name: str) -> bool:
    """Whether both nodes take and give blocks: enough keys that each owns some."""
    keys = [f"{name}-{n}" for n in range(12)]
    data = b"x" * 100_000
    return all(client.put(key, data) == Status.OK for key in keys) and all(
        client.get(key) == data for key in keys
    )


@pytest.fixture
def quiet(pool: LocalPool, client: Client, node: LocalNode) -> Iterator[int]:
    """The worker's process; afterwards it has as many descriptors as before."""
    pid = worker_pid(pool, node)
    before = open_descriptors(pid)
    yield pid
    until(lambda: open_descriptors(pid) <= before + 4, "descriptors are given back")
    assert worker_pid(pool, node) == pid, "the worker ended"


def test_a_crowd_that_comes_and_vanishes_leaves_nothing(
    pool: LocalPool, client: Client, node: LocalNode, quiet: int
) -> None:
    address = (pool.plan.host, node.data_port)
    for _ in range(CROWD):
        socket.create_connection(address).close()
    half = encode_frame(Opcode.HELLO, 0, 1, bytes(100))[:70]
    for _ in range(200):
        with socket.create_connection(address) as one:
            one.sendall(half)
    now_s = SystemClock().wall_s()
    for _ in range(100):  # whole sessions with lanes that end without a word
        session = WireClient(address, pool.plan.name, now_s=now_s)
        session.lane().close()
        session.control.close()
    until(lambda: facts_of(client, node).sessions < 20, "sessions of the vanished end")
    assert serves(client, "crowd")


def test_clients_that_connect_and_vanish_leave_nothing(
    pool: LocalPool, client: Client, quiet: int
) -> None:
    for _ in range(25):
        with memkv.connect(pool.endpoint) as other:
            other.get("nothing")
    assert serves(client, "come-and-go")


def test_slow_clients_are_closed_and_delay_nobody(
    pool: LocalPool, client: Client, node: LocalNode, quiet: int
) -> None:
    address = (pool.plan.host, node.data_port)
    frame = encode_frame(Opcode.HELLO, 0, 1, bytes(100))
    crowd = [socket.create_connection(address) for _ in range(CROWD // 2)]
    try:
        for position in range(3):  # a byte now and then
            for one in crowd:
                try:
                    one.sendall(frame[position : position + 1])
                except OSError:
                    continue  # closed already: there are more than may be in a handshake at once
            assert serves(client, f"slow-{position}")
        poll = select.poll()
        for one in crowd:
            poll.register(one, select.POLLIN | select.POLLHUP)
        closed: set[int] = set()
        clock = SystemClock()
        deadline_ns = deadline_after_ms(clock, HANDSHAKE_TIMEOUT_MS + WAIT_MS)
        while len(closed) < len(crowd):
            assert clock.monotonic_ns() < deadline_ns, f"{len(closed)} of {len(crowd)} closed"
            for fd, _ in poll.poll(1000):
                closed.add(fd)
                poll.unregister(fd)
    finally:
        for one in crowd:
            one.close()
    assert resident_peak_bytes(quiet) < pool.plan.memory_bytes + RESIDENT_OVER_CONFIGURED_MAX


def test_without_descriptors_a_node_serves_whom_it_has(
    pool: LocalPool, client: Client, node: LocalNode, quiet: int
) -> None:
    assert serves(client, "descriptors")
    soft, hard = resource.prlimit(quiet, resource.RLIMIT_NOFILE)
    resource.prlimit(quiet, resource.RLIMIT_NOFILE, (open_descriptors(quiet) + 20, hard))
    address = (pool.plan.host, node.data_port)
    crowd = [socket.create_connection(address) for _ in range(200)]
    try:
        assert serves(client, "no-descriptors")
        assert worker_pid(pool, node) == quiet
    finally:
        for one in crowd:
            one.close()
        resource.prlimit(quiet, resource.RLIMIT_NOFILE, (soft, hard))
    with memkv.connect(pool.endpoint) as other:
        until(lambda: other.wait_ready(1000), "a new client is served again")
        assert serves(other, "descriptors-again")


def test_a_flood_of_puts_and_gets_stays_within_memory(
    pool: LocalPool, client: Client, quiet: int
) -> None:
    """Many clients ask for far more than the node's memory at once."""
    data, wrong = os.urandom(3 * MIB), []

    def flood(number: int) -> None:
        options = ConnectOptions(pool.endpoint, deadline_ms=20_000, bulk_lanes=4)
        with Client(options) as own:
            own.wait_ready(WAIT_MS)
            for n in range(25):
                key = f"flood-{number}-{n}"
                stored = own.put(key, data)
                found = own.get(key)
                if stored not in (Status.OK, Status.BUSY, Status.NO_SPACE, Status.TIMEOUT):
                    wrong.append(f"put: {stored}")
                if found not in (None, data):
                    wrong.append(f"get of {key}")

    threads = [threading.Thread(target=flood, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert resident_peak_bytes(quiet) < pool.plan.memory_bytes + RESIDENT_OVER_CONFIGURED_MAX
    assert serves(client, "after-the-flood")
