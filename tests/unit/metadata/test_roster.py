"""Who is lost: grace, mass loss, returning workers, two nodes with one worker."""

from dataclasses import replace
from itertools import product

import pytest

from memkv.metadata.roster import (
    LossPolicy,
    Sighting,
    Sightings,
    WorkerReport,
    is_mass_loss,
    next_state,
    next_workers,
    take_census,
)
from memkv.shardmap import Worker, WorkerState

POLICY = LossPolicy(grace_ms=3000)
ACTIVE, DRAINING, LOST = WorkerState.ACTIVE, WorkerState.DRAINING, WorkerState.LOST


def worker(number: int, *, incarnation: int = 1, port: int = 7070) -> Worker:
    return Worker(bytes([number]) * 16, incarnation, f"n{number}", "127.0.0.1", port)


def report(number: int, *, ready: bool = True, incarnation: int = 1) -> WorkerReport:
    return WorkerReport(worker(number, incarnation=incarnation), ready)


def seen(silences_ms: dict[int, int], now_ms: int) -> dict[bytes, Sighting]:
    return {
        worker(n).uuid: Sighting(report(n), now_ms - silence, silence == 0)
        for n, silence in silences_ms.items()
    }


@pytest.mark.parametrize(
    ("before", "ready", "dead", "frozen", "drain"),
    list(product((ACTIVE, DRAINING, LOST), *[(False, True)] * 4)),
)
def test_state_table(
    before: WorkerState, ready: bool, dead: bool, frozen: bool, drain: bool
) -> None:
    after = next_state(before, ready=ready, dead=dead, frozen=frozen, drain=drain)
    if frozen or (not ready and not dead):
        assert after is before
    elif ready:
        assert after is (DRAINING if drain else ACTIVE)
    else:
        assert after is LOST


@pytest.mark.parametrize(
    ("vanished", "nodes", "expected"),
    [(0, 3, False), (1, 1, False), (1, 2, False), (1, 3, False), (2, 3, True), (2, 6, True),
     (2, 7, False), (3, 10, False), (4, 10, True), (30, 100, False), (31, 100, True)],
)  # fmt: skip
def test_mass_loss_is_over_30_percent_and_never_one(
    vanished: int, nodes: int, expected: bool
) -> None:
    assert is_mass_loss(vanished, nodes, 30) is expected


@pytest.mark.parametrize(
    ("silences_ms", "states", "dead", "frozen"),
    [
        ({1: 0, 2: 0, 3: 2999}, {}, set(), False),
        ({1: 0, 2: 0, 3: 3000}, {}, {3}, False),
        ({1: 0, 2: 3000, 3: 3000}, {}, {2, 3}, True),
        ({1: 0, 2: 3000, 3: 1500}, {}, {2}, True),
        ({1: 0, 2: 3000, 3: 1400}, {}, {2}, False),
        ({1: 0, 2: 3000, 3: 8999}, {3: LOST}, {2, 3}, True),
        ({1: 0, 2: 3000, 3: 9000}, {3: LOST}, {2, 3}, False),
        ({1: 0, 2: 0, 3: 4000}, {3: LOST}, {3}, False),
    ],
    ids=[
        "in-grace", "one-dead", "two-dead", "one-dead-one-dying", "one-dead-one-hiccup",
        "second-of-one-event", "long-after-the-first", "lost-already",
    ],
)  # fmt: skip
def test_census(
    silences_ms: dict[int, int], states: dict[int, WorkerState], dead: set[int], frozen: bool
) -> None:
    now_ms = 1_000_000
    known = [replace(worker(n), state=states.get(n, ACTIVE)) for n in silences_ms]
    census = take_census(known, seen(silences_ms, now_ms), POLICY, now_ms)
    assert census.dead == {worker(n).uuid for n in dead}
    assert census.frozen is frozen
    accepting = LossPolicy(grace_ms=3000, accept_mass_loss=True)
    assert not take_census(known, seen(silences_ms, now_ms), accepting, now_ms).frozen


