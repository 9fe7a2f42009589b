"""The table of slots, every situation of it; and plans of whole maps."""

from itertools import product

import pytest

from memkv.node.moves.memory import MoveMemory
from memkv.node.moves.plan import (
    CASES,
    Action,
    Case,
    Plan,
    Role,
    decide,
    dropped_tenants,
    make_plan,
    roles,
)
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners

LINEAGE = b"L" * 16
ME, X, Y = (bytes([n]) * 16 for n in range(3))
WORKERS = tuple(Worker(uuid, 1, "n", "127.0.0.1", 7070) for uuid in (ME, X, Y))
SITUATIONS = list(product(Role, Role, (False, True), (False, True), (False, True)))


def make_map(
    owners: str, moving: dict[int, Move] | None = None, fenced: dict[int, int] | None = None,
    *, epoch: int = 9, lineage: bytes = LINEAGE, generations: dict[bytes, int] | None = None,
) -> ShardMap:
    """`owners`: a digit a slot, 0 is this worker."""
    table = pack_owners(int(digit) for digit in owners)
    return ShardMap(
        MapVersion(lineage, 1, epoch), len(owners), WORKERS, table, moving or {}, fenced or {},
        generations or {},
    )


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_has_a_safe_action(
    situation: tuple[Role, Role, bool, bool, bool],
) -> None:
    after, before, holds, newer_fence, newer_move = situation
    action = decide(after, before, holds, newer_fence, newer_move)
    if after is Role.OWNER:
        if not holds:
            assert action is Action.START
        elif newer_fence:
            assert action is Action.PURGE
        elif newer_move:
            assert action is Action.HEAR, "blocks deleted meanwhile must not be served"
        else:
            assert action is Action.KEEP, "nothing is lost needlessly"
    elif after is Role.PREVIOUS:
        assert action is Action.KEEP, "its blocks are still wanted"
    else:
        retired = before is Role.PREVIOUS and holds
        assert action is (Action.DROP if retired else Action.ASIDE)


def test_every_row_is_needed_and_no_two_disagree_but_by_order() -> None:
    first: dict[str, int] = {}
    for situation in SITUATIONS:
        matching = [case for case in CASES if _matches(case, *situation)]
        assert matching
        first[matching[0].label] = first.get(matching[0].label, 0) + 1
        assert len(matching) == 1 or [case.label for case in matching] == ["retired", "away"]
    assert set(first) == {case.label for case in CASES}


def _matches(
    case: Case, after: Role, before: Role, holds: bool, fence: bool, move: bool
) -> bool:
    return (
        case.after is after
        and case.before in (None, before)
        and case.holds in (None, holds)
        and case.newer_fence in (None, fence)
        and case.newer_move in (None, move)
    )


def test_roles_are_read_off_the_map() -> None:
    shard_map = make_map("0110", {1: Move((0,), 9), 0: Move((1,), 9)})
    assert roles(shard_map, ME) == {0: Role.OWNER, 1: Role.PREVIOUS, 3: Role.OWNER}
    assert roles(shard_map, b"?" * 16) == {}
    assert roles(None, ME) == {}


def test_plan_of_a_worker_that_was_away() -> None:
    memory = MoveMemory(LINEAGE, 6, heard={0: 6, 1: 6, 2: 8, 3: 6, 4: 6, 5: 3})
    shard_map = make_map(
        "0000001",
        moving={0: Move((1, 2), 9), 1: Move((2,), 5), 2: Move((2,), 8), 6: Move((0,), 9)},
        fenced={3: 7, 4: 6},
    )
    plan = make_plan(None, shard_map, ME, memory)
    assert plan == Plan(
        start=frozenset(), purge=frozenset({3}), hear={0: (1, 2)},
        keep=frozenset({1, 2, 4, 5, 6}), pull={s: shard_map.moving[s] for s in (0, 1, 2)},
    )
    assert plan.closed == {0, 3}


def test_worker_without_a_past_begins_empty() -> None:
    shard_map = make_map("001", {0: Move((1,), 9)}, {1: 9})
    plan = make_plan(None, shard_map, ME, MoveMemory())
    assert plan.start == {0, 1}
    assert not plan.hear
    assert not plan.purge
    assert plan.closed == {0, 1}


def test_retired_slots_are_dropped_and_lost_ones_are_kept_aside() -> None:
    memory = MoveMemory(LINEAGE, 8, heard={0: 8, 1: 8, 2: 8})
    before = make_map("010", {1: Move((0,), 8)}, epoch=8)
    plan = make_plan(before, make_map("111"), ME, memory)
    assert plan.drop == {1}
    assert plan.closed == frozenset()
    assert make_plan(None, make_map("111"), ME, memory).drop == frozenset()


def test_worker_that_the_map_does_not_name_has_no_work() -> None:
    memory = MoveMemory(LINEAGE, 8, heard={0: 8})
    assert make_plan(None, make_map("000"), b"?" * 16, memory) == Plan()


def test_new_lineage_keeps_what_was_up_to_date_and_asks_about_moves_of_its_own() -> None:
    memory = MoveMemory(b"M" * 16, 50, heard={0: 50, 1: 50, 2: 49, 3: 50})
    before = make_map("0000", lineage=b"M" * 16, epoch=50)
    shard_map = make_map("0001", {1: Move((1,), 1)}, epoch=1)
    plan = make_plan(before, shard_map, ME, memory)
    assert plan.stale == {2}
    assert plan.keep == {0}
    assert plan.hear == {1: (1,)}
    assert plan.start == {2}


def test_dropped_tenants_are_purged_once() -> None:
    tag, known = b"t" * 16, b"k" * 16
    shard_map = make_map("1", generations={tag: 2, known: 3})
    memory = MoveMemory(LINEAGE, 8, tenants={tag: (1, 500), known: (3, 600)})
    assert dropped_tenants(shard_map, memory) == {tag: 2}
    memory = memory.dropped_tenant(tag, 2, 700)
    assert dropped_tenants(shard_map, memory) == {}
    assert memory.tenant_floors == {tag: 700, known: 600}
