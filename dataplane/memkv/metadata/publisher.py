"""The static publisher: from polls of configured nodes to the next map. A pure state machine.

Exactly one publisher works on a state file (its driver holds a lock). The driver stores every
result of `step` durably before it shows the map to anyone; so after a crash the file holds the last
published map or one newer, and taking over raises the term: versions never go back and never name
two maps.

Invariants, checked after each step: the map validates; epoch grew; lineage and slots stayed; no
lost worker is an owner or a previous owner; no more slots move than allowed.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from memkv import limits
from memkv.errors import CallerError, InternalBug
from memkv.metadata.dropping import TenantDrops
from memkv.metadata.goals import Goals
from memkv.metadata.ownership import (
    OpenMove,
    Ownership,
    Progress,
    Tenure,
    reassign,
    retire,
)
from memkv.metadata.roster import (
    Census,
    LossPolicy,
    Sightings,
    WorkerReport,
    next_workers,
    take_census,
)
from memkv.shardmap import (
    MapVersion,
    Move,
    Scores,
    ShardMap,
    Worker,
    WorkerState,
    pack_owners,
    unpack_owners,
)


class Reason(Enum):
    """Why there is a new map, or why there is none."""

    FIRST_MAP = "first map"
    TAKEN_OVER = "another publisher took over"
    WORKERS_CHANGED = "workers changed"
    SLOTS_MOVED = "slots changed owners"
    MOVES_ENDED = "moves ended"
    TENANT_DROPPED = "a tenant was dropped"
    TENANTS_NAMED = "tenants were named"
    WAITING_FOR_WORKERS = "waiting for the first workers"
    MASS_LOSS_SUSPECTED = "MassLossSuspected"
    NO_LIVE_WORKERS = "no worker answers"


@dataclass(frozen=True, slots=True)
class PublisherConfig:
    """What a pool's owner decides."""

    nodes: int
    """How many nodes are configured; the first map waits for all of them, up to a time."""
    slots: int = limits.SLOTS_DEFAULT
    moving_slots_percent_max: int = limits.MAX_MOVING_SLOTS_PERCENT_DEFAULT
    move_timeout_s: int = limits.MOVE_TIMEOUT_S
    first_map_wait_ms: int = 10_000
    """How long nodes may take that start together with the publisher: before a first map is made
    without them, and before a worker of the stored map that was not seen yet counts as silent."""
    loss: LossPolicy = field(default_factory=LossPolicy)
    tenants: frozenset[bytes] | None = None
    """Tags of the tenants that the pool names; one that was named and is not any more is dropped.
    None: nobody is named, and tenants are dropped by `drop_tenant` alone."""

    @property
    def moving_slots_max(self) -> int:
        """Slots that may move at once; at least one, or nothing would ever move."""
        return max(1, self.slots * self.moving_slots_percent_max // 100)


@dataclass(frozen=True, slots=True)
class PublisherState:
    """Everything that must outlive a publisher."""

    shard_map: ShardMap
    trails: Mapping[int, tuple[Tenure, ...]] = field(default_factory=dict)
    epoch_times_s: Mapping[int, int] = field(default_factory=dict)
    """When the maps that started open moves were made, wall clock."""
    tenants: frozenset[bytes] = frozenset()
    """Tags of the tenants that the pool names, or did and are being dropped."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a step."""

    state: PublisherState | None
    """To be stored, then published; None: the map in use stays."""
    reasons: tuple[Reason, ...]
    slots_waiting: int = 0
    """Slots that should move and wait for others to finish."""


class Publisher:
    """Decides on maps. The driver feeds polls and calls `step` now and then."""

    def __init__(
        self,
        config: PublisherConfig,
        state: PublisherState | None,
        now_ms: int,
        *,
        term_floor: int = 0,
        make_lineage: Callable[[], bytes] = lambda: secrets.token_bytes(16),
    ) -> None:
        """Start from the stored state, or with a new lineage where there is none.

        `term_floor`: how often publishers of this pool were elected; the first map that is made
        here has a term above it, and above that of the stored map.
        """
        self.state = state
        self._term_floor = term_floor
        self.census = Census(frozenset(), frozenset(), frozenset(), False)
        self._config = config
        self.reconfigure(config)
        self._make_lineage = make_lineage
        self._started_ms = now_ms
        self._taken_over = state is None
        self._sightings = Sightings()
        self._nodes_answered: set[str] = set()
        self._scores = Scores(config.slots)
        self._goals = Goals(self._scores)
        self._dropped_tenants: dict[bytes, int] = {}
        self._drops = TenantDrops()
        self._vouched: frozenset[str] = frozenset()
        self._dismissed: frozenset[str] = frozenset()
        self._cordoned: frozenset[str] = frozenset()
        self._still = False
        for worker in state.shard_map.workers if state is not None else ():
            grace_ms = config.loss.grace_ms
            seen_ms = now_ms + max(0, config.first_map_wait_ms - grace_ms)
            self._sightings.expect(worker.uuid, seen_ms)

    def reconfigure(self, config: PublisherConfig) -> None:
        """Go by another configuration from now on. CallerError when the slots differ."""
        if self.state is not None and self.state.shard_map.slots != config.slots:
            raise CallerError(
                f"the pool has {self.state.shard_map.slots} slots, the configuration says "
                f"{config.slots}: the number is fixed when a pool is made; set it back"
            )
        self._config = config

    def vouch(self, node_names: Collection[str]) -> None:
        """Note which nodes somebody else sees alive now: however long polls of them fail, their
        workers are not lost until they are missing here."""
        self._vouched = frozenset(node_names)

    def silent_since(self, node_name: str, since_ms: int) -> None:
        """Note that somebody else saw a node silent since then: workers of it that have not
        answered this publisher yet are not granted their grace from its start."""
        for worker in self.state.shard_map.workers if self.state is not None else ():
            if worker.node_name == node_name:
                self._sightings.silent_since(worker.uuid, since_ms)

    def dismiss(self, node_names: Collection[str]) -> None:
        """Note which nodes are not of the pool any more: their workers leave the map for good once
        they are lost and nothing of theirs is left in it."""
        self._dismissed = frozenset(node_names)

    def cordon(self, node_names: Collection[str]) -> None:
        """Note which nodes keep the slots they have and get no new ones."""
        self._cordoned = frozenset(node_names)

    def hold_still(self, still: bool) -> None:
        """If `still`: no worker joins and no slot moves from now on, but for those of lost workers.
        Addresses and states of known workers follow what is seen."""
        self._still = still

    def answered(self, node: str, reports: Collection[WorkerReport], now_ms: int) -> None:
        """Note what a poll of `node` (its configured endpoint) returned."""
        self._sightings.answered(node, reports, now_ms)
        for report in reports:
            if report.ready and report.worker.state == WorkerState.ACTIVE:
                # Not with the next map: hundreds at once would stop the caller for seconds.
                self._scores.add(report.worker.uuid, report.worker.weight)
        if reports and all(report.ready for report in reports):
            self._nodes_answered.add(node)

    def failed(self, node: str) -> None:
        """Note that a poll of `node` failed."""
        self._sightings.failed(node)

    def drop_tenant(self, tenant_tag: bytes) -> None:
        """Make all blocks of a tenant misses, with the next map."""
        self._dropped_tenants[tenant_tag] = self._dropped_tenants.get(tenant_tag, 0) + 1

    @property
    def has_followed(self) -> bool:
        """Whether the map says of every worker what was seen at the last step: each is lost, or
        ready, or somebody vouches for it. So no loss is on its way into the map."""
        workers = self.state.shard_map.workers if self.state is not None else ()
        return bool(workers) and all(
            worker.state is WorkerState.LOST
            or worker.uuid in self.census.ready
            or worker.node_name in self._vouched
            for worker in workers
        )

    def lagging(self, epoch: int) -> list[Worker]:
        """Return workers that may serve and have not taken a map of this epoch over."""
        if self.state is None:
            return []
        version = self.state.shard_map.version
        applied = {
            uuid: sighting.report.applied_epoch
            for uuid, sighting in self._sightings.by_uuid.items()
            if sighting.report is not None and sighting.report.lineage == version.lineage
        }
        return [
            worker
            for worker in self.state.shard_map.workers
            if worker.state is not WorkerState.LOST and applied.get(worker.uuid, 0) < epoch
        ]

    def step(self, now_ms: int, wall_s: int) -> Outcome:
        """Return the next state, if anything changed. The publisher goes on as if it is stored."""
        if self.state is None:
            outcome = self._first_map(now_ms)
        else:
            outcome = self._next_map(self.state, now_ms, wall_s)
        if outcome.state is not None:
            check_invariants(self.state, outcome.state, self._config)
            self.state = outcome.state
        return outcome

    def _first_map(self, now_ms: int) -> Outcome:
        waited_ms = now_ms - self._started_ms
        complete = len(self._nodes_answered) >= self._config.nodes
        if not complete and waited_ms < self._config.first_map_wait_ms:
            return Outcome(None, (Reason.WAITING_FOR_WORKERS,))
        self.census = take_census((), self._sightings.by_uuid, self._config.loss, now_ms)
        workers = next_workers((), self._sightings.by_uuid, self.census)
        if not any(worker.state == WorkerState.ACTIVE for worker in workers):
            return Outcome(None, (Reason.WAITING_FOR_WORKERS,))
        cordoned = self._cordoned_of(workers)
        ownership = Ownership(self._goals.first(workers, cordoned, self._config.slots))
        version = MapVersion(self._make_lineage(), self._term_floor + 1, 1)
        shard_map = _make_map(version, workers, ownership, self._tenant_generations({}))
        state = PublisherState(shard_map, tenants=self._config.tenants or frozenset())
        return Outcome(state, (Reason.FIRST_MAP,))

    def _next_map(self, state: PublisherState, now_ms: int, wall_s: int) -> Outcome:
        old = state.shard_map
        known = {worker.uuid for worker in old.workers}
        vouched = {w.uuid for w in old.workers if w.node_name in self._vouched}
        self.census = take_census(
            old.workers,
            self._sightings.by_uuid,
            self._config.loss,
            now_ms,
            vouched,
            self._expected_to_go(old),
        )
        workers = next_workers(old.workers, self._sightings.by_uuid, self.census)
        if self._still:
            workers = tuple(worker for worker in workers if worker.uuid in known)
        reasons: list[Reason] = []
        if self.census.frozen:
            reasons.append(Reason.MASS_LOSS_SUSPECTED)
        if not any(worker.state == WorkerState.ACTIVE for worker in workers):
            # Whatever the map says is better than nothing: its workers may come back.
            states = {worker.uuid: worker.state for worker in old.workers}
            workers = tuple(replace(w, state=states.get(w.uuid, w.state)) for w in workers)
            reasons.append(Reason.NO_LIVE_WORKERS)
        epoch = old.version.epoch + 1
        before = ownership_of(state)
        after, waiting = before, 0
        if not reasons:
            progress = self._progress(state, workers, wall_s)
            after = retire(before, progress, epoch)
            goals = self._goals.next(
                after.owners, workers, self._cordoned_of(workers), still=self._still
            )
            after, waiting = reassign(after, goals, progress, epoch, self._config.moving_slots_max)
            workers = self._without_dismissed(workers, after)
        return self._outcome(state, workers, before, after, reasons, waiting, wall_s)

    def _without_dismissed(
        self, workers: tuple[Worker, ...], ownership: Ownership
    ) -> tuple[Worker, ...]:
        gone = {
            worker.uuid
            for worker in workers
            if worker.state is WorkerState.LOST and worker.node_name in self._dismissed
        }
        if gone:
            gone -= set(ownership.owners)
            gone -= {uuid for move in ownership.moves.values() for uuid in move.previous}
        return tuple(worker for worker in workers if worker.uuid not in gone)

    def _outcome(
        self,
        state: PublisherState,
        workers: tuple[Worker, ...],
        before: Ownership,
        after: Ownership,
        reasons: list[Reason],
        waiting: int,
        wall_s: int,
    ) -> Outcome:
        old = state.shard_map
        tenants = self._drop_unnamed(state)
        generations = self._tenant_generations(old.tenant_generations)
        changes = [
            (not self._taken_over, Reason.TAKEN_OVER),
            (workers != old.workers, Reason.WORKERS_CHANGED),
            (after.owners != before.owners, Reason.SLOTS_MOVED),
            ((after.moves, after.fenced) != (before.moves, before.fenced), Reason.MOVES_ENDED),
            (generations != dict(old.tenant_generations), Reason.TENANT_DROPPED),
            (not tenants <= state.tenants, Reason.TENANTS_NAMED),
        ]
        changed = [reason for holds, reason in changes if holds]
        if not changed:
            return Outcome(None, tuple(reasons), waiting)
        term = old.version.term
        if not self._taken_over:
            term = max(term, self._term_floor) + 1
        version = MapVersion(old.version.lineage, term, old.version.epoch + 1)
        self._taken_over = True
        shard_map = _make_map(version, workers, after, generations)
        open_epochs = {move.since_epoch for move in after.moves.values()}
        times = {e: state.epoch_times_s.get(e, wall_s) for e in sorted(open_epochs)}
        return Outcome(
            PublisherState(shard_map, after.trails, times, tenants), (*reasons, *changed), waiting
        )

    def _cordoned_of(self, workers: Sequence[Worker]) -> frozenset[bytes]:
        return frozenset(w.uuid for w in workers if w.node_name in self._cordoned)

    def _expected_to_go(self, shard_map: ShardMap) -> frozenset[bytes]:
        """Return workers that gave everything away on purpose: their silence means nothing."""
        needed = set(unpack_owners(shard_map.owners))
        for move in shard_map.moving.values():
            needed.update(move.previous)
        return frozenset(
            worker.uuid
            for index, worker in enumerate(shard_map.workers)
            if index not in needed
            and (worker.state is WorkerState.DRAINING or worker.node_name in self._dismissed)
        )

    def _progress(self, state: PublisherState, workers: Sequence[Worker], wall_s: int) -> Progress:
        lineage = state.shard_map.version.lineage
        reports = {
            uuid: sighting.report
            for uuid, sighting in self._sightings.by_uuid.items()
            if sighting.report is not None and sighting.report.lineage == lineage
        }
        timeout_s = self._config.move_timeout_s
        return Progress(
            lost={w.uuid for w in workers if w.state == WorkerState.LOST},
            draining={w.uuid for w in workers if w.state == WorkerState.DRAINING},
            applied_epoch={uuid: report.applied_epoch for uuid, report in reports.items()},
            finished={uuid: report.finished for uuid, report in reports.items()},
            expired_epochs={
                epoch for epoch, at_s in state.epoch_times_s.items() if wall_s - at_s >= timeout_s
            },
        )

    def _drop_unnamed(self, state: PublisherState) -> frozenset[bytes]:
        wanted = self._config.tenants
        if wanted is None:
            return state.tenants
        epoch = state.shard_map.version.epoch + 1
        tenants, raised = self._drops.step(
            state.tenants, wanted, epoch, lambda since: not self.lagging(since)
        )
        for tag in raised:
            self.drop_tenant(tag)
        return tenants

    def _tenant_generations(self, before: Mapping[bytes, int]) -> dict[bytes, int]:
        after = dict(before)
        for tag, times in self._dropped_tenants.items():
            after[tag] = after.get(tag, 0) + times
        self._dropped_tenants.clear()
        return after


def ownership_of(state: PublisherState) -> Ownership:
    """Return ownership by UUID, as the map and the trails say."""
    shard_map = state.shard_map
    uuids = [worker.uuid for worker in shard_map.workers]
    moves = {
        slot: OpenMove(tuple(uuids[i] for i in move.previous), move.since_epoch)
        for slot, move in shard_map.moving.items()
    }
    owners = tuple(uuids[index] for index in unpack_owners(shard_map.owners))
    return Ownership(owners, moves, dict(shard_map.fenced), dict(state.trails))


def _make_map(
    version: MapVersion,
    workers: tuple[Worker, ...],
    ownership: Ownership,
    tenant_generations: Mapping[bytes, int],
) -> ShardMap:
    index_of = {worker.uuid: index for index, worker in enumerate(workers)}
    moving = {
        slot: Move(tuple(index_of[uuid] for uuid in move.previous), move.since_epoch)
        for slot, move in ownership.moves.items()
    }
    return ShardMap(
        version,
        len(ownership.owners),
        workers,
        pack_owners(index_of[uuid] for uuid in ownership.owners),
        moving,
        ownership.fenced,
        tenant_generations,
    )


def check_invariants(
    before: PublisherState | None, after: PublisherState, config: PublisherConfig
) -> None:
    """Raise InternalBug or MapInvalid when a step broke a promise of this module."""
    new = after.shard_map
    new.validate()
    for slot, move in new.moving.items():
        if len(new.previous_owners(slot)) != len(move.previous):
            raise InternalBug(f"slot {slot} has a lost previous owner")
        if move.since_epoch not in after.epoch_times_s:
            raise InternalBug(f"nobody knows when slot {slot} began to move")
    allowed = config.moving_slots_max
    if before is not None:
        old = before.shard_map
        allowed = max(allowed, len(old.moving))
        if new.slots != old.slots or not new.version.newer_than(old.version):
            raise InternalBug(f"map {new.version} after {old.version}")
        if new.version.epoch != old.version.epoch + 1:
            raise InternalBug(f"epoch {new.version.epoch} after {old.version.epoch}")
    if len(new.moving) > allowed:
        raise InternalBug(f"{len(new.moving)} slots move at once, {allowed} may")
