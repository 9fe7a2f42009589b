"""Devices that lie: a byte that changes on its way, completions that never come."""

import time

import pytest

from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers
from memkv.testing.registered import Arena, content, lanes_open, wait_for_lanes
from memkv.testing.waiting import eventually

SIZE = 512 * KIB
COUNT = 6
STEP = MIB
SLACK_S = 5.0


class Liar:
    """A client with blocks that are stored, and a place for each."""

    def __init__(self, fabric: FakeFabric, pool: LocalWorkers, strict: bool) -> None:
        verbs = FakeVerbs(fabric, ["client0"])
        self.client, _ = pool.client(pool.map(), verbs=verbs, strict=strict)
        self.arena = Arena(self.client, COUNT * STEP)
        wait_for_lanes(self.client, 4)
        self.keys = [f"k{n}" for n in range(COUNT)]
        self.blocks = [content(key, SIZE) for key in self.keys]
        self.ptrs = [self.arena.fill(n * STEP, data) for n, data in enumerate(self.blocks)]

    def put(self) -> list[int]:
        return self.client.batch_put_from(self.keys, self.ptrs, [SIZE] * COUNT)

    def get(self) -> list[int]:
        self.arena.view[:] = bytes(COUNT * STEP)
        return self.client.batch_get_into(self.keys, self.ptrs, [SIZE] * COUNT)

    def wrong_blocks(self) -> int:
        return sum(
            not self.arena.holds(n * STEP, data) for n, data in enumerate(self.blocks)
        )


@pytest.fixture
def liar(fabric: FakeFabric, pool: LocalWorkers, strict: bool) -> Liar:
    return Liar(fabric, pool, strict)


def test_a_byte_that_changes_in_a_write_is_never_returned(fabric: FakeFabric, liar: Liar) -> None:
    assert liar.put() == [0] * COUNT
    for flips in range(1, COUNT + 1):
        fabric.knobs.flip_writes = flips
        assert liar.get() == [SIZE] * COUNT
        assert fabric.knobs.flip_writes == 0
        assert liar.wrong_blocks() == 0
    seen = liar.client.stats()
    assert seen.corrupt == seen.rdma_fallbacks == sum(range(1, COUNT + 1))
    assert lanes_open(liar.client) == [4]


def test_a_byte_that_changes_in_a_read_refuses_the_put(fabric: FakeFabric, liar: Liar) -> None:
    fabric.knobs.flip_reads = 2
    results = liar.put()
    assert sorted(results)[2:] == [0] * (COUNT - 2)
    assert all(result < 0 for result in sorted(results)[:2])
    got = liar.get()
    assert [result == SIZE for result in got] == [result == 0 for result in results]
    assert liar.wrong_blocks() == 2
    for n, data in enumerate(liar.blocks):
        liar.arena.fill(n * STEP, data)
    assert liar.put() == [0] * COUNT
    assert liar.get() == [SIZE] * COUNT
    assert liar.wrong_blocks() == 0


@pytest.mark.parametrize("is_put", [False, True], ids=["get", "put"])
def test_a_completion_that_never_comes_ends_by_the_deadline(
    fabric: FakeFabric, liar: Liar, is_put: bool
) -> None:
    assert is_put or liar.put() == [0] * COUNT
    liar.client._deadline_ms = 300
    # In strict mode the first completions are those of windows.
    fabric.knobs.drop_completions = 1
    started = time.monotonic()
    results = liar.put() if is_put else liar.get()
    assert time.monotonic() - started < 0.3 + SLACK_S
    assert set(results) <= {0, SIZE, Status.TIMEOUT, Status.UNAVAILABLE, Status.QUARANTINED}
    if not is_put:
        for n, result in enumerate(results):
            assert result < 0 or liar.arena.holds(n * STEP, liar.blocks[n])
    liar.client._deadline_ms = 5_000
    for n, data in enumerate(liar.blocks):
        liar.arena.fill(n * STEP, data)
    eventually(lambda: liar.put() == [0] * COUNT, "puts that work")
    assert liar.get() == [SIZE] * COUNT
    assert liar.wrong_blocks() == 0
    eventually(lambda: lanes_open(liar.client) == [4], "all lanes")
