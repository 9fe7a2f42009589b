"""Single steps of slots: the table, trails, fences, the cap on moving slots."""

from collections.abc import Collection, Mapping
from itertools import product

import pytest

from memkv import limits
from memkv.metadata.ownership import (
    CASES,
    OpenMove,
    Ownership,
    Progress,
    Tenure,
    decide_slot,
    lengthen,
    owners_since,
    reassign,
    retire,
)

A, B, C, D, E = (bytes([n]) * 16 for n in range(1, 6))


def progress(
    *,
    lost: Collection[bytes] = (),
    draining: Collection[bytes] = (),
    applied: Mapping[bytes, int] | None = None,
    finished: Mapping[bytes, Collection[tuple[int, int]]] | None = None,
    expired: Collection[int] = (),
) -> Progress:
    return Progress(lost, draining, applied or {}, finished or {}, expired)


def settled(*workers: bytes) -> tuple[Tenure, ...]:
    return tuple(Tenure(worker, True) for worker in workers)


def test_every_input_matches_exactly_one_case() -> None:
    for owner_lost, differs, may_move in product((False, True), repeat=3):
        matching = [
            case
            for case in CASES
            if case.owner_lost == owner_lost
            and case.target_differs in (None, differs)
            and case.may_move in (None, may_move)
        ]
        assert len(matching) == 1
        assert decide_slot(owner_lost, differs, may_move) is matching[0].action


def test_slots_of_a_lost_worker_go_at_once_and_do_not_count_as_moving() -> None:
    before = Ownership((A, A, B))
    after, waiting = reassign(before, (B, C, B), progress(lost={A}), 7, moving_slots_max=1)
    assert after.owners == (B, C, B)
    assert after.moves == {}
    assert after.fenced == {}
    assert after.trails == {0: settled(A), 1: settled(A)}
    assert waiting == 0


def test_returning_worker_gets_its_slot_and_the_interim_owner_is_asked_too() -> None:
    before = Ownership((B,), trails={0: settled(A)})
    after, _ = reassign(before, (A,), progress(), 9, moving_slots_max=1)
    assert after.owners == (A,)
    assert after.moves == {0: OpenMove((B,), 9)}
    assert after.fenced == {}
    assert after.trails == {0: settled(B, A)}


def test_returning_worker_is_fenced_when_an_interim_owner_is_gone() -> None:
    """A lost, then B, who stored deletes that A never heard of, lost too."""
    before = Ownership((C,), trails={0: settled(B, A)})
    after, _ = reassign(before, (A,), progress(lost={B}), 9, moving_slots_max=1)
    assert after.moves == {0: OpenMove((C,), 9)}
    assert after.fenced == {0: 9}


def test_worker_that_never_owned_the_slot_needs_no_fence() -> None:
    after, _ = reassign(Ownership((B,), trails={0: settled(C)}), (A,), progress(), 9, 1)
    assert after.fenced == {}


def test_owner_that_has_not_heard_yet_does_not_hand_over() -> None:
    before = Ownership((A,), moves={0: OpenMove((B,), 5)}, trails={0: settled(B, A)})
    waits, waiting = reassign(before, (C,), progress(applied={A: 4}), 9, moving_slots_max=9)
    assert (waits, waiting) == (before, 1)
    goes, _ = reassign(before, (C,), progress(applied={A: 5}), 9, moving_slots_max=9)
    assert goes.owners == (C,)
    assert goes.moves == {0: OpenMove((A, B), 9)}


def test_unsettled_tenure_does_not_count_as_having_heard() -> None:
    """A regains from B, is lost before it heard, returns: it must still hear from B."""
    regained = Ownership((A,), moves={0: OpenMove((B,), 5)}, trails={0: settled(B, A)})
    lost, _ = reassign(regained, (C,), progress(lost={A}, applied={A: 4}), 6, 9)
    assert lost.moves == {0: OpenMove((B,), 6)}
    assert lost.trails[0] == (Tenure(A, False), *settled(B, A))
    without_b = retire(lost, progress(lost={B}, applied={C: 6}), 7)
    back, _ = reassign(without_b, (A,), progress(lost={B}, applied={C: 6}), 8, 9)
    assert back.fenced == {0: 8}
    with_b, _ = reassign(lost, (A,), progress(applied={C: 6}), 8, 9)
    assert with_b.fenced == {}
    assert with_b.moves == {0: OpenMove((C, B), 8)}


