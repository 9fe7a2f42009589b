"""The N-th piece of traffic is the last: every place where a connection can end, one after another.

Both ways through a proxy that cuts, over a real store and server. After each cut the next client's
answer is judged: the bytes that were put, or a miss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memkv._hotpath import address_of
from memkv.client.sync import Client
from memkv.limits import KIB
from memkv.pattern import block, seed_of
from memkv.shardmap.map import ShardMap
from memkv.status import Status
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.proxy import FaultProxy, cut_after

SIZE = 600 * KIB
DEADLINE_MS = 10_000
KEPT = b"\xa5"
CUTS = (0, 1, 63, 64, 65, 100, 200, 511, 4 * KIB, 64 * KIB, 256 * KIB, SIZE - 1, SIZE, SIZE + 300)
LOST = {Status.UNAVAILABLE, Status.TIMEOUT, Status.MISS}


@dataclass
class Cut:
    pool: LocalWorkers
    proxy: FaultProxy
    client: Client
    honest: Client


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    with local_workers(tmp_path, 1) as pool:
        shard_map = pool.map()
        proxy = FaultProxy(("127.0.0.1", pool.workers[0].server.port))
        workers = tuple(replace(worker, port=proxy.port) for worker in shard_map.workers)
        through = ShardMap(shard_map.version, shard_map.slots, workers, shard_map.owners)
        client, _ = pool.client(through, deadline_ms=DEADLINE_MS)
        honest, _ = pool.client(shard_map, deadline_ms=DEADLINE_MS)
        yield Cut(pool, proxy, client, honest)
        client.close()
        proxy.close()


def content(key: str) -> bytes:
    return bytes(block(seed_of(key), SIZE))


def attached(cut: Cut) -> None:
    """Let everything through again, and wait until the client has its lanes."""
    cut.proxy.fault = cut.proxy.request_fault = cut_after(1 << 60)
    while cut.client.batch_is_exist(["any"]) != [0] or not cut.client.wait_ready(DEADLINE_MS):
        pass
    lanes = b"lanes" * SIZE
    while cut.client.put("lanes", lanes[:SIZE]) != Status.OK:
        pass


def test_an_answer_cut_anywhere_is_a_miss_and_the_next_is_right(cut: Cut) -> None:
    assert cut.honest.put("answer", content("answer")) == Status.OK
    target = bytearray(SIZE)
    for kept in CUTS:
        attached(cut)
        cut.proxy.fault = cut_after(kept)
        result = cut.client.batch_get_into(["answer"], [address_of(target)], [SIZE])[0]
        assert result in LOST or target == content("answer"), kept
        target[:] = KEPT * SIZE
        attached(cut)
        assert target == KEPT * SIZE, "written after the call"
        assert cut.client.get("answer") == content("answer")


def test_a_put_cut_anywhere_is_stored_whole_or_not_at_all(cut: Cut) -> None:
    for kept in CUTS:
        key = f"put-{kept}"
        attached(cut)
        cut.proxy.request_fault = cut_after(kept)
        stored = cut.client.put(key, content(key))
        assert stored in LOST or stored == Status.OK, kept
        seen = cut.honest.get(key)
        assert seen in (None, content(key)), kept
        assert stored != Status.OK or seen is not None, "acknowledged, and not there"
    attached(cut)
    statistics = cut.pool.workers[0].server.statistics()
    assert statistics.events.internal_errors == 0


def test_every_answer_of_a_batch_may_be_the_last(cut: Cut) -> None:
    keys = [f"batch-{n}" for n in range(12)]
    for key in keys:
        assert cut.honest.put(key, content(key)[: 100 * KIB]) == Status.OK
    targets = [bytearray(100 * KIB) for _ in keys]
    pointers, sizes = [address_of(t) for t in targets], [len(t) for t in targets]
    for kept in range(0, 13 * 100 * KIB, 170 * KIB):
        attached(cut)
        cut.proxy.fault = cut_after(kept)
        results = cut.client.batch_get_into(keys, pointers, sizes)
        for key, target, result in zip(keys, targets, results, strict=True):
            assert result in LOST or target == content(key)[: 100 * KIB]
            target[:] = bytes(100 * KIB)
