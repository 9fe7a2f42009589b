"""Ownership: who serves what by the map, for every kind of slot and batch size."""

import hashlib

import pytest

from memkv._hotpath import slots_of
from memkv.node.ownership import Ownership
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, pack_owners

UUIDS = [bytes([value]) * 16 for value in (1, 2, 3)]
WORKERS = tuple(
    Worker(uuid, 1, f"node-{index}", f"10.0.0.{index}", 7070) for index, uuid in enumerate(UUIDS)
)
SLOTS = 4
OWNED, BEFORE, FOREIGN, FOREIGN_2 = range(SLOTS)  # as worker 0 sees them


def shard_map(owners: tuple[int, ...] = (0, 1, 1, 2)) -> ShardMap:
    return ShardMap(
        MapVersion(b"l" * 16, 3, 9), SLOTS, WORKERS, pack_owners(owners), {BEFORE: Move((0,), 9)}
    )


def ids_in(*slots: int) -> bytes:
    """Return one id for each slot."""
    found: dict[int, bytes] = {}
    number = 0
    while not set(slots) <= set(found):
        block_id = hashlib.sha256(number.to_bytes(8, "little")).digest()
        found.setdefault(int.from_bytes(slots_of(block_id, SLOTS), "little"), block_id)
        number += 1
    return b"".join([found[slot] for slot in slots])


@pytest.mark.parametrize(
    ("slot", "reads", "writes"),
    [(OWNED, True, True), (BEFORE, True, False), (FOREIGN, False, False)],
)
@pytest.mark.parametrize("copies", [1, 100])
def test_table_of_the_module(slot: int, reads: bool, writes: bool, copies: int) -> None:
    ownership = Ownership(UUIDS[0], shard_map())
    ids = ids_in(slot) * copies
    assert (not ownership.refused(ids, False)) is reads
    assert (not ownership.refused(ids, True)) is writes


def test_refusals_name_position_slot_and_owner() -> None:
    ownership = Ownership(UUIDS[0], shard_map())
    refused = ownership.refused(ids_in(OWNED, FOREIGN_2, OWNED, FOREIGN), False)
    assert sorted(refused) == [1, 3]
    hint = refused[1]
    assert hint is not None
    assert (hint.index, hint.slot, hint.host, hint.port) == (1, FOREIGN_2, "10.0.0.2", 7070)
    assert (hint.map_term, hint.map_epoch, hint.worker_uuid) == (3, 9, UUIDS[2])


def test_without_a_map_everything_is_served() -> None:
    ownership = Ownership(UUIDS[0], None)
    assert ownership.refused(ids_in(OWNED, FOREIGN), True) == {}
    assert (ownership.term, ownership.epoch) == (0, 0)


def test_a_worker_the_map_does_not_name_serves_nothing() -> None:
    ownership = Ownership(b"x" * 16, shard_map())
    assert len(ownership.refused(ids_in(OWNED, BEFORE, FOREIGN), False)) == 3


def test_an_empty_map_refuses_without_a_hint() -> None:
    empty = ShardMap(
        MapVersion(b"l" * 16, 3, 9), SLOTS, (), b"\xff\xff" * SLOTS, intentional_empty=True
    )
    assert Ownership(UUIDS[0], empty).refused(ids_in(OWNED), False) == {0: None}


def test_read_that_needs_a_newer_map_is_refused_whole_and_names_nobody() -> None:
    ownership = Ownership(UUIDS[0], shard_map())
    ids = ids_in(OWNED, BEFORE)
    assert ownership.refused(ids, False, 9) == {}
    assert ownership.refused(ids, False, 10) == {0: None, 1: None}
    assert Ownership(UUIDS[0], None).refused(ids, False, 10) == {}


@pytest.mark.parametrize(
    ("epoch", "from_epoch", "since"),
    [(8, 0, None), (9, 0, 77), (12, 0, 77), (9, 10, None), (10, 10, 77)],
    ids=["found-before-the-move", "by-its-map", "later", "before-a-tenant-was-dropped", "since"],
)
def test_copy_counts_from_the_move_and_the_last_dropped_tenant_on(
    epoch: int, from_epoch: int, since: int | None
) -> None:
    moving = ShardMap(
        MapVersion(b"l" * 16, 3, 12), SLOTS, WORKERS, pack_owners((0, 1, 1, 2)),
        {OWNED: Move((1,), 9)},
    )  # fmt: skip
    ownership = Ownership(UUIDS[0], moving, {OWNED: 77}, from_epoch)
    assert ownership.copies_since(ids_in(OWNED), epoch) == since
    assert ownership.copies_since(ids_in(BEFORE), epoch) is None
