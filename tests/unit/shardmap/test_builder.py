"""The builder is pure, moves little, respects weights and the cap, and never silently changes."""

import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memkv.errors import CallerError, InternalBug
from memkv.shardmap import Candidate, Scores, build_owners
from memkv.shardmap.builder import check_owners, load_caps, score

GOLDEN = Path(__file__).parents[2] / "golden" / "shardmap.json"

uuids = st.binary(min_size=16, max_size=16)
weights = st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0, 3.5])
pools = st.lists(
    st.builds(Candidate, uuids, weights), min_size=1, max_size=9, unique_by=lambda c: c.uuid
)
slot_counts = st.integers(min_value=1, max_value=300)


def by_uuid(candidates: list[Candidate], owners: Iterable[int]) -> list[bytes]:
    return [candidates[index].uuid for index in owners]


@given(pools, slot_counts)
@settings(deadline=None, max_examples=80)
def test_every_slot_has_an_owner_and_no_worker_is_over_its_cap(
    candidates: list[Candidate], slots: int
) -> None:
    owners = build_owners(candidates, slots)
    assert len(owners) == slots
    caps = load_caps([c.weight for c in candidates], slots, 1.10)
    for index, count in Counter(owners).items():
        assert 0 <= index < len(candidates)
        assert count <= caps[index]


@given(pools, slot_counts, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_workers_does_not_matter(
    candidates: list[Candidate], slots: int, shuffler: random.Random
) -> None:
    shuffled = list(candidates)
    shuffler.shuffle(shuffled)
    one = by_uuid(candidates, build_owners(candidates, slots))
    other = by_uuid(shuffled, build_owners(shuffled, slots))
    assert one == other


@given(pools.filter(lambda c: len(c) >= 2), slot_counts)
@settings(deadline=None, max_examples=40)
def test_without_a_cap_only_the_slots_of_a_leaver_move(
    candidates: list[Candidate], slots: int
) -> None:
    before = by_uuid(candidates, build_owners(candidates, slots, cap=1e9))
    stayed = candidates[1:]
    after = by_uuid(stayed, build_owners(stayed, slots, cap=1e9))
    for was, now in zip(before, after, strict=True):
        assert was in (candidates[0].uuid, now)


@given(pools, st.builds(Candidate, uuids, weights), slot_counts)
@settings(deadline=None, max_examples=40)
def test_without_a_cap_a_joiner_only_takes(
    candidates: list[Candidate], joiner: Candidate, slots: int
) -> None:
    assume(all(candidate.uuid != joiner.uuid for candidate in candidates))
    before = by_uuid(candidates, build_owners(candidates, slots, cap=1e9))
    joined = [*candidates, joiner]
    after = by_uuid(joined, build_owners(joined, slots, cap=1e9))
    for was, now in zip(before, after, strict=True):
        assert now in (was, joiner.uuid)


@given(pools, weights, slot_counts)
@settings(deadline=None, max_examples=40)
def test_without_a_cap_another_weight_moves_slots_of_that_worker_only(
    candidates: list[Candidate], weight: float, slots: int
) -> None:
    changed = [Candidate(candidates[0].uuid, weight), *candidates[1:]]
    before = by_uuid(candidates, build_owners(candidates, slots, cap=1e9))
    after = by_uuid(changed, build_owners(changed, slots, cap=1e9))
    heavier = weight > candidates[0].weight
    for was, now in zip(before, after, strict=True):
        assert was == now or (now if heavier else was) == candidates[0].uuid


@given(pools.filter(lambda c: len(c) >= 2), slot_counts)
@settings(deadline=None, max_examples=40)
def test_the_cap_costs_few_moves_more(candidates: list[Candidate], slots: int) -> None:
    """Whoever leaves, at most what was spilled over before or after moves besides its slots."""
    before, stayed = build_owners(candidates, slots), candidates[1:]
    after = by_uuid(stayed, build_owners(stayed, slots))
    spilled = sum(
        a != b
        for some in (candidates, stayed)
        for a, b in zip(build_owners(some, slots), build_owners(some, slots, cap=1e9), strict=True)
    )
    moved = sum(
        was not in (candidates[0].uuid, now)
        for was, now in zip(by_uuid(candidates, before), after, strict=True)
    )
    assert moved <= spilled


@pytest.mark.parametrize(
    ("owners", "named"),
    [([0, 1], "2 slots of 3"), ([0, 1, 2], r"\[0, 1, 2\]"), ([0, 0, 0], "got 3 slots, 2 may")],
    ids=["a-slot-short", "nobody-there", "over-the-cap"],
)
def test_result_is_checked_before_anyone_sees_it(owners: list[int], named: str) -> None:
    with pytest.raises(InternalBug, match=named):
        check_owners(numbered(2), array("H", owners), 3, 1.10)


def numbered(count: int, weight: float = 1.0) -> list[Candidate]:
    return [Candidate(number.to_bytes(16, "big"), weight) for number in range(1, count + 1)]


def test_a_joining_worker_moves_little_more_than_its_share() -> None:
    before = by_uuid(numbered(8), build_owners(numbered(8), 4096))
    after = by_uuid(numbered(9), build_owners(numbered(9), 4096))
    moved = sum(a != b for a, b in zip(before, after, strict=True)) / 4096
    assert moved <= 1.3 / 9
    gained = Counter(after)[numbered(9)[-1].uuid] / 4096
    assert gained == pytest.approx(1 / 9, rel=0.12)


def test_double_weight_gets_double_slots() -> None:
    candidates = [*numbered(7), Candidate(b"\xff" * 16, 2.0)]
    counts = Counter(build_owners(candidates, 4096))
    assert counts[7] == pytest.approx(4096 * 2 / 9, rel=0.11)


def test_balance_of_64_workers_is_within_the_cap() -> None:
    counts = Counter(build_owners(numbered(64), 4096))
    assert max(counts.values()) <= math.ceil(1.10 * 64)
    assert len(counts) == 64


def test_score_grows_with_weight_and_survives_the_largest_hash() -> None:
    assert score(b"a" * 16, 2.0, 7) == pytest.approx(2 * score(b"a" * 16, 1.0, 7))
    assert all(score(number.to_bytes(16, "big"), 1.0, 0) > 0 for number in range(500))


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda c: c["name"])
def test_golden_tables(case: dict[str, Any]) -> None:
    """Frozen: another table here means that every pool's slots move when MemKV is upgraded."""
    candidates = [Candidate(bytes.fromhex(c["uuid"]), c["weight"]) for c in case["workers"]]
    owners = build_owners(candidates, case["slots"])
    assert list(owners) == case["owners"]


