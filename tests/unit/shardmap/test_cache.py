"""The client contract about maps: an exhaustive table, then the situations it is made for."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv import limits
from memkv.shardmap import (
    UNASSIGNED,
    MapCache,
    MapVersion,
    Move,
    Offer,
    OwnerHint,
    ShardMap,
    Worker,
    WorkerState,
    pack_owners,
)
from memkv.shardmap.cache import CASES, _Situation

LINEAGE = b"L" * 16
OTHER_LINEAGE = b"M" * 16
WORKERS = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in range(3))


def make_map(
    epoch: int = 5,
    *,
    term: int = 1,
    lineage: bytes = LINEAGE,
    owners: tuple[int, ...] = (0, 1, 2, 0),
    moving: dict[int, Move] | None = None,
    workers: tuple[Worker, ...] = WORKERS,
) -> ShardMap:
    return ShardMap(
        MapVersion(lineage, term, epoch), len(owners), workers, pack_owners(owners), moving or {}
    )


def hint(
    slot: int, number: int, epoch: int, *, term: int = 1, port: int | None = None
) -> OwnerHint:
    uuid = bytes([number]) * 16
    return OwnerHint(slot, term, epoch, "127.0.0.1", port or 7070 + number, uuid)


def holding(shard_map: ShardMap) -> MapCache:
    cache = MapCache()
    assert cache.offer(shard_map, trusted=True) is Offer.APPLIED
    return cache


def test_every_situation_matches_exactly_one_case() -> None:
    """Only situations that can be: without a map, lineage, order and digest say nothing."""
    for has_map, usable, same_lineage, order, same_digest, trusted in product(
        (False, True), (False, True), (False, True), (-1, 0, 1), (False, True), (False, True)
    ):
        situation = _Situation(has_map, usable, same_lineage, order, same_digest, trusted)
        matching = [case.label for case in CASES if case.matches(situation)]
        assert len(matching) == 1, (situation, matching)


def test_first_map_is_taken_from_anyone() -> None:
    cache = MapCache()
    assert cache.offer(make_map(), trusted=False) is Offer.APPLIED
    assert cache.shard_map == make_map()


def test_newer_map_replaces_and_older_is_ignored_and_counted() -> None:
    cache = holding(make_map(5))
    assert cache.offer(make_map(6), trusted=False) is Offer.APPLIED
    assert cache.offer(make_map(5), trusted=True) is Offer.OLDER
    assert cache.offer(make_map(9, term=0), trusted=True) is Offer.OLDER
    assert cache.shard_map == make_map(6)
    assert cache.statistics().regressions == 2


def test_same_map_again_changes_nothing() -> None:
    cache = holding(make_map())
    before = cache.route
    assert cache.offer(make_map(), trusted=True) is Offer.UNCHANGED
    assert cache.route is before


def test_other_map_of_the_same_version_drops_both_until_one_is_fetched() -> None:
    cache = holding(make_map(5))
    assert cache.offer(make_map(5, owners=(1, 1, 2, 0)), trusted=True) is Offer.DIVERGED
    assert cache.route is None
    assert cache.offer(make_map(4), trusted=True) is Offer.OLDER
    fetched = make_map(5, owners=(1, 1, 2, 0))
    assert cache.offer(fetched, trusted=True) is Offer.APPLIED
    assert cache.shard_map == fetched
    assert cache.statistics().divergences == 1


def test_new_lineage_only_from_a_source_that_proves_itself() -> None:
    cache = holding(make_map(900))
    stranger = make_map(1, lineage=OTHER_LINEAGE)
    assert cache.offer(stranger, trusted=False) is Offer.FOREIGN
    assert cache.shard_map == make_map(900)
    assert cache.offer(stranger, trusted=True) is Offer.APPLIED
    assert cache.shard_map == stranger
    assert cache.statistics().foreign == 1


BROKEN_MAPS = [
    make_map(6, owners=(0, 1, 2, UNASSIGNED)),
    make_map(6, owners=(0, 1, 2, 3)),
    make_map(6, owners=(UNASSIGNED,) * 4, workers=()),
    make_map(6, owners=(0, 1, 2, 0, 1)),
]


@pytest.mark.parametrize("broken", BROKEN_MAPS, ids=["unassigned", "range", "empty", "slots"])
def test_unusable_map_is_kept_out(broken: ShardMap) -> None:
    cache = holding(make_map(5))
    assert cache.offer(broken, trusted=True) is Offer.UNUSABLE
    assert cache.offer_undecodable() is Offer.UNUSABLE
    assert cache.shard_map == make_map(5)
    assert cache.statistics().unusable == 2


def test_map_emptied_on_purpose_is_taken() -> None:
    cache = holding(make_map(5))
    empty = ShardMap(
        MapVersion(LINEAGE, 1, 6), 4, (), pack_owners([UNASSIGNED] * 4), intentional_empty=True
    )
    assert cache.offer(empty, trusted=True) is Offer.APPLIED
    assert cache.route is not None
    assert cache.route.owner_index(0) == UNASSIGNED
    assert not cache.learn(hint(0, 1, 7))


def test_hint_moves_one_slot_until_the_next_map() -> None:
    cache = holding(make_map(5))
    assert cache.learn(hint(0, 2, 6))
    assert cache.route is not None
    assert cache.route.owner_index(0) == 2
    assert cache.route.previous_owners(0) == (0,)
    assert cache.route.owner_index(3) == 0
    assert cache.route.workers == WORKERS
    cache.offer(make_map(6), trusted=True)
    assert cache.route.owner_index(0) == 0
    assert cache.route.learned == {}


def test_hint_of_an_unknown_worker_or_address_adds_it() -> None:
    cache = holding(make_map(5))
    assert cache.learn(hint(0, 9, 6))
    assert cache.learn(hint(1, 2, 6, port=9999))
    assert cache.route is not None
    assert [worker.port for worker in cache.route.workers[3:]] == [7079, 9999]
    assert cache.route.workers[4].uuid == WORKERS[2].uuid
    assert cache.route.owner_index(1) == 4


def test_hinted_worker_that_was_lost_is_asked_again() -> None:
    lost = Worker(b"\x09" * 16, 1, "n9", "127.0.0.1", 7079, WorkerState.LOST)
    cache = holding(make_map(5, workers=(*WORKERS, lost)))
    assert cache.learn(hint(0, 9, 6))
    assert cache.route is not None
    assert cache.route.workers[cache.route.owner_index(0)].state is WorkerState.ACTIVE


@pytest.mark.parametrize(
    "ignored",
    [hint(0, 2, 5), hint(0, 2, 4), hint(0, 2, 9, term=0), hint(4, 2, 6), hint(-1, 2, 6)],
    ids=["same-version", "older", "older-term", "no-such-slot", "negative-slot"],
)
def test_hint_that_is_not_news_is_ignored(ignored: OwnerHint) -> None:
    cache = holding(make_map(5))
    assert not cache.learn(ignored)
    assert cache.statistics().hints_ignored == 1
    assert not MapCache().learn(hint(0, 2, 6))


def test_previous_owners_of_a_learned_slot_start_with_the_maps_owner() -> None:
    moving = {0: Move((1, 2), 5)}
    cache = holding(make_map(5, moving=moving))
    assert cache.route is not None
    assert cache.route.previous_owners(0) == (1, 2)
    assert cache.route.moving == moving
    cache.learn(hint(0, 2, 6))
    assert cache.route.previous_owners(0) == (0, 1)


def test_map_is_stale_after_three_silent_intervals_and_stays_in_use() -> None:
    cache = holding(make_map(5))
    assert cache.stale(0)
    assert cache.age_ms(0) is None
    cache.heard(1_000_000_000, 200)
    assert not cache.stale(1_600_000_000)
    assert cache.stale(1_601_000_001)
    assert cache.age_ms(1_500_000_000) == 500
    assert cache.shard_map == make_map(5)
    cache.heard(2_000_000_000)
    assert not cache.stale(2_100_000_000)


offers = st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2), st.booleans())


@given(st.lists(offers, max_size=30))
def test_versions_in_use_never_go_back(history: list[tuple[int, int, int, bool]]) -> None:
    """Within a lineage, over any order of offers, divergences and hints."""
    cache = MapCache()
    highest: MapVersion | None = None
    for epoch, term, variant, trusted in history:
        lineage = OTHER_LINEAGE if variant == 2 else LINEAGE
        owners = (variant, 1, 2, 0)
        result = cache.offer(
            make_map(epoch, term=term, owners=owners, lineage=lineage), trusted=trusted
        )
        cache.learn(hint(0, 1, epoch + 1, term=term))
        current = cache.shard_map
        assert (current is None) == (result is Offer.DIVERGED) or result in (
            Offer.OLDER, Offer.FOREIGN,
        )  # fmt: skip
        if current is None:
            continue
        if highest is not None and highest.same_lineage(current.version):
            assert not highest.newer_than(current.version)
        highest = current.version
        assert cache.route is not None
        assert len(cache.route.workers) <= limits.WORKERS_MAX
