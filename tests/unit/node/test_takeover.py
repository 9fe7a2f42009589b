"""What a worker does before it serves by a new map."""

from memkv.node.takeover import (
    Applied,
    Takeover,
    nobodys_map,
    open_moves,
    plan_takeover,
    without_slots,
)
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, WorkerState, pack_owners

LINEAGE = b"L" * 16
WORKERS = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in range(3))
MAP = ShardMap(
    MapVersion(LINEAGE, 1, 9),
    6,
    WORKERS,
    pack_owners([0, 0, 0, 1, 1, 2]),
    moving={0: Move((1, 2), 9), 1: Move((2,), 7), 3: Move((0,), 9)},
    fenced={2: 8, 4: 8, 0: 5},
)


def test_moves_and_fences_newer_than_what_was_applied_are_work() -> None:
    assert plan_takeover(MAP, 0, Applied(LINEAGE, 8)) == Takeover(frozenset(), {0: (1, 2)})
    assert plan_takeover(MAP, 0, Applied(LINEAGE, 7)) == Takeover(frozenset({2}), {0: (1, 2)})
    assert plan_takeover(MAP, 0, Applied(LINEAGE, 6)) == Takeover(
        frozenset({2}), {0: (1, 2), 1: (2,)}
    )
    assert plan_takeover(MAP, 0, Applied(LINEAGE, 9)).closed == frozenset()


def test_fenced_slot_is_not_also_asked_about() -> None:
    plan = plan_takeover(MAP, 0, Applied(LINEAGE, 4))
    assert plan.purge == {0, 2}
    assert sorted(plan.hear) == [1]
    assert plan.closed == {0, 1, 2}


def test_another_lineage_counts_as_nothing_applied() -> None:
    assert plan_takeover(MAP, 0, Applied(b"M" * 16, 99)).closed == {0, 1, 2}


def test_worker_that_the_map_does_not_name_has_no_work() -> None:
    assert plan_takeover(MAP, None, Applied()) == Takeover()
    assert open_moves(MAP, None) == {}


def test_closed_slots_belong_to_a_previous_owner_meanwhile() -> None:
    seen = without_slots(MAP, 0, {0, 2})
    assert [seen.owner_index(slot) for slot in range(6)] == [1, 0, 1, 1, 1, 2]
    assert seen.version == MAP.version
    assert sorted(seen.moving) == [1, 3]
    assert without_slots(MAP, 0, ()) is MAP


def test_lost_previous_owner_does_not_get_a_closed_slot() -> None:
    lost = Worker(WORKERS[1].uuid, 1, "n1", "127.0.0.1", 7071, WorkerState.LOST)
    shard_map = ShardMap(
        MAP.version, 2, (WORKERS[0], lost, WORKERS[2]), pack_owners([0, 0]), {0: Move((1, 2), 9)}
    )
    assert without_slots(shard_map, 0, {0}).owner_index(0) == 2


def test_worker_alone_in_its_map_closes_slots_to_nobody() -> None:
    alone = ShardMap(MAP.version, 1, WORKERS[:1], pack_owners([0]), fenced={0: 9})
    assert without_slots(alone, 0, {0}).owner(0) is None


def test_open_moves_are_those_towards_the_worker() -> None:
    assert sorted(open_moves(MAP, 0)) == [0, 1]
    assert sorted(open_moves(MAP, 1)) == [3]


def test_map_of_a_worker_without_one_names_no_owner_and_is_the_oldest() -> None:
    nothing = nobodys_map(4)
    nothing_version = (nothing.version.term, nothing.version.epoch)
    assert nothing_version < (MAP.version.term, MAP.version.epoch)
    assert all(nothing.owner(slot) is None for slot in range(4))
