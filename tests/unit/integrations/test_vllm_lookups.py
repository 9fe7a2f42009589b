"""Lookups of an engine's requests: asked once, never waited for, right for ranks and groups."""

from __future__ import annotations

import select

import pytest

from memkv.integrations.keys import Namespace, Rank, block_key
from memkv.integrations.vllm.lookups import Lookups
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.testing.pool_in_memory import PoolInMemory

HASHES = [bytes((number,)) * 32 for number in range(3)]
RANKS = tuple(
    Namespace("model", "", "bfloat16", "vllm:test", 16, "vllm/sha256/0", (Rank("tp", rank, 2),))
    for rank in range(2)
)


class Rig:
    def __init__(self) -> None:
        self.pool = PoolInMemory()
        self.now_ms = 0
        self.lookups = Lookups(self.pool, 5_000, 100, lambda: self.now_ms * 1_000_000)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def stored(rig: Rig, rank: int, group: int, numbers: range) -> None:
    for number in numbers:
        rig.pool.blocks[block_key(RANKS[rank], HASHES[number], group)] = b"block"


def test_a_block_is_there_when_every_rank_has_it(rig: Rig) -> None:
    stored(rig, 0, 0, range(3))
    stored(rig, 1, 0, range(2))
    rig.lookups.ask("request", RANKS, HASHES, 1)
    answer = rig.lookups.take("request")
    assert answer is not None
    assert answer.present == [[True, True, False]]
    assert answer.reasons == {MissReason.PRESENT: 5, MissReason.UNEXPLAINED: 1}


def test_groups_are_told_apart(rig: Rig) -> None:
    stored(rig, 0, 0, range(3))
    stored(rig, 0, 1, range(1, 3))
    rig.lookups.ask("request", RANKS[:1], HASHES, 2)
    answer = rig.lookups.take("request")
    assert answer is not None
    assert answer.present == [[True, True, True], [False, True, True]]


def test_an_answer_is_taken_once_and_asking_leases_what_is_found(rig: Rig) -> None:
    rig.lookups.ask("request", RANKS, HASHES, 1)
    assert rig.lookups.is_asked("request")
    assert rig.lookups.take("request") is not None
    assert not rig.lookups.is_asked("request")
    assert rig.lookups.take("request") is None
    assert rig.pool.leases_ms == [5_000]


def test_misses_are_explained_after_the_answer(rig: Rig) -> None:
    stored(rig, 0, 0, range(1))
    rig.lookups.ask("request", RANKS[:1], HASHES, 1)
    assert rig.lookups.take("request") is not None
    rig.lookups.collect()
    (explained,) = rig.lookups.take_explained()
    assert explained.request_id == "request"
    assert explained.reasons == [MissReason.NEVER_STORED] * 2
    assert rig.lookups.take_explained() == []


def test_nobody_waits_for_an_answer_that_does_not_come(rig: Rig) -> None:
    rig.pool.is_prompt = False
    rig.lookups.ask("request", RANKS, HASHES, 1)
    assert rig.lookups.take("request") is None
    rig.now_ms = 201
    answer = rig.lookups.take("request")
    assert answer is not None
    assert not answer.is_known
    assert answer.present == [[False, False, False]]
    rig.pool.end()  # the late answer is for nobody
    assert rig.lookups.take("request") is None


def test_a_pool_that_is_away_is_no_answer(rig: Rig) -> None:
    rig.pool.spoil = lambda _: Status.UNAVAILABLE
    rig.lookups.ask("request", RANKS, HASHES, 1)
    answer = rig.lookups.take("request")
    assert answer is not None
    assert not answer.is_known
    assert answer.reasons == {MissReason.UNAVAILABLE: 6}


def test_answers_of_dropped_requests_are_forgotten(rig: Rig) -> None:
    rig.pool.is_prompt = False
    rig.lookups.ask("gone", RANKS, HASHES, 1)
    rig.lookups.ask("stays", RANKS, HASHES, 1)
    rig.lookups.drop("gone")
    rig.pool.end()
    assert rig.lookups.take("gone") is None
    assert rig.lookups.take("stays") is not None


def test_asking_again_forgets_the_first_answer(rig: Rig) -> None:
    rig.pool.is_prompt = False
    rig.lookups.ask("request", RANKS, HASHES, 1)
    stored(rig, 0, 0, range(3))
    stored(rig, 1, 0, range(3))
    rig.lookups.ask("request", RANKS, HASHES[:2], 1)
    rig.pool.end()
    answer = rig.lookups.take("request")
    assert answer is not None
    assert answer.present == [[True, True]]


def test_a_step_waits_once_however_many_requests_have_no_answer(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine asks for each of its waiting requests in each step: with a silent pool and 200 of
    them every step took 200 ms longer."""
    waits: list[object] = []

    class Poll:
        def register(self, fd: int, events: int) -> None:
            pass

        def poll(self, wait_ms: int) -> list[tuple[int, int]]:
            waits.append(wait_ms)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    rig = Rig()
    rig.pool.is_prompt = False
    for step in range(1, 4):
        for number in range(200):
            if step == 1:
                rig.lookups.ask(f"request-{number}", RANKS, HASHES, 1)
            assert rig.lookups.take(f"request-{number}") is None
        rig.lookups.end_step()
        assert len(waits) == step
    rig.now_ms = 201
    assert all(rig.lookups.take(f"request-{number}") for number in range(200)), "patience is over"
