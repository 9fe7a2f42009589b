"""The publisher over time: the situations of a small pool, and take-overs."""

from dataclasses import replace

import pytest

from memkv.errors import CallerError
from memkv.limits import DEVICE_LOCK_WAIT_MS, WORKER_RESTART_MS
from memkv.metadata.publisher import (
    Outcome,
    Publisher,
    PublisherConfig,
    PublisherState,
    Reason,
    check_invariants,
)
from memkv.metadata.roster import LossPolicy, WorkerReport
from memkv.shardmap import ShardMap, Worker, WorkerState, unpack_owners

LINEAGE = b"L" * 16
CONFIG = PublisherConfig(
    nodes=3, slots=60, moving_slots_percent_max=100, loss=LossPolicy(grace_ms=3000)
)


class Pool:
    """Three nodes of one worker each, and a clock."""

    def __init__(self, config: PublisherConfig = CONFIG, names: str = "abc") -> None:
        self.config = config
        self.now_ms = 0
        self.names = names
        self.up = set(names)
        self.incarnation = dict.fromkeys(names, 1)
        self.draining: set[str] = set()
        self.applied: dict[str, int] = {}
        self.finished: dict[str, frozenset[tuple[int, int]]] = {}
        self.publisher = Publisher(config, None, 0, make_lineage=lambda: LINEAGE)

    def report(self, name: str) -> WorkerReport:
        state = WorkerState.DRAINING if name in self.draining else WorkerState.ACTIVE
        incarnation = self.incarnation[name]
        worker = Worker(
            name.encode() * 16, incarnation, name, "127.0.0.1", 7000 + incarnation, state
        )
        return WorkerReport(
            worker, True, LINEAGE, self.applied.get(name, 0), self.finished.get(name, frozenset())
        )

    def poll(self) -> Outcome:
        for name in self.names:
            if name in self.up:
                self.publisher.answered(name, [self.report(name)], self.now_ms)
            else:
                self.publisher.failed(name)
        return self.publisher.step(self.now_ms, self.now_ms // 1000)

    def after(self, ms: int) -> Outcome:
        """Let time pass in steps of polls; return the last outcome."""
        outcome = self.poll()
        for _ in range(ms // 500):
            self.now_ms += 500
            step = self.poll()
            outcome = step if step.state is not None or outcome.state is None else outcome
        return outcome

    @property
    def map(self) -> ShardMap:
        assert self.publisher.state is not None
        return self.publisher.state.shard_map

    def slots_of(self, name: str) -> set[int]:
        index = self.map.index_of(name.encode() * 16)
        return {s for s, owner in enumerate(unpack_owners(self.map.owners)) if owner == index}

    def settle(self) -> None:
        """Let every worker hear of everything and finish its moves."""
        self.applied = dict.fromkeys(self.up, self.map.version.epoch)
        for name in self.up:
            self.finished[name] = frozenset(
                (slot, move.since_epoch) for slot, move in self.map.moving.items()
            )
        self.poll()


def test_first_map_waits_for_all_nodes() -> None:
    pool = Pool()
    pool.up = {"a", "b"}
    assert pool.poll().reasons == (Reason.WAITING_FOR_WORKERS,)
    pool.up.add("c")
    outcome = pool.poll()
    assert outcome.reasons == (Reason.FIRST_MAP,)
    assert (pool.map.version.term, pool.map.version.epoch) == (1, 1)
    assert pool.slots_of("a") | pool.slots_of("b") | pool.slots_of("c") == set(range(60))
    assert not pool.map.moving


def test_first_map_does_not_wait_for_ever_nor_for_nobody() -> None:
    pool = Pool()
    pool.up = set()
    pool.after(60_000)
    assert pool.publisher.state is None
    pool.up = {"b"}
    assert pool.poll().reasons == (Reason.FIRST_MAP,)
    assert len(pool.slots_of("b")) == 60


def test_quiet_pool_gets_no_new_map() -> None:
    pool = Pool()
    pool.poll()
    assert pool.after(60_000).state is None
    assert pool.map.version.epoch == 1


def test_dead_worker_loses_its_slots_after_the_grace_time() -> None:
    pool = Pool()
    pool.poll()
    had = pool.slots_of("b")
    pool.up.discard("b")
    pool.after(2500)
    assert pool.map.version.epoch == 1
    pool.after(1000)
    assert pool.map.version.epoch == 2
    assert pool.map.workers[1].state is WorkerState.LOST
    assert not pool.slots_of("b")
    assert not set(pool.map.moving) & had


def test_returned_worker_regains_exactly_its_slots() -> None:
    pool = Pool()
    pool.poll()
    had = {name: pool.slots_of(name) for name in "abc"}
    pool.up.discard("b")
    pool.after(4000)
    pool.settle()
    pool.up.add("b")
    pool.incarnation["b"] = 2
    pool.poll()
    assert {name: pool.slots_of(name) for name in "abc"} == had
    assert set(pool.map.moving) >= had["b"]
    assert pool.map.workers[1].port == 7002
    a_or_c = {0, 2}
    assert all(set(pool.map.previous_owners(slot)) <= a_or_c for slot in had["b"])
    assert not pool.map.fenced
    pool.settle()
    assert not pool.map.moving


def test_restart_within_the_grace_time_moves_nothing() -> None:
    pool = Pool()
    pool.poll()
    owners = pool.map.owners
    pool.up.discard("b")
    pool.after(2000)
    pool.up.add("b")
    pool.incarnation["b"] = 2
    outcome = pool.poll()
    assert outcome.reasons == (Reason.WORKERS_CHANGED,)
    assert pool.map.owners == owners
    assert not pool.map.moving


def test_by_default_a_slow_restart_moves_nothing() -> None:
    """As long as was measured on a busy machine, after waiting for the drive's lock."""
    pool = Pool(PublisherConfig(nodes=3, slots=60))
    pool.poll()
    owners = pool.map.owners
    pool.up.discard("b")
    pool.after(DEVICE_LOCK_WAIT_MS + WORKER_RESTART_MS)
    pool.up.add("b")
    pool.incarnation["b"] = 2
    pool.poll()
    assert pool.map.owners == owners
    assert not pool.map.moving


def test_moving_slots_stay_under_their_share_until_others_finish() -> None:
    pool = Pool(replace(CONFIG, moving_slots_percent_max=10))
    pool.poll()
    had = pool.slots_of("b")
    pool.up.discard("b")
    pool.after(4000)
    pool.settle()
    pool.up.add("b")
    rounds = 0
    while pool.slots_of("b") < had:
        outcome = pool.poll()
        assert len(pool.map.moving) <= 6
        rounds += 1
        assert rounds < 30, outcome
        pool.settle()
    assert rounds >= len(had) // 6


def test_slow_move_ends_after_its_timeout() -> None:
    pool = Pool(replace(CONFIG, move_timeout_s=100))
    pool.poll()
    pool.up.discard("b")
    pool.after(4000)
    pool.up.add("b")
    pool.poll()
    pool.applied = dict.fromkeys("abc", pool.map.version.epoch)
    assert pool.map.moving
    pool.after(99_000)
    assert pool.map.moving
    pool.after(2_000)
    assert not pool.map.moving
    assert not pool.map.fenced


def test_many_gone_at_once_freeze_the_map_until_they_are_back() -> None:
    pool = Pool()
    pool.poll()
    owners = pool.map.owners
    pool.up = {"a"}
    pool.after(60_000)
    assert pool.map.version.epoch == 1
    assert Reason.MASS_LOSS_SUSPECTED in pool.poll().reasons
    assert pool.publisher.census.frozen
    pool.up = {"a", "b", "c"}
    pool.poll()
    assert pool.map.owners == owners
    assert not pool.publisher.census.frozen


def test_person_can_say_that_the_missing_are_gone() -> None:
    pool = Pool(replace(CONFIG, loss=LossPolicy(grace_ms=3000, accept_mass_loss=True)))
    pool.poll()
    pool.up = {"a"}
    pool.after(4000)
    assert len(pool.slots_of("a")) == 60


def test_last_worker_keeps_its_slots_when_it_dies() -> None:
    pool = Pool(replace(CONFIG, nodes=1), names="a")
    pool.poll()
    pool.up = set()
    pool.after(10_000)
    assert pool.map.version.epoch == 1
    assert pool.map.workers[0].state is WorkerState.ACTIVE
    assert Reason.NO_LIVE_WORKERS in pool.poll().reasons


def test_draining_worker_gives_its_slots_away_and_stays_previous_owner() -> None:
    pool = Pool()
    pool.poll()
    had = pool.slots_of("c")
    pool.draining = {"c"}
    pool.poll()
    assert not pool.slots_of("c")
    assert pool.map.workers[2].state is WorkerState.DRAINING
    assert all(pool.map.previous_owners(slot) == (2,) for slot in had)
    pool.draining = set()
    pool.settle()
    assert pool.slots_of("c") == had


def test_joining_worker_takes_its_share() -> None:
    pool = Pool(names="abcd")
    pool.up = {"a", "b", "c"}
    pool.poll()
    pool.up.add("d")
    pool.poll()
    assert 8 <= len(pool.slots_of("d")) <= 17
    assert set(pool.map.moving) >= pool.slots_of("d")


def test_dropped_tenant_raises_its_generation() -> None:
    pool = Pool()
    pool.poll()
    pool.publisher.drop_tenant(b"t" * 16)
    assert pool.poll().reasons == (Reason.TENANT_DROPPED,)
    pool.publisher.drop_tenant(b"t" * 16)
    pool.poll()
    assert dict(pool.map.tenant_generations) == {b"t" * 16: 2}


def test_workers_that_lag_behind_a_map_are_named_and_lost_ones_are_not_waited_for() -> None:
    pool = Pool()
    pool.poll()
    assert [worker.node_name for worker in pool.publisher.lagging(1)] == ["a", "b", "c"]
    pool.applied = {"a": 1, "b": 1, "c": 0}
    pool.poll()
    assert [worker.node_name for worker in pool.publisher.lagging(1)] == ["c"]
    pool.up.discard("c")
    pool.after(2500)
    assert [worker.node_name for worker in pool.publisher.lagging(1)] == ["c"]
    pool.after(1000)
    assert pool.publisher.lagging(1) == []


def test_taking_over_raises_the_term_and_keeps_everything_else() -> None:
    pool = Pool()
    pool.poll()
    pool.up.discard("b")
    pool.after(4000)
    before = pool.map
    pool.publisher = Publisher(pool.config, pool.publisher.state, pool.now_ms)
    outcome = pool.poll()
    assert Reason.TAKEN_OVER in outcome.reasons
    assert pool.map.version.newer_than(before.version)
    assert (pool.map.version.term, pool.map.version.epoch) == (2, before.version.epoch + 1)
    assert pool.map.owners == before.owners


def test_new_publisher_gives_everyone_time_to_start_with_it() -> None:
    """Else a slow node of a pool that starts as a whole would lose its slots, and its cache."""
    pool = Pool()
    pool.poll()
    owners = pool.map.owners
    pool.up.discard("b")
    pool.publisher = Publisher(pool.config, pool.publisher.state, pool.now_ms)
    pool.after(9500)
    assert pool.map.owners == owners
    pool.after(1000)
    assert not pool.slots_of("b")


def test_worker_that_a_new_publisher_saw_has_the_grace_time_only() -> None:
    pool = Pool()
    pool.poll()
    pool.publisher = Publisher(pool.config, pool.publisher.state, pool.now_ms)
    pool.poll()
    pool.up.discard("b")
    pool.after(3500)
    assert not pool.slots_of("b")


def test_number_of_slots_cannot_change() -> None:
    pool = Pool()
    pool.poll()
    with pytest.raises(CallerError, match="set it back"):
        Publisher(replace(CONFIG, slots=61), pool.publisher.state, 0)


def test_report_about_another_lineage_says_nothing() -> None:
    pool = Pool()
    pool.poll()
    pool.up.discard("b")
    pool.after(4000)
    pool.up.add("b")
    pool.poll()
    moving = dict(pool.map.moving)
    finished = frozenset((slot, move.since_epoch) for slot, move in moving.items())
    foreign = replace(pool.report("b"), lineage=b"M" * 16, applied_epoch=99, finished=finished)
    pool.publisher.answered("b", [foreign], pool.now_ms)
    pool.publisher.step(pool.now_ms, 0)
    assert dict(pool.map.moving) == moving


def test_invariants_are_checked() -> None:
    pool = Pool()
    pool.poll()
    state = pool.publisher.state
    assert state is not None
    with pytest.raises(Exception, match="after"):
        check_invariants(state, PublisherState(state.shard_map), pool.config)


def test_take_over_has_a_term_above_all_elections() -> None:
    pool = Pool()
    pool.poll()
    again = Publisher(CONFIG, pool.publisher.state, pool.now_ms, term_floor=41)
    again.answered("a", [pool.report("a")], pool.now_ms)
    outcome = again.step(pool.now_ms, 0)
    assert outcome.state is not None
    assert outcome.state.shard_map.version.term == 42
    assert outcome.state.shard_map.version.epoch == pool.map.version.epoch + 1
    lower = Publisher(CONFIG, outcome.state, pool.now_ms, term_floor=3)
    assert (after := lower.step(pool.now_ms, 0).state) is not None
    assert after.shard_map.version.term == 43


def test_first_map_has_a_term_above_all_elections() -> None:
    pool = Pool()
    pool.publisher = Publisher(CONFIG, None, 0, term_floor=7, make_lineage=lambda: LINEAGE)
    pool.poll()
    assert pool.map.version.term == 8


def test_silent_worker_that_somebody_else_sees_alive_is_not_lost() -> None:
    pool = Pool()
    pool.poll()
    pool.publisher.vouch(["b"])
    pool.up.discard("b")
    assert pool.after(60_000).state is None
    assert pool.publisher.census.frozen is False
    pool.publisher.vouch([])
    pool.poll()
    assert pool.map.workers[1].state is WorkerState.LOST


def test_publisher_goes_by_a_new_configuration() -> None:
    pool = Pool()
    pool.poll()
    pool.publisher.reconfigure(replace(CONFIG, loss=LossPolicy(grace_ms=20_000)))
    pool.up.discard("b")
    assert pool.after(10_000).state is None
    with pytest.raises(CallerError, match="60 slots"):
        pool.publisher.reconfigure(replace(CONFIG, slots=61))


def test_workers_of_dismissed_nodes_leave_the_map_once_they_are_lost() -> None:
    pool = Pool()
    pool.poll()
    pool.publisher.dismiss(["b"])
    assert pool.after(1000).state is None  # it answers: nothing happens
    pool.up.discard("b")
    pool.after(4000)
    assert [worker.node_name for worker in pool.map.workers] == ["a", "c"]
    assert pool.slots_of("a") | pool.slots_of("c") == set(range(60))
    pool.settle()
    pool.publisher.dismiss([])
    pool.up.add("b")
    pool.poll()
    assert [worker.node_name for worker in pool.map.workers] == ["a", "b", "c"]
    assert pool.slots_of("b")
    assert pool.map.fenced or pool.map.moving  # nothing of before is served unheard


def test_a_cordoned_node_keeps_its_slots_and_gets_none_of_a_lost_one() -> None:
    pool = Pool()
    pool.poll()
    had = pool.slots_of("a")
    pool.publisher.cordon(["a"])
    assert pool.after(5000).state is None
    pool.up.discard("b")
    pool.after(4000)
    assert pool.slots_of("a") == had
    assert pool.slots_of("c") == set(range(60)) - had
    pool.settle()
    pool.publisher.cordon([])
    pool.poll()
    assert pool.slots_of("a") > had


def test_a_pool_held_still_changes_only_for_want_of_a_lost_node() -> None:
    pool = Pool(names="abcd")
    pool.up = {"a", "b", "c"}
    pool.poll()
    had = {name: pool.slots_of(name) for name in "abc"}
    pool.publisher.hold_still(True)
    pool.up.add("d")
    pool.draining.add("a")
    pool.after(5000)
    assert {name: pool.slots_of(name) for name in "abc"} == had
    assert len(pool.map.workers) == 3
    pool.incarnation["b"] = 2  # at another port
    pool.poll()
    assert pool.map.workers[1].port == 7002
    pool.up.discard("c")
    pool.after(4000)
    assert not pool.slots_of("c")
    assert pool.slots_of("a") | pool.slots_of("b") == set(range(60))
    pool.publisher.hold_still(False)
    for _ in range(3):
        pool.poll()
        pool.settle()
    assert pool.slots_of("d")
    assert not pool.slots_of("a")


def test_drained_nodes_that_are_switched_off_together_are_no_mass_loss() -> None:
    pool = Pool(names="abcde")
    pool.poll()
    pool.draining = {"a", "b"}
    for _ in range(3):
        pool.poll()
        pool.settle()
    assert not pool.slots_of("a") | pool.slots_of("b")
    assert not pool.map.moving
    pool.up -= {"a", "b"}
    pool.after(5000)
    assert not pool.publisher.census.frozen
    states = {worker.node_name: worker.state for worker in pool.map.workers}
    assert states["a"] is states["b"] is WorkerState.LOST
    pool.up -= {"c", "d"}
    pool.after(5000)
    assert pool.publisher.census.frozen
