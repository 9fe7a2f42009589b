"""A node with DRAM for a few blocks: writes under way and reads that need room never wait for each
other, whatever the pieces and lanes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.fake_verbs.queue_pair import FakeQueuePair
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.registered import Arena, content, wait_for_lanes
from memkv.testing.waiting import at_rest

SIZE = 2 * MIB - 8 * KIB
COUNT = 10
PIECES = 256
CLIENTS = 3
TURNS = 3


@pytest.fixture
def tiny(tmp_path: Path, fabric: FakeFabric) -> Iterator[LocalWorkers]:
    """Seven blocks are all that DRAM holds."""
    with local_workers(
        tmp_path, 1, capacity_bytes=512 * MIB, memory_bytes=16 * MIB, block_bytes_max=2 * MIB,
        verbs=FakeVerbs(fabric, ["node0"]),
    ) as pool:  # fmt: skip
        yield pool
    (tmp_path / "flash-0").unlink()


def pieces_of(address: int) -> tuple[list[int], list[int]]:
    """Cut a block's memory into many pieces of different sizes."""
    sizes = [SIZE // PIECES] * (PIECES - 1)
    sizes.append(SIZE - sum(sizes))
    starts = [address + sum(sizes[:n]) for n in range(PIECES)]
    return starts, sizes


@pytest.mark.parametrize("many_pieces", [False, True], ids=["whole", "256 pieces"])
def test_gets_of_more_than_dram_all_come(
    fabric: FakeFabric, tiny: LocalWorkers, strict: bool, many_pieces: bool
) -> None:
    verbs = [FakeVerbs(fabric, [f"client{n}"]) for n in range(CLIENTS)]
    clients = [
        tiny.client(tiny.map(), verbs=one, strict=strict, deadline_ms=20_000)[0] for one in verbs
    ]
    arenas = [Arena(client, COUNT * 2 * MIB) for client in clients]
    for client in clients:
        wait_for_lanes(client, 4)
    keys = [f"k{n}" for n in range(COUNT)]
    blocks = [content(key, SIZE) for key in keys]
    for key, data in zip(keys, blocks, strict=True):
        assert clients[0].batch_put_from([key], [arenas[0].fill(0, data)], [SIZE]) == [0]
    failures: list[object] = []

    def run(number: int) -> None:
        client, arena = clients[number], arenas[number]
        ptrs = [arena.address + n * 2 * MIB for n in range(COUNT)]
        for _ in range(1 if many_pieces else 2):
            arena.view[:] = bytes(COUNT * 2 * MIB)
            if many_pieces:
                places = [pieces_of(ptr) for ptr in ptrs]
                results = client.batch_get_into_multi(
                    keys, [starts for starts, _ in places], [sizes for _, sizes in places]
                )
            else:
                results = client.batch_get_into(keys, ptrs, [SIZE] * COUNT)
            failures.extend(result for result in results if result != SIZE)
            failures.extend(
                keys[n] for n, data in enumerate(blocks) if not arena.holds(n * 2 * MIB, data)
            )

    def fallbacks_of_a_turn() -> int:
        before = sum(client.stats().rdma_fallbacks for client in clients)
        threads = [threading.Thread(target=run, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for client in clients:
            wait_for_lanes(client, 4)
        return sum(client.stats().rdma_fallbacks for client in clients) - before

    # A starved machine may cost lanes, and then all comes over TCP; room in DRAM must not.
    assert any(fallbacks_of_a_turn() == 0 for _ in range(TURNS))


def test_lanes_with_a_block_each_do_not_wait_for_each_other(
    fabric: FakeFabric, tiny: LocalWorkers
) -> None:
    """More gets than DRAM has blocks begin at once; each has one under way, and wants more."""
    client, _ = tiny.client(tiny.map(), verbs=FakeVerbs(fabric, ["client0"]), deadline_ms=20_000)
    arena = Arena(client, 2 * MIB)
    keys = [f"k{n}" for n in range(64)]  # nobody finds in DRAM what another one is sent
    blocks = [content(key, SIZE) for key in keys]
    for key, data in zip(keys, blocks, strict=True):
        assert client.batch_put_from([key], [arena.fill(0, data)], [SIZE]) == [0]
    getters = [
        tiny.client(tiny.map(), verbs=FakeVerbs(fabric, [f"get{n}"]), deadline_ms=20_000)[0]
        for n in range(8)
    ]
    arenas = [Arena(one, 8 * 2 * MIB) for one in getters]
    for one in getters:
        wait_for_lanes(one)
    results: list[int] = []

    def run(number: int) -> None:
        ptrs = [arenas[number].address + n * 2 * MIB for n in range(8)]
        wanted = keys[8 * number : 8 * number + 8]
        results.extend(getters[number].batch_get_into(wanted, ptrs, [SIZE] * 8))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    fabric.hold(0)
    for thread in threads:
        thread.start()
    at_rest(lambda: len(fabric.queue_pairs) + sum(len(p.posted) for p in pairs(fabric)))
    fabric.release()
    for thread in threads:
        thread.join()
    assert results == [SIZE] * 64


def pairs(fabric: FakeFabric) -> list[FakeQueuePair]:
    with fabric.lock:
        return list(fabric.queue_pairs.values())


def test_puts_and_gets_share_what_there_is(
    fabric: FakeFabric, tiny: LocalWorkers, strict: bool
) -> None:
    """Gets that write blocks hold DRAM that puts need, and the other way round."""
    client, _ = tiny.client(
        tiny.map(), verbs=FakeVerbs(fabric, ["client0"]), strict=strict, deadline_ms=20_000
    )
    arena = Arena(client, 8 * 2 * MIB)
    wait_for_lanes(client, 4)
    keys = [f"k{n}" for n in range(4)]
    ptrs = [arena.address + n * 2 * MIB for n in range(8)]
    for n, key in enumerate(keys):
        arena.fill(n * 2 * MIB, content(key, SIZE))
    assert client.batch_put_from(keys, ptrs[:4], [SIZE] * 4) == [0] * 4
    results: list[int] = []

    def put() -> None:
        for n in range(6):
            new = [f"new-{n}-{m}" for m in range(4)]
            results.extend(client.batch_put_from(new, ptrs[:4], [SIZE] * 4))

    thread = threading.Thread(target=put)
    thread.start()
    got: list[int] = []
    for _ in range(6):
        got += client.batch_get_into(keys, ptrs[4:], [SIZE] * 4)
    thread.join()
    assert set(results) == {Status.OK}
    assert set(got) == {SIZE}
