"""Which workers are there: from polls and their times to ACTIVE, DRAINING or LOST. Pure.

A worker is dead when nothing proved it alive for the grace time; a crashed process is back within
it, and no slot should move for that. Many nodes gone at once are a broken network more often than
broken nodes, and moving their slots would turn a short outage into a cold cache: then
the map is frozen until they are back, or a person says that they are gone for good. Nodes are
counted, not workers: a network loses all workers of a node together, and so does one dead node.

Situation of one worker of the map, rows tried in order:

| case     | ready | dead | frozen | drain | state before | state after |
| -------- | ----- | ---- | ------ | ----- | ------------ | ----------- |
| frozen   | *     | *    | yes    | *     | *            | unchanged   |
| drain    | yes   | *    | no     | yes   | *            | DRAINING    |
| serve    | yes   | *    | no     | no    | *            | ACTIVE      |
| die      | no    | yes  | no     | *     | *            | LOST        |
| grace    | no    | no   | no     | *     | *            | unchanged   |
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from memkv import limits
from memkv.shardmap import Worker, WorkerState


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a poll says about one worker."""

    worker: Worker
    """Identity and address; its state says ACTIVE, or DRAINING when its node is told to drain
    or its drive is faulted."""
    ready: bool
    lineage: bytes = b""
    """Lineage of the map it applied; reports about another lineage say nothing."""
    applied_epoch: int = 0
    finished: frozenset[tuple[int, int]] = frozenset()
    """(slot, since_epoch) of moves it ended."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last proof of life of a worker, and when it was."""

    report: WorkerReport | None
    """None: known from the state file only."""
    alive_ms: int
    ready: bool
    """Whether the very last poll found it ready."""


@dataclass(frozen=True, slots=True)
class LossPolicy:
    """When a worker counts as lost."""

    grace_ms: int = limits.WORKER_LOSS_GRACE_MS
    mass_percent: int = limits.MASS_LOSS_PERCENT
    accept_mass_loss: bool = False
    """A person said that the missing workers are gone."""

    @property
    def window_ms(self) -> int:
        """Losses within this are one event: polls of one outage fail at different moments."""
        return 2 * self.grace_ms


@dataclass(frozen=True, slots=True)
class Census:
    """What the sightings mean at one moment."""

    ready: frozenset[bytes]
    dead: frozenset[bytes]
    vanished: frozenset[bytes]
    """Dead, lost lately, or silent for so long that they will be dead soon."""
    frozen: bool


