"""Jobs of chunks: what ends, what is refused, and what waiting for the end waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from memkv.client.options import DEFAULT_PUT
from memkv.client.reasons import RequestReasons
from memkv.integrations.parts import Part
from memkv.integrations.stores import Stored
from memkv.integrations.vllm_tier.chunks import ChunkMover, Ended, Job
from memkv.integrations.vllm_tier.naming import CacheShape, ChunkNames
from memkv.limits import KIB
from memkv.reasons import MissReason

ROW = 64 * KIB
BASE = 1 << 40


class Group:
    group_id = 0
    tokens_per_block = 16
    layer_names = ("layers.0",)


class ByHand:
    """Transfers that end when the test says how."""

    def __init__(self) -> None:
        self.dropped = RequestReasons()
        self.waiting: list[tuple[list[list[Part]], Callable[[list[Any]], None]]] = []

    def load(
        self, objects: Sequence[Sequence[Part]], on_end: Callable[[list[Any]], None], *,
        request: Hashable = None,
    ) -> None:
        self.waiting.append(([list(parts) for parts in objects], on_end))

    def store(
        self, objects: Sequence[Sequence[Part]], on_end: Callable[[list[Any]], None], *,
        request: Hashable = None, options: object = None, hints: Sequence[object] = (),
    ) -> None:
        self.waiting.append(([list(parts) for parts in objects], on_end))

    def end(self, *outcome: object) -> None:
        _, on_end = self.waiting.pop(0)
        on_end(list(outcome))


@pytest.fixture
def transfers() -> ByHand:
    return ByHand()


def mover(transfers: ByHand, *, rows: int = 4, hashing: str | None = "vllm/h") -> ChunkMover:
    shape = CacheShape((Group(),), "bfloat16", 16, 4, ROW, (("tp", 1),), "0.32-LBNHC")
    return ChunkMover(
        transfers,  # type: ignore[arg-type]  # a double
        ChunkNames(shape, "llama", "", lambda: hashing), BASE, ROW,
        store_bytes_max=rows * ROW, put_options=DEFAULT_PUT,
    )


def job(number: int, rows: Sequence[int], *, is_load: bool = False) -> Job:
    chunks = [bytes([number, row]) * 16 + bytes(4) for row in rows]
    return Job(number, is_load, chunks, rows, f"request-{number}")


def test_rows_are_where_the_host_cache_has_them(transfers: ByHand) -> None:
    mover(transfers).load(job(1, [3, 0], is_load=True))
    ((objects, _),) = transfers.waiting
    assert [part.pieces for parts in objects for part in parts] == [
        ((BASE + 3 * ROW, ROW),), ((BASE, ROW),)
    ]
    assert objects[0][0].key != objects[1][0].key


def test_a_load_says_which_chunks_came(transfers: ByHand) -> None:
    moving = mover(transfers)
    wanted = job(1, [0, 1, 2], is_load=True)
    moving.load(wanted)
    assert moving.take_ended() == []
    transfers.end(object(), None, object())
    (ended,) = moving.take_ended()
    assert (ended.job.number, ended.is_whole) == (1, False)
    assert ended.of(True) == [wanted.chunks[0], wanted.chunks[2]]
    assert ended.of(False) == [wanted.chunks[1]]
    assert moving.take_ended() == []


def test_a_store_counts_as_moved_only_what_was_sent(transfers: ByHand) -> None:
    moving = mover(transfers)
    moving.store(job(1, [0, 1, 2]))
    transfers.end(Stored.NEW, Stored.KNOWN, Stored.DROPPED)
    (ended,) = moving.take_ended()
    assert (ended.done, ended.moved) == ([True, True, False], [True, False, False])


def test_stores_beyond_their_share_are_dropped_at_once(transfers: ByHand) -> None:
    moving = mover(transfers, rows=4)
    moving.store(job(1, [0, 1, 2]))
    moving.store(job(2, [3, 4]))
    (dropped,) = moving.take_ended()
    assert (dropped.job.number, list(dropped.done)) == (2, [False, False])
    assert transfers.dropped.totals == {MissReason.BUSY: 2}
    moving.store(job(3, [3]))
    assert len(transfers.waiting) == 2, "what fits goes on"
    transfers.end(Stored.NEW, Stored.NEW, Stored.NEW)
    transfers.end(Stored.NEW)
    assert len(moving.take_ended()) == 2
    moving.store(job(4, [0, 1, 2, 3]))
    assert len(transfers.waiting) == 1, "the share is free again"


def test_one_store_always_fits(transfers: ByHand) -> None:
    moving = mover(transfers, rows=1)
    moving.store(job(1, [0, 1, 2]))
    assert len(transfers.waiting) == 1


def test_nothing_is_stored_before_it_can_be_named(transfers: ByHand) -> None:
    moving = mover(transfers, hashing=None)
    moving.store(job(1, [0]))
    (dropped,) = moving.take_ended()
    assert not dropped.is_whole
    assert transfers.waiting == []


def test_draining_waits_for_the_last_job_and_complains(transfers: ByHand) -> None:
    moving = mover(transfers)
    moving.store(job(1, [0]))
    moving.load(job(2, [1], is_load=True))
    complaints: list[int] = []
    complained = threading.Event()

    def complain(count: int) -> None:
        complaints.append(count)
        complained.set()

    waiting = threading.Thread(target=moving.drain, args=(0.001, complain))
    waiting.start()
    assert complained.wait(30)
    transfers.end(Stored.NEW)
    assert waiting.is_alive()
    transfers.end(None)
    waiting.join(30)
    assert not waiting.is_alive()
    assert complaints[0] == 2
    ended: list[Ended] = moving.take_ended()
    assert [one.job.number for one in ended] == [1, 2]
    moving.drain(0.001, complain)