def test_moving_slots_stay_under_the_cap_and_homecomings_go_first() -> None:
    before = Ownership((B, B, B, B), trails={2: settled(A)})
    after, waiting = reassign(before, (A, A, A, B), progress(), 9, moving_slots_max=2)
    assert after.owners == (A, B, A, B)
    assert sorted(after.moves) == [0, 2]
    assert waiting == 1


def test_draining_worker_goes_before_mere_balance() -> None:
    before = Ownership((B, C))
    after, _ = reassign(before, (A, A), progress(draining={C}), 9, moving_slots_max=1)
    assert after.owners == (B, A)


def test_previous_owners_never_exceed_three() -> None:
    full = Ownership((A,), moves={0: OpenMove((B, C, D), 5)})
    settled_a = progress(applied={A: 5})
    assert reassign(full, (E,), settled_a, 9, 9) == (full, 1)
    lost, _ = reassign(full, (E,), progress(lost={A}), 9, 9)
    assert lost.moves == {0: OpenMove((B, C, D), 9)}


@pytest.mark.parametrize(
    ("report", "moves", "fenced"),
    [
        (progress(finished={A: {(0, 5)}}), {}, {}),
        (progress(finished={A: {(0, 4)}}), {0: OpenMove((B, C), 5)}, {}),
        (progress(finished={B: {(0, 5)}}), {0: OpenMove((B, C), 5)}, {}),
        (progress(expired={5}, applied={A: 5}), {}, {}),
        (progress(expired={5}, applied={A: 4}), {}, {0: 8}),
        (progress(lost={B}, applied={A: 5}), {0: OpenMove((C,), 5)}, {}),
        (progress(lost={B}, applied={A: 4}), {0: OpenMove((C,), 5)}, {0: 8}),
        (progress(lost={B, C}, applied={A: 5}), {}, {}),
        (progress(lost={A}), {0: OpenMove((B, C), 5)}, {}),
    ],
    ids=[
        "finished",
        "another-move-finished",
        "not-the-owners-word",
        "expired",
        "expired-unheard",
        "one-lost",
        "one-lost-unheard",
        "all-lost",
        "owner-lost",
    ],
)
def test_previous_owners_retire(
    report: Progress, moves: dict[int, OpenMove], fenced: dict[int, int]
) -> None:
    before = Ownership((A,), moves={0: OpenMove((B, C), 5)})
    after = retire(before, report, 8)
    assert after.moves == moves
    assert after.fenced == fenced


def test_fence_falls_when_the_owner_dropped_what_it_had() -> None:
    before = Ownership((A,), fenced={0: 5})
    assert retire(before, progress(applied={A: 4}), 8).fenced == {0: 5}
    assert retire(before, progress(applied={A: 5}), 8).fenced == {}


def test_trail_keeps_of_each_worker_what_matters() -> None:
    trail = lengthen(settled(B, A), Tenure(A, False))
    assert trail == (Tenure(A, False), *settled(B, A))
    assert lengthen(trail, Tenure(C, True)) == (Tenure(C, True), *trail)
    assert lengthen(trail, Tenure(A, True)) == settled(A, B)
    assert lengthen(trail, Tenure(A, False)) == trail


def test_trail_tells_who_owned_since() -> None:
    trail = (Tenure(A, False), *settled(B, A, C))
    assert owners_since(A, trail) == frozenset({B})
    assert owners_since(C, trail) == frozenset({A, B})
    assert owners_since(D, trail) == frozenset()
    assert owners_since(D, (Tenure(D, False),)) is None
    full = settled(*(bytes([n]) * 16 for n in range(10, 10 + limits.OWNER_TRAIL_MAX)))
    assert owners_since(D, full) is None
    assert len(lengthen(full, Tenure(D, True))) == limits.OWNER_TRAIL_MAX