@pytest.mark.parametrize(
    ("silences_ms", "frozen"),
    [
        ({1: 0, 2: 0, 3: 3000}, False),
        ({1: 0, 2: 3000, 3: 3000}, True),
        ({1: 0, 2: 0, 3: 0, 4: 3000}, False),
        ({1: 0, 2: 3000, 3: 1500}, True),
    ],
    ids=["one-of-three", "two-of-three", "one-of-four", "second-in-the-same-event"],
)
def test_a_dead_node_is_one_loss_however_many_workers_it_has(
    silences_ms: dict[int, int], frozen: bool
) -> None:
    """Node n has the workers 10n and 10n + 1."""
    now_ms = 1_000_000
    known = [
        replace(worker(10 * n + position), node_name=f"n{n}")
        for n in silences_ms
        for position in (0, 1)
    ]
    silences = {10 * n + position: silences_ms[n] for n in silences_ms for position in (0, 1)}
    census = take_census(known, seen(silences, now_ms), POLICY, now_ms)
    assert census.frozen is frozen
    assert len(census.dead) == 2 * sum(silence >= 3000 for silence in silences_ms.values())


@pytest.mark.parametrize(("silence_ms", "frozen"), [(2999, False), (3000, True)])
def test_a_proof_of_life_older_than_the_grace_is_none(silence_ms: int, frozen: bool) -> None:
    """The publisher stood still; of two nodes that went meanwhile it has polled one so far."""
    now_ms = 1_000_000
    known = [worker(n) for n in range(1, 5)]
    sightings = seen({1: 3000, 2: 0, 3: 0, 4: 0}, now_ms)
    polled_before = Sighting(report(2), now_ms - silence_ms, ready=True)
    census = take_census(known, {**sightings, worker(2).uuid: polled_before}, POLICY, now_ms)
    assert census.dead == {worker(1).uuid}
    assert census.frozen is frozen


def test_workers_lost_on_nodes_that_answer_freeze_nothing() -> None:
    """One drive of each of two nodes fails: the network is there, as the other workers show."""
    now_ms = 1_000_000
    known = [replace(worker(n), node_name=f"n{n // 10}") for n in (10, 11, 20, 21)]
    census = take_census(known, seen({10: 0, 11: 3000, 20: 0, 21: 3000}, now_ms), POLICY, now_ms)
    assert census.dead == {worker(11).uuid, worker(21).uuid}
    assert not census.frozen


def test_returned_worker_brings_its_new_address() -> None:
    sightings = Sightings()
    sightings.answered("a", [report(1, ready=True, incarnation=2)], 0)
    before = (Worker(worker(1).uuid, 1, "n1", "127.0.0.1", 9, LOST),)
    census = take_census(before, sightings.by_uuid, POLICY, 0)
    after = next_workers(before, sightings.by_uuid, census)
    assert after == (worker(1, incarnation=2),)


def test_frozen_map_takes_new_addresses_and_nothing_else() -> None:
    now_ms = 10_000
    sightings = Sightings(seen({1: 0, 2: 5000, 3: 5000, 4: 0}, now_ms))
    before = tuple(worker(n, port=9) for n in (1, 2, 3))
    census = take_census(before, sightings.by_uuid, POLICY, now_ms)
    assert census.frozen
    after = next_workers(before, sightings.by_uuid, census)
    assert after == (worker(1), worker(2, port=9), worker(3, port=9))


def test_answer_without_a_worker_makes_it_not_ready_but_not_dead_yet() -> None:
    sightings = Sightings()
    sightings.answered("a", [report(1)], 1000)
    sightings.answered("a", [], 2000)
    assert sightings.by_uuid[worker(1).uuid] == Sighting(report(1), 1000, False)
    sightings.answered("a", [report(1, ready=False)], 3000)
    assert sightings.by_uuid[worker(1).uuid].alive_ms == 1000
    sightings.answered("a", [report(1)], 4000)
    sightings.failed("a")
    assert sightings.by_uuid[worker(1).uuid] == Sighting(report(1), 4000, False)


def test_of_two_nodes_with_one_worker_the_newer_incarnation_counts() -> None:
    """A copied file, or a drive that moved while its old node still answers."""
    sightings = Sightings()
    sightings.answered("a", [report(1, incarnation=5)], 0)
    sightings.answered("b", [report(1, incarnation=5)], 0)
    sightings.answered("b", [report(1, incarnation=4)], 0)
    assert sightings.by_node["b"] == frozenset()
    sightings.answered("b", [report(1, incarnation=6)], 0)
    sighting = sightings.by_uuid[worker(1).uuid]
    assert sighting.report is not None
    assert sighting.report.worker.incarnation == 6


def test_expected_worker_has_the_whole_grace_from_the_start() -> None:
    sightings = Sightings()
    sightings.expect(worker(1).uuid, 5000)
    known = [worker(1)]
    assert not take_census(known, sightings.by_uuid, POLICY, 7999).dead
    assert take_census(known, sightings.by_uuid, POLICY, 8000).dead
