"""The map as a worker's server sees it while slots are closed."""

from memkv.node.moves.view import nobodys_map, without_owners, without_slots
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, WorkerState, pack_owners

WORKERS = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in range(3))
MAP = ShardMap(
    MapVersion(b"L" * 16, 1, 9),
    6,
    WORKERS,
    pack_owners([0, 0, 0, 1, 1, 2]),
    moving={0: Move((1, 2), 9), 1: Move((2,), 7), 3: Move((0,), 9)},
    fenced={2: 8},
)


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


def test_map_of_a_worker_without_one_names_no_owner_and_is_the_oldest() -> None:
    nothing = nobodys_map(4)
    assert (nothing.version.term, nothing.version.epoch) < (1, 1)
    assert all(nothing.owner(slot) is None for slot in range(4))


def test_unconfirmed_map_names_its_version_and_no_owner() -> None:
    seen = without_owners(MAP)
    assert seen.version == MAP.version
    assert all(seen.owner(slot) is None for slot in range(6))
    assert not seen.moving
