"""A get of one block takes a short way in the client; nobody must be able to tell.

Every situation is asked for by both ways, and the results must be equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client import sync
from memkv.client.short_way import get_one
from memkv.client.sync import Client
from memkv.errors import CallerError
from memkv.limits import KIB, MIB, SMALL_PAYLOAD_BYTES_MAX
from memkv.pattern import block, seed_of
from memkv.shardmap.map import MapVersion, Move, ShardMap
from memkv.status import Status
from memkv.testing.local_workers import SLOTS, LocalWorkers, local_workers
from memkv.testing.proxy import FaultProxy
from memkv.testing.shared_memory import SharedMemory

SIZE = 4 * KIB


def content(key: str, length: int = SIZE) -> bytes:
    return bytes(block(seed_of(key), length))


def behind(proxy: FaultProxy, shard_map: ShardMap) -> ShardMap:
    """Return the map with its one worker behind the proxy."""
    (worker,) = shard_map.workers
    return replace(shard_map, workers=(replace(worker, port=proxy.port),))


@dataclass
class Asker:
    """Asks by both ways. `taken`: whether the short one knew the result."""

    client: Client
    taken: bool = False

    def get(self, key: str | bytes, size: int = SIZE) -> int:
        """Return the result, the same by both ways; a hit has the same bytes."""
        short, long = bytearray(size), bytearray(size)
        core = self.client.attachment.core
        result = get_one(core, key, _hotpath.address_of(short), size, 5_000)
        expected = self.client.batch_get_into_multi(
            [key], [[_hotpath.address_of(long)]], [[size]]
        )[0]
        self.taken = result is not None
        if result is not None:
            assert result == expected
            assert short[: max(0, result)] == long[: max(0, result)]
        return expected


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path, 2) as running:
        yield running


@pytest.fixture
def asker(pool: LocalWorkers) -> Asker:
    return Asker(pool.client(pool.map())[0])


@pytest.mark.parametrize("size", [SIZE, SMALL_PAYLOAD_BYTES_MAX + 1, 2 * MIB])
def test_hits_and_misses_take_it(asker: Asker, size: int) -> None:
    for number in range(5):
        key = f"hit-{number}"
        assert asker.get(key, size) == Status.MISS
        assert asker.taken
        assert asker.client.put(key, content(key, size)) == Status.OK
        assert asker.get(key, size) == size
        assert asker.taken


def test_it_is_what_a_caller_takes(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "public"
    assert asker.client.put(key, content(key)) == Status.OK
    monkeypatch.delattr(sync, "get_operation")
    target = bytearray(SIZE)
    assert asker.client.batch_get_into([key], [_hotpath.address_of(target)], [SIZE]) == [SIZE]
    assert target == content(key)
    assert asker.client.get(key) == content(key)
    statistics = asker.client.stats()
    assert (statistics.gets, statistics.hits, statistics.bytes_read) == (2, 2, 2 * SIZE)


def test_a_buffer_that_is_too_small_takes_the_long_way(asker: Asker) -> None:
    assert asker.client.put("long", content("long", 10 * KIB)) == Status.OK
    assert asker.get("long") == Status.BUFFER_TOO_SMALL
    assert not asker.taken
    assert asker.client.get("long") == content("long", 10 * KIB)


def test_what_may_go_through_shared_memory_takes_the_long_way(asker: Asker) -> None:
    size = 2 * SMALL_PAYLOAD_BYTES_MAX
    assert asker.client.put("shared", content("shared", size)) == Status.OK
    with SharedMemory(size) as memory:
        asker.client.register_buffer(memory.address, size, fd=memory.fd)
        assert asker.get("shared", size) == size
        assert not asker.taken
        assert asker.client.unregister_buffer(memory.address) == Status.OK
    assert asker.get("shared", size) == size
    assert asker.taken


def test_a_worker_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_workers(tmp_path, 1) as pool:
        proxy = FaultProxy(("127.0.0.1", pool.workers[0].server.port))
        client, _ = pool.client(behind(proxy, pool.map()), deadline_ms=1_000)
        proxy.hold()
        monkeypatch.delattr(sync, "get_operation")  # it would have a deadline of its own
        target = bytearray(SIZE)
        result = client.batch_get_into(["held"], [_hotpath.address_of(target)], [SIZE])
        assert result == [Status.TIMEOUT]
        client.close()
        proxy.close()


def test_a_moving_slot_asks_its_previous_owner(pool: LocalWorkers) -> None:
    asker = Asker(pool.client(pool.map([0] * SLOTS))[0])
    assert asker.client.put("moved", content("moved")) == Status.OK
    moving = {slot: Move((0,), pool.epoch + 1) for slot in range(SLOTS)}
    asker = Asker(pool.client(pool.map([1] * SLOTS, moving))[0])
    assert asker.get("moved") == SIZE
    assert not asker.taken
    assert asker.get("never stored") == Status.MISS
    assert not asker.taken


def test_an_owner_that_is_not_one_any_more_names_the_next(pool: LocalWorkers) -> None:
    before = pool.map([0] * SLOTS)
    asker = Asker(pool.client(before)[0])
    pool.map([1] * SLOTS)
    assert asker.get("elsewhere") == Status.MISS
    assert not asker.taken


def test_an_owner_that_has_not_got_the_newest_map_yet_answers(pool: LocalWorkers) -> None:
    before = pool.map()
    asker = Asker(pool.client(before)[0])
    assert asker.client.put("early", content("early")) == Status.OK
    newer = replace(before, version=MapVersion(bytes(16), 1, pool.epoch + 5))
    asker = Asker(pool.client(newer)[0])
    assert asker.get("early") == SIZE
    assert asker.taken


def test_a_worker_that_is_gone_is_unavailable(asker: Asker, pool: LocalWorkers) -> None:
    for worker in pool.workers:
        worker.server.stop()
    assert asker.get("gone") == Status.UNAVAILABLE
    assert not asker.taken


def test_an_empty_map_has_no_owner_to_ask(pool: LocalWorkers) -> None:
    empty = ShardMap(
        MapVersion(bytes(16), 1, 1), SLOTS, (), b"\xff\xff" * SLOTS, intentional_empty=True
    )
    client, _ = pool.client(empty)
    asker = Asker(client)
    assert asker.get("nowhere") < 0
    assert not asker.taken


def test_flipped_bits_are_asked_for_again(tmp_path: Path) -> None:
    with local_workers(tmp_path, 1) as pool:
        proxy = FaultProxy(("127.0.0.1", pool.workers[0].server.port))
        client, _ = pool.client(behind(proxy, pool.map()))
        assert client.put("flipped", content("flipped")) == Status.OK

        def flip(sent: int, piece: bytearray) -> bool:
            if len(piece) > KIB:
                piece[-1] ^= 1
            return True

        proxy.fault = flip
        asker = Asker(client)
        assert asker.get("flipped") == Status.CORRUPT
        assert not asker.taken
        assert client.get("flipped") is None

        flips = itertools.repeat(True, 1)
        proxy.fault = lambda sent, piece: (
            flip(sent, piece) if len(piece) > KIB and next(flips, False) else True
        )
        before = client.stats().corrupt
        assert client.get("flipped") == content("flipped")
        assert client.stats().corrupt == before + 1
        client.close()
        proxy.close()


@pytest.mark.parametrize("bad", ["", b"", "k" * 513, "\udc80"])
def test_what_is_no_key_is_the_callers_error(asker: Asker, bad: str | bytes) -> None:
    target = bytearray(SIZE)
    with pytest.raises(CallerError):
        asker.client.batch_get_into([bad], [_hotpath.address_of(target)], [SIZE])