def take_census(
    workers: Collection[Worker],
    sightings: Mapping[bytes, Sighting],
    policy: LossPolicy,
    now_ms: int,
    vouched: Collection[bytes] = (),
    expected: Collection[bytes] = (),
) -> Census:
    """Count the living. `workers` are those of the map; who is `vouched` for does not die.

    Those that were `expected` to go, because they have given everything away, say nothing about
    the network: they die like others and count neither as lost nor as alive.
    """
    states = {worker.uuid: worker.state for worker in workers}
    silence = {uuid: now_ms - sighting.alive_ms for uuid, sighting in sightings.items()}
    ready = frozenset(uuid for uuid, sighting in sightings.items() if sighting.ready)
    dead = frozenset(
        uuid
        for uuid in states
        if uuid not in ready and uuid not in vouched and silence[uuid] >= policy.grace_ms
    )
    newly_dead = frozenset(
        uuid for uuid in dead if states[uuid] != WorkerState.LOST and uuid not in expected
    )
    # Silent from half the grace on: of one event, the first may be dead when others are not yet.
    # Nor does a worker prove the network that was ready before this process itself stood still.
    vanished = frozenset(
        uuid
        for uuid, state in states.items()
        if uuid not in expected
        and silence[uuid] >= (policy.grace_ms if uuid in ready else policy.grace_ms // 2)
        and (state != WorkerState.LOST or silence[uuid] < policy.grace_ms + policy.window_ms)
    )
    living = {
        worker.node_name
        for worker in workers
        if worker.state != WorkerState.LOST
        and worker.uuid not in vanished
        and worker.uuid not in expected
    }
    gone = {worker.node_name for worker in workers if worker.uuid in vanished} - living
    mass = is_mass_loss(len(gone), len(gone) + len(living), policy.mass_percent)
    return Census(ready, dead, vanished, bool(newly_dead) and mass and not policy.accept_mass_loss)


def is_mass_loss(vanished: int, nodes: int, percent: int) -> bool:
    """Return whether so many nodes are gone that the network is the likelier culprit.

    One node alone never is, or a pool of three could not lose any.
    """
    return vanished >= 2 and vanished * 100 > nodes * percent


def next_state(
    before: WorkerState, *, ready: bool, dead: bool, frozen: bool, drain: bool
) -> WorkerState:
    """Return a worker's state by the table above."""
    if frozen:
        return before
    if ready:
        return WorkerState.DRAINING if drain else WorkerState.ACTIVE
    return WorkerState.LOST if dead else before


def next_workers(
    before: Collection[Worker], sightings: Mapping[bytes, Sighting], census: Census
) -> tuple[Worker, ...]:
    """Return the map's workers by UUID: known ones with new state and address, and new ones."""
    after: dict[bytes, Worker] = {}
    for worker in before:
        sighting = sightings.get(worker.uuid)
        report = sighting.report if sighting is not None else None
        ready = worker.uuid in census.ready and report is not None
        state = next_state(
            worker.state,
            ready=ready,
            dead=worker.uuid in census.dead,
            frozen=census.frozen,
            drain=report is not None and report.worker.state == WorkerState.DRAINING,
        )
        current = report.worker if ready and report is not None else worker
        after[worker.uuid] = replace(current, state=state)
    for uuid, sighting in sightings.items():
        if uuid not in after and sighting.ready and sighting.report and not census.frozen:
            after[uuid] = sighting.report.worker
    ordered = [after[uuid] for uuid in sorted(after)]
    return tuple(ordered[: limits.WORKERS_MAX])


@dataclass(slots=True)
class Sightings:
    """Remembers who was seen when. Fed by polls."""

    by_uuid: dict[bytes, Sighting] = field(default_factory=dict)
    by_node: dict[str, frozenset[bytes]] = field(default_factory=dict)

    def expect(self, uuid: bytes, now_ms: int) -> None:
        """Grant a worker known from an earlier map the full grace from now."""
        self.by_uuid.setdefault(uuid, Sighting(None, now_ms, False))

    def silent_since(self, uuid: bytes, since_ms: int) -> None:
        """Note how long a worker that was only expected so far has been silent."""
        last = self.by_uuid.get(uuid)
        if last is not None and last.report is None:
            self.by_uuid[uuid] = replace(last, alive_ms=min(last.alive_ms, since_ms))

    def answered(self, node: str, reports: Collection[WorkerReport], now_ms: int) -> None:
        """Note a node's answer. Of two nodes claiming a worker, the newer incarnation counts."""
        named: set[bytes] = set()
        for report in reports:
            uuid = report.worker.uuid
            if self._claimed_elsewhere(node, report):
                continue
            named.add(uuid)
            last = self.by_uuid.get(uuid)
            alive_ms = now_ms if report.ready or last is None else last.alive_ms
            self.by_uuid[uuid] = Sighting(report, alive_ms, report.ready)
        self._not_ready(self.by_node.get(node, frozenset()) - named)
        self.by_node[node] = frozenset(named)

    def failed(self, node: str) -> None:
        """Note that a node did not answer."""
        self._not_ready(self.by_node.get(node, frozenset()))

    def _claimed_elsewhere(self, node: str, report: WorkerReport) -> bool:
        sighting = self.by_uuid.get(report.worker.uuid)
        if sighting is None or sighting.report is None or not sighting.ready:
            return False
        elsewhere = any(
            report.worker.uuid in uuids for other, uuids in self.by_node.items() if other != node
        )
        return elsewhere and sighting.report.worker.incarnation >= report.worker.incarnation

    def _not_ready(self, uuids: Collection[bytes]) -> None:
        for uuid in uuids:
            self.by_uuid[uuid] = replace(self.by_uuid[uuid], ready=False)
