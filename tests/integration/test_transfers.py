"""Objects of an engine to a real pool and back: hits are whole, everything else is a counted miss,
and nothing waits longer than it may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memkv._hotpath import address_of
from memkv.client.options import ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.integrations.blocks import BlockFormat
from memkv.integrations.keys import Namespace
from memkv.integrations.parts import ObjectKind, Part
from memkv.integrations.stores import Stored
from memkv.integrations.transfers import Transfers, Waited
from memkv.limits import BLOCK_HEADER_BYTES, EXPLAINED_MISSES_MAX, KIB, MIB
from memkv.pattern import block, seed_of
from memkv.reasons import MissReason
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.lying_worker import flip_payload, lying_worker
from memkv.testing.proxy import FaultProxy
from memkv.testing.waiting import eventually

NAMESPACE = Namespace("llama", "", "bfloat16", "K2.L4.T.H8.D64", 256, "tests")
SIZE = 700 * KIB
KIND = ObjectKind(NAMESPACE, SIZE, part_bytes_max=300 * KIB)  # three blocks
SMALL = ObjectKind(NAMESPACE, 200 * KIB, shape=(2, 100 * KIB))
DEADLINE_MS = 500
SLACK_S = 20.0  # of a busy machine


KEPT: list[bytearray] = []


@pytest.fixture(autouse=True)
def memory_stays() -> Iterator[None]:
    """Addresses keep nothing alive."""
    yield
    KEPT.clear()


@dataclass
class Memory:
    """An object's memory, in two pieces. Stays until the test ends."""

    data: bytearray

    def __post_init__(self) -> None:
        KEPT.append(self.data)

    @classmethod
    def of(cls, name: str, size_bytes: int = SIZE) -> Memory:
        return cls(bytearray(block(seed_of(name), size_bytes)))

    @classmethod
    def blank(cls, size_bytes: int = SIZE) -> Memory:
        return cls(bytearray(size_bytes))

    def parts(self, name: str, kind: ObjectKind = KIND) -> list[Part]:
        address, half = address_of(self.data), len(self.data) // 2
        pieces = [(address, half), (address + half, len(self.data) - half)]
        return kind.parts(name.encode(), pieces)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path_factory.mktemp("pool"), 2) as running:
        yield running


@pytest.fixture
def transfers(pool: LocalWorkers) -> Iterator[Transfers]:
    client, _ = pool.client(pool.map())
    made = Transfers(client)
    yield made
    made.close()


def store(transfers: Transfers, objects: list[list[Part]]) -> list[Stored]:
    waited: Waited[list[Stored]] = Waited()
    transfers.store(objects, waited)
    return waited.result()


def load(
    transfers: Transfers, objects: list[list[Part]], shorter: bool = False
) -> list[BlockFormat | None]:
    waited: Waited[list[BlockFormat | None]] = Waited()
    transfers.load(objects, waited, request="load", shorter=shorter)
    return waited.result()


def lookup(transfers: Transfers, objects: list[list[bytes]]) -> list[bool]:
    waited: Waited[list[bool]] = Waited()
    transfers.lookup(objects, waited, lease_ms=1000, request="lookup")
    return waited.result()


def test_objects_of_several_blocks_round_trip(transfers: Transfers) -> None:
    names = [f"round-{n}" for n in range(40)]  # over several windows
    sources = [Memory.of(name) for name in names]
    objects = [memory.parts(name) for name, memory in zip(names, sources, strict=True)]
    assert store(transfers, objects) == [Stored.NEW] * 40
    assert store(transfers, objects) == [Stored.KNOWN] * 40
    assert lookup(transfers, [[part.key for part in parts] for parts in objects]) == [True] * 40
    targets = [Memory.blank() for _ in names]
    found = load(transfers, [m.parts(n) for n, m in zip(names, targets, strict=True)])
    assert all(found)
    assert [memory.data for memory in targets] == [memory.data for memory in sources]
    assert transfers.missed.totals == {MissReason.PRESENT: 40}
    assert transfers.dropped.totals == {MissReason.PRESENT: 80}


