"""The client when workers lie, stop, die and come back: misses in time, never wrong bytes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client.sync import Client
from memkv.limits import KIB, MIB
from memkv.pattern import block, seed_of
from memkv.shardmap.map import Move, ShardMap
from memkv.status import Status
from memkv.testing.local_workers import SLOTS, LocalWorkers, local_workers
from memkv.testing.proxy import FaultProxy
from memkv.testing.waiting import eventually

WAIT_S = 30
SIZE = 600 * KIB


@dataclass
class Proxied:
    """One worker behind a proxy, and a client that only knows the proxy."""

    pool: LocalWorkers
    proxy: FaultProxy
    client: Client


@pytest.fixture
def deadline_ms() -> int:
    """No busy machine is a fault; tests of silence set one that they can wait for."""
    return 20_000


SHORT_DEADLINES = pytest.mark.parametrize("deadline_ms", [1_000])


@pytest.fixture
def proxied(tmp_path: Path, deadline_ms: int) -> Iterator[Proxied]:
    with local_workers(tmp_path, 1) as pool:
        proxy = FaultProxy(("127.0.0.1", pool.workers[0].server.port))
        client, _ = pool.client(through(pool.map(), proxy), deadline_ms=deadline_ms)
        yield Proxied(pool, proxy, client)
        client.close()
        proxy.close()


def through(shard_map: ShardMap, proxy: FaultProxy) -> ShardMap:
    workers = tuple(replace(worker, port=proxy.port) for worker in shard_map.workers)
    return ShardMap(shard_map.version, shard_map.slots, workers, shard_map.owners)


def content(key: str) -> bytes:
    return bytes(block(seed_of(key), SIZE))


def get_into(client: Client, key: str, target: bytearray) -> int:
    return client.batch_get_into([key], [_hotpath.address_of(target)], [len(target)])[0]


@pytest.mark.parametrize("bit", range(8))
def test_a_bit_flipped_in_payload_is_never_a_hit(proxied: Proxied, bit: int) -> None:
    assert proxied.client.put("flip", content("flip")) == Status.OK

    def flip(sent: int, piece: bytearray) -> bool:
        if len(piece) > 4 * KIB:  # payload; headers are the next test's
            piece[len(piece) // 2] ^= 1 << bit
        return True

    proxied.proxy.fault = flip
    assert proxied.client.get("flip") is None
    assert proxied.client.stats().corrupt >= 1


def test_a_bit_flipped_once_is_read_again(proxied: Proxied) -> None:
    assert proxied.client.put("once", content("once")) == Status.OK
    flips = itertools.repeat(True, 1)

    def flip(sent: int, piece: bytearray) -> bool:
        if len(piece) > 4 * KIB and next(flips, False):
            piece[-1] ^= 1
        return True

    proxied.proxy.fault = flip
    assert proxied.client.get("once") == content("once")
    assert proxied.client.stats().corrupt == 1


def test_flips_anywhere_are_misses_or_right_bytes(proxied: Proxied) -> None:
    client = proxied.client
    assert client.put("anywhere", content("anywhere")) == Status.OK
    target = bytearray(SIZE)
    for at in itertools.chain(range(0, 700, 13), (SIZE // 2, SIZE, SIZE + 100)):
        flips = itertools.repeat(True, 1)

        def flip(
            sent: int, piece: bytearray, at: int = at, flips: Iterator[bool] = flips
        ) -> bool:
            if sent <= at < sent + len(piece) and next(flips, False):
                piece[at - sent] ^= 0x10
            return True

        proxied.proxy.fault = flip
        status = get_into(client, "anywhere", target)
        assert status < 0 or bytes(target) == content("anywhere")
    proxied.proxy.fault = lambda sent, piece: True
    eventually(
        lambda: get_into(client, "anywhere", target) == SIZE, "a hit over an honest proxy"
    )
    assert bytes(target) == content("anywhere")


@SHORT_DEADLINES
def test_a_silent_worker_costs_the_deadline_and_writes_into_nothing(proxied: Proxied) -> None:
    client = proxied.client
    assert client.put("silent", content("silent")) == Status.OK
    target = bytearray(b"\x55" * SIZE)
    proxied.proxy.hold()
    began = time.monotonic()
    assert get_into(client, "silent", target) == Status.TIMEOUT
    assert 0.9 < time.monotonic() - began < WAIT_S
    before = bytes(target)
    proxied.proxy.release()  # the late answer comes now, to a lane that is closed
    eventually(lambda: client.get("silent") == content("silent"), "a hit after the silence")
    assert bytes(target) == before


@SHORT_DEADLINES
def test_a_worker_that_stays_silent_is_not_waited_for_again(proxied: Proxied) -> None:
    """Each lane is waited for once; without lanes, or with an open breaker, nobody waits."""
    client = proxied.client
    proxied.proxy.hold()
    results = [client.put(f"k{n}", b"x" * 1000) for n in range(200)]
    assert results[0] == Status.TIMEOUT
    assert set(results) == {Status.TIMEOUT, Status.UNAVAILABLE}
    assert results.count(Status.TIMEOUT) < 20  # three lanes; a stalled machine may add a few
    proxied.proxy.release()
    eventually(lambda: client.put("again", b"x" * 1000) == Status.OK, "a put after the silence")


def test_cut_connections_come_back(proxied: Proxied) -> None:
    client = proxied.client
    assert client.put("cut", content("cut")) == Status.OK
    for _ in range(5):
        proxied.proxy.cut()
        result = client.get("cut")
        assert result is None or result == content("cut")
        eventually(lambda: client.get("cut") == content("cut"), "a hit after the cut")


def test_an_answer_that_ends_in_the_middle_is_a_miss(proxied: Proxied) -> None:
    assert proxied.client.put("middle", content("middle")) == Status.OK
    proxied.proxy.fault = lambda sent, piece: sent < 100 * KIB
    assert proxied.client.get("middle") is None
    proxied.proxy.fault = lambda sent, piece: True
    eventually(lambda: proxied.client.get("middle") == content("middle"), "a hit again")


def test_a_map_that_lies_costs_a_round_trip(tmp_path: Path) -> None:
    with local_workers(tmp_path, 3) as pool:
        lie = pool.map([0] * SLOTS)
        truth = pool.map([n % 3 for n in range(SLOTS)])
        liar, source = pool.client(lie)
        keys = [f"key-{n}" for n in range(60)]
        for key in keys:
            assert liar.put(key, key.encode() * 100) == Status.OK
        honest, _ = pool.client(truth)
        for key in keys:
            assert honest.get(key) == key.encode() * 100
            assert liar.get(key) == key.encode() * 100
        assert liar.stats().wrong_owner > 0
        source.publish(truth)
        assert liar.match_prefix(keys) == 60


def test_blocks_of_a_moving_slot_are_found_and_copied(tmp_path: Path) -> None:
    with local_workers(tmp_path, 2) as pool:
        client, source = pool.client(pool.map([0] * SLOTS))
        keys = [f"moving-{n}" for n in range(40)]
        for key in keys:
            assert client.put(key, key.encode() * 500) == Status.OK
        moved = pool.map([1] * SLOTS, {slot: Move((0,), 2) for slot in range(SLOTS)})
        source.publish(moved)
        assert client.match_prefix(keys) == 40
        for key in keys:
            assert client.get(key) == key.encode() * 500
        eventually(
            lambda: client.stats().copies_to_new_owner == 40, "the copy to the new owner"
        )
        source.publish(pool.map([1] * SLOTS))
        assert client.match_prefix(keys) == 40


def test_a_delete_reaches_previous_owners(tmp_path: Path) -> None:
    with local_workers(tmp_path, 2) as pool:
        client, source = pool.client(pool.map([0] * SLOTS), deadline_ms=20_000)
        for n in range(20):
            assert client.put(f"gone-{n}", b"old" * 500) == Status.OK
        source.publish(pool.map([1] * SLOTS, {slot: Move((0,), 2) for slot in range(SLOTS)}))
        assert client.batch_remove([f"gone-{n}" for n in range(10)]) == [Status.OK] * 10
        assert all(client.get(f"gone-{n}") is None for n in range(10))
        pool.workers[0].server.stop()
        assert client.batch_remove([f"gone-{n}" for n in range(10, 20)]) == [
            Status.UNAVAILABLE
        ] * 10


def test_one_dead_worker_of_three_only_costs_its_keys(tmp_path: Path) -> None:
    with local_workers(tmp_path, 3) as pool:
        client, _ = pool.client(pool.map(), deadline_ms=20_000)
        keys = [f"three-{n}" for n in range(60)]
        data = [bytearray(k.encode() * 100) for k in keys]
        sizes = [len(one) for one in data]
        ptrs = [_hotpath.address_of(one) for one in data]
        assert client.batch_put_from(keys, ptrs, sizes) == [0] * 60
        pool.workers[1].server.stop()
        targets = [bytearray(size) for size in sizes]
        got = client.batch_get_into(keys, [_hotpath.address_of(t) for t in targets], sizes)
        lost = [n for n in range(60) if got[n] < 0]
        assert 0 < len(lost) < 60
        assert all(targets[n] == data[n] for n in range(60) if n not in lost)
        assert {got[n] for n in lost} <= {Status.UNAVAILABLE, Status.TIMEOUT}


def test_closing_a_client_ends_calls_in_flight(proxied: Proxied) -> None:
    proxied.proxy.hold()
    target = bytearray(MIB)
    job = proxied.client.submit_get_into(["x"], [_hotpath.address_of(target)], [MIB])
    proxied.client.close()
    assert job > 0
