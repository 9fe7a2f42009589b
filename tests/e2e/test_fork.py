"""fork() in a client's process: the child's copy is closed, the parent's goes on undisturbed."""

import os
import select
import subprocess
import sys
from collections.abc import Callable

import memkv
from memkv._hotpath import address_of
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool
from memkv.status import Status

TIMEOUT_S = 60
FORKS = 5
DATA = bytes(range(256)) * 4096  # 1 MiB


def in_child(action: Callable[[], bool]) -> bool:
    """Run `action` in a forked child and return what it said; a child that hangs is killed."""
    child = os.fork()
    if child == 0:
        said = 1
        try:
            said = 0 if action() else 1
        finally:
            os._exit(said)
    descriptor = os.pidfd_open(child)
    try:
        if not select.select([descriptor], [], [], TIMEOUT_S)[0]:
            os.kill(child, 9)
        return os.waitpid(child, 0)[1] == 0
    finally:
        os.close(descriptor)


def test_a_forked_clients_calls_miss_at_once_and_the_parents_hit(client: memkv.Client) -> None:
    assert client.put("before", DATA) == Status.OK

    def child() -> bool:
        missed = client.get("before") is None
        refused = client.put("in the child", DATA) == Status.UNAVAILABLE
        nobody = client.batch_is_exist(["before"]) == [Status.UNAVAILABLE]
        target = bytearray(100)
        job = client.submit_get_into(["before"], [address_of(target)], [100])
        ended = [done.job_id for done in client.completions()] == [job]
        client.close()
        return missed and refused and nobody and ended

    assert in_child(child)
    assert client.get("before") == DATA
    assert client.batch_is_exist(["before", "in the child"]) == [1, 0]


def test_a_child_that_connects_anew_is_served_beside_its_parent(
    pool: LocalPool, client: memkv.Client
) -> None:
    assert client.put("both", DATA) == Status.OK

    def child() -> bool:
        with memkv.connect(pool.endpoint) as own:
            return own.get("both") == DATA and own.put("from the child", DATA) == Status.OK

    # gRPC leaves a child out of order where another thread was in it at the moment of the fork.
    assert any(in_child(child) for _ in range(FORKS))
    assert client.get("from the child") == DATA


def test_a_fork_amid_calls_harms_none_of_them(client: memkv.Client) -> None:
    keys = [f"amid-{n}" for n in range(16)]
    for key in keys:
        assert client.put(key, DATA) == Status.OK
    for _ in range(8):
        targets = [bytearray(MIB) for _ in keys]
        job = client.submit_get_into(keys, [address_of(t) for t in targets], [MIB] * len(keys))
        assert in_child(lambda: client.get("amid-0") is None)  # while the lanes are at work
        done = client.completions()
        while not done:
            assert select.select([client.event_fd], [], [], TIMEOUT_S)[0]
            done = client.completions()
        assert done[0].job_id == job
        assert done[0].results == [MIB] * len(keys)
        assert all(target == DATA for target in targets)


PROGRAM = """
import os, sys, memkv
client = memkv.connect(sys.argv[1])
assert client.put("program", b"x" * 100_000) == 0
child = os.fork()
if child == 0:
    sys.exit(0)  # with everything that ends an interpreter, destructors too
assert os.waitpid(child, 0)[1] == 0, "the child did not end well"
assert client.get("program") == b"x" * 100_000
"""


def test_a_child_may_end_as_a_program_ends(pool: LocalPool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, pool.endpoint], timeout=TIMEOUT_S, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