def test_an_object_without_one_of_its_blocks_is_a_miss(transfers: Transfers) -> None:
    parts = Memory.of("hole").parts("hole")
    assert store(transfers, [parts]) == [Stored.NEW]
    assert transfers.remove([parts[1].key]) == [0]
    assert lookup(transfers, [[part.key for part in parts]]) == [False]
    assert load(transfers, [parts]) == [None]
    assert store(transfers, [parts]) == [Stored.NEW], "what is missing is stored again"
    assert load(transfers, [parts]) != [None]


def test_a_block_that_is_not_what_its_key_says_is_a_miss(
    transfers: Transfers, pool: LocalWorkers
) -> None:
    """Somebody puts another model's block under our key: nobody who follows docs/keys.md."""
    (mine,) = Memory.blank(200 * KIB).parts("foreign", SMALL)
    theirs = replace(SMALL, namespace=replace(NAMESPACE, model="other"))
    (foreign,) = Memory.of("foreign", 200 * KIB).parts("foreign", theirs)
    client, _ = pool.client(pool.map())
    client.put(mine.key, foreign.format.header + bytes(200 * KIB))
    (other,) = Memory.blank(200 * KIB).parts("no-block", SMALL)
    client.put(other.key, bytes(BLOCK_HEADER_BYTES + 200 * KIB))
    assert load(transfers, [[mine], [other]]) == [None, None]
    assert transfers.missed.take("load") == {
        MissReason.WRONG_NAMESPACE: 1, MissReason.WRONG_FORMAT: 1,
    }  # fmt: skip


def test_a_shorter_object_says_its_own_length_and_shape(transfers: Transfers) -> None:
    short = replace(SMALL, payload_bytes=50 * KIB, shape=(2, 25 * KIB), tokens=64)
    source = Memory.of("short", 50 * KIB)
    assert store(transfers, [source.parts("short", short)]) == [Stored.NEW]
    target = Memory.blank(200 * KIB)
    assert load(transfers, [target.parts("short", SMALL)]) == [None], "unless it was asked for"
    (found,) = load(transfers, [target.parts("short", SMALL)], shorter=True)
    assert found is not None
    assert (found.payload_bytes, found.shape, found.tokens) == (50 * KIB, (2, 25 * KIB), 64)
    assert target.data[: 50 * KIB] == source.data


def test_stores_over_the_backlog_are_dropped_and_counted(pool: LocalWorkers) -> None:
    client, _ = pool.client(pool.map())
    transfers = Transfers(client, store_backlog_bytes=2 * SIZE)
    objects = [Memory.of(f"many-{n}").parts(f"many-{n}") for n in range(4)]
    assert store(transfers, objects) == [Stored.NEW] * 2 + [Stored.DROPPED] * 2
    assert transfers.dropped.totals == {MissReason.PRESENT: 2, MissReason.BUSY: 2}
    assert store(transfers, objects[2:]) == [Stored.NEW] * 2, "there is room again"
    transfers.close()


def test_the_time_to_live_reaches_the_pool(transfers: Transfers) -> None:
    waited: Waited[list[Stored]] = Waited()
    parts = Memory.of("mortal").parts("mortal")
    transfers.store([parts], waited, options=PutOptions(ttl_s=1, durability="durable"))
    assert waited.result() == [Stored.NEW]
    keys = [[part.key for part in parts]]
    eventually(lambda: lookup(transfers, keys) == [False], "the end of its time")


def test_misses_are_explained_by_what_nodes_remember(
    transfers: Transfers, pool: LocalWorkers
) -> None:
    names = [f"why-{number}" for number in range(EXPLAINED_MISSES_MAX + 3)]
    objects = [Memory.of(name, 200 * KIB).parts(name, SMALL) for name in names]
    assert store(transfers, objects[:2]) == [Stored.NEW] * 2
    transfers.remove([objects[0][0].key])
    assert load(transfers, objects[:3]).count(None) == 2
    eventually(
        lambda: transfers.missed.totals
        == {MissReason.PRESENT: 1, MissReason.DELETED: 1, MissReason.NEVER_STORED: 1},
        "reasons of a load",
    )
    assert lookup(transfers, [[part.key for part in parts] for parts in objects[2:]]) == [
        False
    ] * (EXPLAINED_MISSES_MAX + 1)
    eventually(
        lambda: transfers.missed.totals
        == {MissReason.PRESENT: 1, MissReason.DELETED: 1, MissReason.UNEXPLAINED: 1,
            MissReason.NEVER_STORED: 1 + EXPLAINED_MISSES_MAX},
        "reasons of a lookup, of so many as a node is asked about",
    )