@pytest.mark.parametrize(
    ("candidates", "slots", "cap", "named"),
    [
        ([], 8, 1.1, "0 workers"),
        (numbered(1), 0, 1.1, "0 slots"),
        (numbered(1), 65537, 1.1, "65537 slots"),
        (numbered(1), 8, 0.9, "load cap"),
        (numbered(1) * 2, 8, 1.1, "same UUID"),
        ([Candidate(b"short")], 8, 1.1, "5 bytes"),
        (numbered(1, 0.0), 8, 1.1, "weight"),
        (numbered(1, math.inf), 8, 1.1, "weight"),
    ],
)
def test_senseless_input_is_refused(
    candidates: list[Candidate], slots: int, cap: float, named: str
) -> None:
    with pytest.raises(CallerError, match=named):
        build_owners(candidates, slots, cap=cap)


def test_scores_of_earlier_maps_change_no_owner() -> None:
    kept = Scores(256)
    workers = [Candidate(bytes([n]) * 16, 1.0 + n % 3) for n in range(12)]
    for worker in workers:
        kept.add(worker.uuid, 7.0)  # the weight it had once
    for some in (workers[:5], workers, workers[3:], [Candidate(workers[0].uuid, 2.0)]):
        assert build_owners(some, 256, known=kept) == build_owners(some, 256)
        kept.keep(some)
