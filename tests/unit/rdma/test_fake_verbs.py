"""The fake devices: every rule is shown to hold and to refuse."""

import itertools
import select
from errno import EINVAL, ENOMEM

import pytest

from memkv.rdma.verbs import (
    Access,
    Completion,
    VerbsError,
)
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.verbs_ends import OPEN, End, Ends

MIB = 1 << 20


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def refused(number: int) -> "pytest.RaisesExc[VerbsError]":
    return pytest.raises(VerbsError, check=lambda error: error.number == number)


# --- transfers and their completions ---------------------------------------------------------


def test_a_write_and_a_read_move_exactly_their_bytes(ends: Ends) -> None:
    client, server = ends.client, ends.server
    server.write(client, 300_001, first=5)
    server.done()
    assert client.memory.bytes[:5] == bytes(5)
    assert client.memory.bytes[5:300_006] == server.memory.bytes[:300_001]
    assert client.memory.bytes[300_006:] == bytes(MIB - 300_006)
    client.memory.fill(b"client-2")
    server.read(client, 100_003, first=7)
    server.done()
    assert server.memory.bytes[:100_003] == client.memory.bytes[7:100_010]
    assert server.memory.bytes[100_003:100_008] == b"ver-1"


def test_completions_come_in_the_order_of_posting(ends: Ends) -> None:
    for work in range(16):
        ends.server.write(ends.client, 1 + work * 40_000 % 200_000, work=work)
    assert ends.server.wait(16) == [Completion(work, "", False) for work in range(16)]


def test_queue_pairs_take_turns(fabric: FakeFabric, ends: Ends) -> None:
    client, server = ends.make()
    order: list[int] = []
    fabric.knobs.between = lambda piece: order.append(piece.queue_pair)
    fabric.hold()
    server.write(client, MIB)
    ends.server.write(ends.client, MIB)
    fabric.release()
    server.done()
    ends.server.done()
    fabric.settle()  # a completion comes before its piece is told of
    assert order == [server.queue_pair.number, ends.server.queue_pair.number] * 16


def test_the_event_of_a_completion_comes_once_after_arm(fabric: FakeFabric, ends: Ends) -> None:
    pair = ends.server.queue_pair
    ends.server.write(ends.client, 10)
    fabric.settle()
    assert not is_readable(pair.event_fd), "it was not armed"
    pair.arm()
    assert not is_readable(pair.event_fd), "arm tells of the next completion only"
    assert len(pair.poll()) == 1
    ends.server.write(ends.client, 10)
    fabric.settle()
    assert is_readable(pair.event_fd)
    assert len(pair.poll()) == 1
    assert is_readable(pair.event_fd), "until it is armed again"
    pair.arm()
    assert not is_readable(pair.event_fd)
    assert pair.poll() == []


def test_the_depth_counts_what_was_not_polled(fabric: FakeFabric, ends: Ends) -> None:
    for work in range(16):
        ends.server.write(ends.client, 10, work=work)
    fabric.settle()
    with refused(ENOMEM):
        ends.server.write(ends.client, 10)
    assert len(ends.server.queue_pair.poll()) == 16
    ends.server.write(ends.client, 10)
    ends.server.done()


@pytest.mark.parametrize("length", [0, -1, (1 << 31) + 1])
def test_lengths_that_no_message_has(ends: Ends, length: int) -> None:
    with refused(EINVAL):
        ends.server.write(ends.client, length)


# --- accesses: one table ---------------------------------------------------------------------

WRITES = Access.LOCAL_WRITE | Access.REMOTE_WRITE
READS = Access.LOCAL_WRITE | Access.REMOTE_READ
LOCAL = Access.LOCAL_WRITE
REMOTE_ERROR = "remote access error"
LOCAL_ERROR = "local protection error"