def test_nothing_to_do_ends_at_once(transfers: Transfers) -> None:
    assert (store(transfers, []), load(transfers, []), lookup(transfers, [])) == ([], [], [])


def test_a_pool_that_is_away_is_misses_and_dropped_stores() -> None:
    options = ConnectOptions("127.0.0.1:1", deadline_ms=DEADLINE_MS, bootstrap_timeout_ms=1)
    transfers = Transfers(Client(options))
    parts = Memory.of("away").parts("away")
    started = time.monotonic()
    assert store(transfers, [parts]) == [Stored.DROPPED]
    assert load(transfers, [parts]) == [None]
    assert lookup(transfers, [[part.key for part in parts]]) == [False]
    assert time.monotonic() - started < SLACK_S
    assert transfers.dropped.totals == {MissReason.UNAVAILABLE: 1}
    assert transfers.missed.totals == {MissReason.UNAVAILABLE: 2}
    transfers.close()
    assert load(transfers, [parts]) == [None], "closed"
    assert store(transfers, [parts]) == [Stored.DROPPED]
    assert lookup(transfers, [[part.key for part in parts]]) == [False]


@pytest.fixture
def deadline_ms() -> int:
    return 20_000


@pytest.fixture
def proxied(tmp_path: Path, deadline_ms: int) -> Iterator[tuple[Transfers, FaultProxy]]:
    with lying_worker(tmp_path) as worker:
        transfers = Transfers(worker.client(deadline_ms), load_deadline_ms=deadline_ms)
        yield transfers, worker.proxy
        transfers.close()


def test_a_node_that_flips_bits_is_a_miss(proxied: tuple[Transfers, FaultProxy]) -> None:
    transfers, proxy = proxied
    parts = Memory.of("flips", 200 * KIB).parts("flips", SMALL)
    assert store(transfers, [parts]) == [Stored.NEW]

    proxy.fault = flip_payload
    assert load(transfers, [parts]) == [None]
    assert transfers.missed.take("load") == {MissReason.CORRUPT: 1}


@pytest.mark.parametrize("deadline_ms", [DEADLINE_MS])
def test_a_node_that_says_nothing_is_waited_for_until_the_deadline(
    proxied: tuple[Transfers, FaultProxy],
) -> None:
    transfers, proxy = proxied
    count = 200  # of 200 KiB: more than the windows that go out at once
    objects = [Memory.blank(200 * KIB).parts(f"held-{n}", SMALL) for n in range(count)]
    proxy.hold()
    started = time.monotonic()
    assert load(transfers, objects) == [None] * count
    assert time.monotonic() - started < SLACK_S
    reasons = transfers.missed.take("load")
    assert sum(reasons.values()) == count
    assert set(reasons) <= {MissReason.TIMEOUT, MissReason.UNAVAILABLE}
    proxy.release()


def test_pages_of_headers_come_back(transfers: Transfers) -> None:
    """More loads at one time than there are pages: each waits for its turn, and all end."""
    parts = Memory.of("pages").parts("pages")
    assert store(transfers, [parts]) == [Stored.NEW]
    waits: list[Waited[list[BlockFormat | None]]] = [Waited() for _ in range(12)]
    memories = [[Memory.blank(1 * MIB // 4) for _ in range(150)] for _ in waits]
    kind = replace(SMALL, payload_bytes=1 * MIB // 4)
    for wait, targets in zip(waits, memories, strict=True):
        transfers.load([m.parts(f"none-{n}", kind) for n, m in enumerate(targets)], wait)
    assert all(wait.result() == [None] * 150 for wait in waits)
    assert load(transfers, [Memory.blank().parts("pages")]) != [None]
