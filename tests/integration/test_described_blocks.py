"""Self-describing blocks through a real pool: header and payload as separate pieces of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.integrations.arena import Arena, HeaderPages
from memkv.integrations.blocks import HEADER_RANGE, BlockFormat, Verdict, judge
from memkv.integrations.keys import Adapter, Namespace, block_key, block_keys
from memkv.integrations.reasons import note_results
from memkv.limits import BLOCK_HEADER_BYTES, KIB
from memkv.pattern import block
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.testing.local_workers import LocalWorkers, local_workers

WAIT_S = 30
OURS = Namespace("llama", "r1", "bfloat16", "L4.K2.T.H8.D64", 16, "sha256/0")
PAYLOAD_BYTES = 4 * 2 * 16 * 8 * 64 * 2  # 128 KiB
FORMAT = BlockFormat.of(OURS, PAYLOAD_BYTES, shape=(4, 2, 16, 8, 64))
HASHES = [bytes([number]) * 32 for number in range(6)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path_factory.mktemp("pool"), 2) as running:
        yield running


class Engine:
    """An engine's process: its cache of blocks, and pages for headers."""

    def __init__(self, pool: LocalWorkers, namespace: Namespace = OURS) -> None:
        self.client, _ = pool.client(pool.map())
        assert self.client.wait_ready(WAIT_S * 1000)
        self.namespace = namespace
        self.format = BlockFormat.of(namespace, PAYLOAD_BYTES, shape=(4, 2, 16, 8, 64))
        self.cache = Arena(self.client, len(HASHES) * PAYLOAD_BYTES)
        self.pages = HeaderPages(self.client, len(HASHES))

    def pieces(self, headers: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        ptrs = [
            [header, self.cache.address + number * PAYLOAD_BYTES]
            for number, header in enumerate(headers)
        ]
        return ptrs, [[BLOCK_HEADER_BYTES, PAYLOAD_BYTES]] * len(headers)

    def store(self, keys: list[bytes], seed: int) -> list[int]:
        size_bytes = len(keys) * PAYLOAD_BYTES
        self.cache.view[:size_bytes] = bytes(block(seed, size_bytes))
        ptrs, sizes = self.pieces([self.pages.of_put(self.format)] * len(keys))
        return self.client.batch_put_from_multi(keys, ptrs, sizes)

    def load(self, keys: list[bytes]) -> list[Verdict]:
        headers = self.pages.take(len(keys))
        assert headers is not None
        ptrs, sizes = self.pieces(headers)
        results = self.client.batch_get_into_multi(keys, ptrs, sizes)
        verdicts = [
            judge(result, self.pages.view(header), self.format)
            for result, header in zip(results, headers, strict=True)
        ]
        self.pages.give_back(headers)
        return verdicts

    def close(self) -> None:
        self.pages.close()
        self.cache.close()
        self.client.close()


@pytest.fixture
def engine(pool: LocalWorkers) -> Iterator[Engine]:
    engine = Engine(pool)
    yield engine
    engine.client.batch_remove(block_keys(OURS, HASHES))
    engine.close()


def test_a_second_process_loads_what_the_first_stored(pool: LocalWorkers, engine: Engine) -> None:
    keys = block_keys(OURS, HASHES)
    assert engine.store(keys, 7) == [Status.OK] * len(HASHES)
    other = Engine(pool)
    assert all(verdict.is_hit for verdict in other.load(keys))
    assert bytes(other.cache.view) == bytes(block(7, len(HASHES) * PAYLOAD_BYTES))
    # Header and payload both lay in shared memory: nothing went over TCP.
    assert other.client.stats().local_keys == len(HASHES)
    assert other.client.stats().local_fallbacks == 0
    other.close()


def test_a_process_that_knows_nothing_but_the_key_reads_what_it_is(
    engine: Engine, pool: LocalWorkers
) -> None:
    (key,) = keys = block_keys(OURS, HASHES[:1])
    engine.store(keys, 7)
    client, _ = pool.client(pool.map())
    page = bytearray(BLOCK_HEADER_BYTES)
    assert client.batch_get_ranges(
        [key], [HEADER_RANGE], [_hotpath.address_of(page)], [len(page)]
    ) == [BLOCK_HEADER_BYTES]
    assert BlockFormat.read(page) == FORMAT


OTHERS = {
    "another model": replace(OURS, model="mistral"),
    "another revision": replace(OURS, revision="r2"),
    "another block size": replace(OURS, block_tokens=32),
    "another dtype": replace(OURS, kv_dtype="float16"),
    "an adapter": replace(OURS, adapter=Adapter.of_path("sql", "/a")),
    "an adapter of the same name": replace(OURS, adapter=Adapter.of_path("sql", "/b")),
    "a salt like the adapter": replace(OURS, cache_salt=b"sql"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_of_others_in_the_same_pool_are_misses_with_a_reason(
    pool: LocalWorkers, engine: Engine, name: str
) -> None:
    engine.store(block_keys(OURS, HASHES), 7)
    other = Engine(pool, OTHERS[name])
    keys = block_keys(other.namespace, HASHES)
    verdicts = other.load(keys)
    assert {verdict.reason for verdict in verdicts} == {MissReason.UNEXPLAINED}
    note_results(other.client, "request", keys, [Status.MISS] * len(keys))
    assert other.client.stats().request_reasons["never_stored"] == 1
    other.close()


@pytest.mark.parametrize("name", OTHERS)
def test_even_under_our_key_they_are_no_hit(
    pool: LocalWorkers, engine: Engine, name: str
) -> None:
    """A program that names blocks without their namespace stored them."""
    keys = block_keys(OURS, HASHES)
    other = Engine(pool, OTHERS[name])
    assert other.store(keys, 9) == [Status.OK] * len(keys)
    other.close()
    assert {verdict.reason for verdict in engine.load(keys)} == {MissReason.WRONG_NAMESPACE}


def test_a_longer_and_a_shorter_block_are_no_hit(engine: Engine) -> None:
    short, long = block_keys(OURS, HASHES[:2])
    engine.client.put(short, bytes(10 * KIB))
    engine.client.put(long, bytes(PAYLOAD_BYTES + 2 * BLOCK_HEADER_BYTES))
    assert [verdict.reason for verdict in engine.load([short, long])] == [
        MissReason.WRONG_FORMAT
    ] * 2


def test_groups_of_one_hash_are_blocks_of_their_own(engine: Engine) -> None:
    first, second = (block_key(OURS, HASHES[0], group) for group in (0, 1))
    engine.store([first], 7)
    assert [verdict.is_hit for verdict in engine.load([first, second])] == [True, False]


def test_flipped_bits_are_never_wrong_output(tmp_path: Path) -> None:
    with local_workers(tmp_path, 1) as pool:
        engine = Engine(pool)
        keys = block_keys(OURS, HASHES[:1])
        engine.store(keys, 7)
        (extent,) = pool.workers[0].store._core.arena._named.values()
        extent.view[2 * BLOCK_HEADER_BYTES + 100] ^= 1
        verdicts = engine.load(keys)
        # Twice where the node had it in DRAM alone when it was asked once more.
        assert engine.client.stats().corrupt in (1, 2)
        if verdicts[0].is_hit:  # the node had it on flash already, and read it there
            assert bytes(engine.cache.view[:PAYLOAD_BYTES]) == bytes(block(7, PAYLOAD_BYTES))
        else:
            assert engine.client.why(keys) == [MissReason.CORRUPT]
        engine.close()