ACCESSES = {
    # operation, the client's region and queue pair, the server's region, first byte, length, error
    "write": ("write", WRITES, WRITES, LOCAL, 0, MIB, ""),
    "read": ("read", READS, READS, LOCAL, 0, MIB, ""),
    "write from a region without rights": ("write", WRITES, WRITES, Access.NONE, 0, 9, ""),
    "the last byte": ("write", WRITES, WRITES, LOCAL, MIB - 1, 1, ""),
    "write, region for reading": ("write", READS, OPEN, LOCAL, 0, 9, REMOTE_ERROR),
    "read, region for writing": ("read", WRITES, OPEN, LOCAL, 0, 9, REMOTE_ERROR),
    "write, queue pair for reading": (
        "write", OPEN, READS, LOCAL, 0, 9, "remote invalid request error",
    ),
    "read, queue pair for writing": (
        "read", OPEN, WRITES, LOCAL, 0, 9, "remote invalid request error",
    ),
    "write, region without remote rights": (
        "write", LOCAL | Access.WINDOWS, OPEN, LOCAL, 0, 9, REMOTE_ERROR,
    ),
    "one byte before": ("write", WRITES, WRITES, LOCAL, -1, 9, REMOTE_ERROR),
    "one byte beyond": ("write", WRITES, WRITES, LOCAL, MIB - 8, 9, REMOTE_ERROR),
    "far beyond": ("read", READS, READS, LOCAL, 36 * MIB, 9, REMOTE_ERROR),
    "a long one that ends beyond": ("write", WRITES, WRITES, LOCAL, 4096, MIB, REMOTE_ERROR),
    "read into what only is for reading": ("read", READS, READS, Access.NONE, 0, 9, LOCAL_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCESSES)
def test_accesses(fabric: FakeFabric, ends: Ends, case: str) -> None:
    operation, region, pair, local, first, length, error = ACCESSES[case]
    pair &= ~Access.WINDOWS
    client, server = ends.make(
        lambda device, size: End(device, size, region, pair),
        lambda device, size: End(device, size, local, Access.NONE),
    )
    post = server.write if operation == "write" else server.read
    client.memory.fill(b"client-2")
    server.memory.fill(b"server-1")
    before = client.memory.bytes[:], server.memory.bytes[:]
    post(client, length, work=1, first=first)
    post(client, length, work=2, first=first)
    done = server.wait(2)
    if not error:
        source, target = (server, client) if operation == "write" else (client, server)
        start, end = (0, first) if operation == "write" else (first, 0)
        assert done == [Completion(1, "", False), Completion(2, "", False)]
        moved = target.memory.bytes[end : end + length]
        assert moved == source.memory.bytes[start : start + length]
        return
    assert done == [Completion(1, error, False), Completion(2, "WR flush error", True)]
    assert (client.memory.bytes[:], server.memory.bytes[:]) == before
    client.queue_pair.read(3, client.address, 9, client.region.local_key, server.address, 0)
    breaks_both = error != LOCAL_ERROR
    fabric.settle()
    assert [c.is_flushed for c in client.queue_pair.poll()] == ([True] if breaks_both else [])


def local_keys(ends: Ends) -> dict[str, int]:
    """Keys that must not work as the server's local key."""
    closed = ends.server.register(OPEN)
    closed.close()
    return {
        "none": 0,
        "closed": closed.local_key,
        "remote": ends.server.region.remote_key,
        "the client's": ends.client.region.local_key,
    }


@pytest.mark.parametrize("which", ["none", "closed", "remote", "the client's"])
def test_local_keys_that_do_not_open(ends: Ends, which: str) -> None:
    client, server = ends.client, ends.server
    key = local_keys(ends)[which]
    server.queue_pair.write(1, server.address, 9, key, client.address, client.region.remote_key)
    assert server.wait() == [Completion(1, LOCAL_ERROR, False)]
    assert client.memory.bytes[:9] == bytes(9)


def test_a_local_range_beyond_its_region(ends: Ends) -> None:
    client, server = ends.client, ends.server
    server.queue_pair.write(
        1,
        server.address + MIB - 8,
        9,
        server.region.local_key,
        client.address,
        client.region.remote_key,
    )
    assert server.wait() == [Completion(1, LOCAL_ERROR, False)]


def test_another_protection_domain_of_the_same_device(fabric: FakeFabric, ends: Ends) -> None:
    other = FakeVerbs(fabric, ["client0"]).open("client0")
    region = other.register(ends.client.address, MIB, OPEN)
    ends.server.write(ends.client, 9, key=region.remote_key)
    assert ends.server.wait() == [Completion(1, REMOTE_ERROR, False)]
    other.close()


def test_guessed_keys_open_nothing(ends: Ends) -> None:
    near = {ends.client.region.remote_key + offset for offset in (-256, -1, 1, 256)}
    for key in near | {0, 1, ends.client.region.local_key}:
        _, server = ends.make()
        server.write(ends.client, 9, key=key)
        assert server.wait()[0].error == REMOTE_ERROR
    assert ends.client.memory.bytes[:] == bytes(MIB)


def test_keys_look_random_and_do_not_come_back(ends: Ends) -> None:
    keys = []
    for _ in range(200):
        region = ends.client.device.register(ends.client.address, 4096, OPEN)
        keys += [region.local_key, region.remote_key]
        region.close()
    assert len(set(keys)) == 400
    steps = {second - first for first, second in itertools.pairwise(keys)}
    assert len(steps) > 390
    assert ends.client.register(LOCAL).remote_key == 0
