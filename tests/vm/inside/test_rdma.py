"""Blocks over soft-RoCE, from a raw drive: what a user relies on, with the real kernel drivers."""

import random
import subprocess
import threading
from collections.abc import Iterator

import pytest

from memkv.limits import KIB, MIB
from memkv.rdma.client_memory import MemoryMode
from memkv.status import Status
from memkv.testing.guest_node import drive, wiped
from memkv.testing.rdma_pool import Arena, NodeProcess, client, eventually, node

SIZES = (1, 64 * KIB, 300_000, 2 * MIB, 16 * MIB)
CUTS = {MemoryMode.ARENA: 200, MemoryMode.STRICT: 20}
BLOCK_BYTES = 16 * MIB
SECONDS_MAX = 480  # for 200 cuts; a third of that on a quiet machine
PATTERN = b"\xaa"
ENDS = (Status.TIMEOUT, Status.UNAVAILABLE)


@pytest.fixture(scope="module")
def running() -> Iterator[NodeProcess]:
    with node(wiped(drive(0))) as started:
        yield started


@pytest.mark.parametrize("mode", MemoryMode)
def test_blocks_go_and_come(running: NodeProcess, mode: MemoryMode) -> None:
    with client(running, mode=mode) as made:
        arena = Arena(made, 32 * MIB)
        for size in SIZES:
            keys = [f"{mode}-{size}-{n}" for n in range(2)]
            arena.put(keys, size)
            arena.view[:] = bytes(len(arena.view))
            assert arena.get(keys, size) == [size, size]
            assert arena.is_right(keys, size)
        statistics = made.stats()
        assert (statistics.rdma_keys, statistics.rdma_fallbacks) == (4 * len(SIZES), 0)
        assert made.attachment.problems() == []


def test_no_memory_of_a_node_has_a_remote_right(running: NodeProcess) -> None:
    assert running.ask("remote rights") == [False]


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("mode", MemoryMode)
def test_no_byte_is_late(running: NodeProcess, mode: MemoryMode) -> None:
    """Gets are cut in the middle by their deadline, and the caller uses its memory again at once.

    Each piece of memory is looked at when its turn comes again, two cuts later.
    """
    turns, late, finished, asked = 3, 0, 0, 0
    with client(running, mode=mode) as slow:
        arena = Arena(slow, BLOCK_BYTES)
        arena.put(["cut"], BLOCK_BYTES)
    with client(running, mode=mode, deadline_ms=40) as made:
        arena = Arena(made, turns * BLOCK_BYTES)
        pattern = PATTERN * BLOCK_BYTES
        arena.view[:] = pattern * turns
        while arena.side.lost_lanes < CUTS[mode]:  # each one is a transfer that was cut
            at = asked % turns * BLOCK_BYTES
            late += not arena.holds(at, pattern)
            arena.wait_for_lanes(hurry=True)
            made._deadline_ms = random.randint(20, 120)
            (result,) = made.batch_get_into(["cut"], [arena.address + at], [BLOCK_BYTES])
            arena.view[at : at + BLOCK_BYTES] = pattern
            assert result in (*ENDS, BLOCK_BYTES), result
            finished += result == BLOCK_BYTES
            asked += 1
        late += not arena.holds(0, pattern * turns)
    cut = CUTS[mode]
    print(f"\n{mode.value}: {cut} of {asked} gets cut, {finished} came in time, {late} late writes")
    assert late == 0


def test_a_link_that_goes_down_in_the_middle(running: NodeProcess) -> None:
    """TCP goes another way, so the call still has its block; RDMA comes back by itself."""
    with client(running) as made:
        arena = Arena(made, BLOCK_BYTES)
        arena.put(["down"], BLOCK_BYTES)
        timer = threading.Timer(0.03, lambda: link("down"))
        timer.start()
        (result,) = arena.get(["down"], BLOCK_BYTES)
        timer.join()
        assert result in (*ENDS, BLOCK_BYTES)
        assert result < 0 or arena.is_right(["down"], BLOCK_BYTES)
        eventually(lambda: arena.open_lanes == 0, lambda: "lanes on a dead port")
        assert arena.get(["down"], BLOCK_BYTES) == [BLOCK_BYTES]
        assert arena.is_right(["down"], BLOCK_BYTES)
        eventually(lambda: bool(made.attachment.problems()), lambda: "silent")
        print(f"\n{made.attachment.problems()}")
        assert made.stats().rdma_fallbacks > 0
        link("up")
        arena.wait_for_lanes()
        before = made.stats().rdma_keys
        assert arena.get(["down"], BLOCK_BYTES) == [BLOCK_BYTES]
        assert made.stats().rdma_keys == before + 1


def link(state: str) -> None:
    subprocess.run(["ip", "link", "set", "rdma1", state], check=True)


def test_a_node_killed_in_the_middle_comes_back_warm() -> None:
    keys = [f"killed-{n}" for n in range(4)]
    with node(wiped(drive(1))) as first, client(first) as made:
        arena = Arena(made, 4 * BLOCK_BYTES)
        arena.put(keys, BLOCK_BYTES)
        timer = threading.Timer(0.05, first.kill)
        timer.start()
        results = arena.get(keys, BLOCK_BYTES)
        timer.join()
        assert all(result in (*ENDS, BLOCK_BYTES) for result in results), results
        assert min(results) < 0, "it was killed too late"
    with node(drive(1)) as second, client(second) as made:
        arena = Arena(made, 4 * BLOCK_BYTES)
        assert arena.get(keys, BLOCK_BYTES) == [BLOCK_BYTES] * 4
        assert arena.is_right(keys, BLOCK_BYTES)
