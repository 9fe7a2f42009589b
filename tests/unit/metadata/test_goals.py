"""Where slots should go: cordoned workers, pools held still, and both at once."""

import pytest

from memkv.metadata.goals import Goals
from memkv.shardmap import Scores, Worker, WorkerState

SLOTS = 240
ACTIVE, DRAINING, LOST = WorkerState.ACTIVE, WorkerState.DRAINING, WorkerState.LOST


def uuid(name: str) -> bytes:
    return name.encode() * 16


def workers(**states: WorkerState) -> tuple[Worker, ...]:
    return tuple(Worker(uuid(n), 1, n, "h", 7070, state) for n, state in sorted(states.items()))


def first(names: str) -> tuple[bytes, ...]:
    return Goals(Scores(SLOTS)).first(workers(**dict.fromkeys(names, ACTIVE)), (), SLOTS)


def test_cordoning_moves_nothing() -> None:
    owners = first("abc")
    now = workers(a=ACTIVE, b=ACTIVE, c=ACTIVE)
    for cordoned in ("a", "ab", "abc"):
        kept = {uuid(name) for name in cordoned}
        assert Goals(Scores(SLOTS)).next(owners, now, kept, still=False) == owners


def test_a_first_map_leaves_cordoned_workers_out_while_others_are_there() -> None:
    now = workers(a=ACTIVE, b=ACTIVE)
    assert set(Goals(Scores(SLOTS)).first(now, {uuid("a")}, SLOTS)) == {uuid("b")}
    assert set(Goals(Scores(SLOTS)).first(now, {uuid("a"), uuid("b")}, SLOTS)) == {
        uuid("a"),
        uuid("b"),
    }


@pytest.mark.parametrize("gone", [LOST, DRAINING], ids=["lost", "draining"])
def test_what_others_leave_goes_past_a_cordoned_worker(gone: WorkerState) -> None:
    owners = first("abc")
    goals = Goals(Scores(SLOTS)).next(
        owners, workers(a=ACTIVE, b=ACTIVE, c=gone), {uuid("a")}, still=False
    )
    for owner, goal in zip(owners, goals, strict=True):
        expected = uuid("b") if owner == uuid("c") else owner
        assert goal == expected


def test_a_cordoned_worker_keeps_its_slots_when_a_new_one_joins() -> None:
    owners = first("abc")
    goals = Goals(Scores(SLOTS)).next(
        owners, workers(a=ACTIVE, b=ACTIVE, c=ACTIVE, d=ACTIVE), {uuid("a")}, still=False
    )
    had = [s for s, owner in enumerate(owners) if owner == uuid("a")]
    assert all(goals[slot] == uuid("a") for slot in had)
    assert uuid("d") in goals


def test_when_nobody_else_is_there_a_cordoned_worker_takes_what_is_lost() -> None:
    owners = first("ab")
    goals = Goals(Scores(SLOTS)).next(owners, workers(a=ACTIVE, b=LOST), {uuid("a")}, still=False)
    assert set(goals) == {uuid("a")}


def test_held_still_only_slots_of_lost_workers_move() -> None:
    owners = first("abc")
    now = workers(a=ACTIVE, b=DRAINING, c=LOST, d=ACTIVE)
    goals = Goals(Scores(SLOTS)).next(owners, now, (), still=True)
    for owner, goal in zip(owners, goals, strict=True):
        if owner == uuid("c"):
            assert goal in (uuid("a"), uuid("d"))
        else:
            assert goal == owner
