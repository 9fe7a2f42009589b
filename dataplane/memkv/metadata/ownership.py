"""How the owner of each slot changes when workers come, go and finish moves. Pure.

Deletes decide the rules. A delete is acknowledged when the owner and all previous owners of the
slot stored a tombstone, so a worker that was away has older records of blocks deleted meanwhile.
When it gets a slot back it must hear of those deletes before it serves, from everyone who owned the
slot since. A tenure is settled once its worker did: its `applied_epoch` reached the move. Each slot
has a trail of past tenures, the most recent first. If everyone who owned the slot after the last
settled tenure of a returning worker is among the new previous owners, the worker can ask them; if
not, the slot is fenced, and the worker drops what it had of it. A slot is not handed over before
its owner settled: as a previous owner it would answer with blocks it has not yet heard are deleted.

What happens to one slot, rows tried in order:

| case      | owner is lost | the target is another | may move | action                         |
| --------- | ------------- | --------------------- | -------- | ------------------------------ |
| replace   | yes           | *                     | *        | give the slot to the target    |
| hand over | no            | yes                   | yes      | same; owner becomes previous   |
| wait      | no            | yes                   | no       | keep                           |
| keep      | no            | no                    | *        | keep                           |
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from memkv import limits
from memkv.errors import InternalBug


class Action(Enum):
    """What happens to a slot."""

    REPLACE = "replace"
    HAND_OVER = "hand over"
    WAIT = "wait"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class SlotCase:
    """One row of the table above; None matches anything."""

    action: Action
    owner_lost: bool
    target_differs: bool | None = None
    may_move: bool | None = None


CASES: tuple[SlotCase, ...] = (
    SlotCase(Action.REPLACE, True),
    SlotCase(Action.HAND_OVER, False, target_differs=True, may_move=True),
    SlotCase(Action.WAIT, False, target_differs=True, may_move=False),
    SlotCase(Action.KEEP, False, target_differs=False),
)


def decide_slot(owner_lost: bool, target_differs: bool, may_move: bool) -> Action:
    """Return the action for one slot."""
    for case in CASES:
        if (
            case.owner_lost == owner_lost
            and case.target_differs in (None, target_differs)
            and case.may_move in (None, may_move)
        ):
            return case.action
    raise InternalBug("the table of slot cases has a hole")


@dataclass(frozen=True, slots=True)
class OpenMove:
    """A slot on its way, by worker UUIDs."""

    previous: tuple[bytes, ...]
    since_epoch: int


@dataclass(frozen=True, slots=True)
class Tenure:
    """A time in which a worker owned a slot."""

    worker: bytes
    settled: bool
    """Whether the worker had heard of all deletes of the slot before the tenure ended."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns each slot and who did. Replaced, never changed."""

    owners: tuple[bytes, ...]
    moves: Mapping[int, OpenMove] = field(default_factory=dict)
    fenced: Mapping[int, int] = field(default_factory=dict)
    trails: Mapping[int, tuple[Tenure, ...]] = field(default_factory=dict)
    """Past tenures of a slot, most recent first, at most limits.OWNER_TRAIL_MAX: of each worker the
    last one and the last settled one. A worker may have fallen out of a full trail."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What workers report about their slots."""

    lost: Collection[bytes]
    draining: Collection[bytes]
    applied_epoch: Mapping[bytes, int]
    finished: Mapping[bytes, Collection[tuple[int, int]]]
    """Worker -> (slot, since_epoch) of moves that ended."""
    expired_epochs: Collection[int]
    """Moves since these epochs take too long; their previous owners retire."""


def is_settled(ownership: Ownership, progress: Progress, slot: int) -> bool:
    """Return whether the owner of a slot has heard of all its deletes."""
    move = ownership.moves.get(slot)
    since = max(ownership.fenced.get(slot, 0), move.since_epoch if move is not None else 0)
    return progress.applied_epoch.get(ownership.owners[slot], 0) >= since


def retire(before: Ownership, progress: Progress, epoch: int) -> Ownership:
    """Drop previous owners that finished, expired or got lost, and fences that did their work.

    A previous owner that goes before the owner heard of its deletes leaves a fence behind.
    """
    moves: dict[int, OpenMove] = {}
    fenced = {
        slot: since
        for slot, since in before.fenced.items()
        if progress.applied_epoch.get(before.owners[slot], 0) < since
    }
    for slot, move in before.moves.items():
        owner = before.owners[slot]
        if (slot, move.since_epoch) in progress.finished.get(owner, ()):
            continue
        expired = move.since_epoch in progress.expired_epochs
        kept = () if expired else tuple(u for u in move.previous if u not in progress.lost)
        heard = progress.applied_epoch.get(owner, 0) >= move.since_epoch
        if kept != move.previous and not heard and owner not in progress.lost:
            fenced[slot] = epoch
        if kept:
            moves[slot] = OpenMove(kept, move.since_epoch)
    return Ownership(before.owners, moves, fenced, before.trails)


def reassign(
    before: Ownership,
    targets: Sequence[bytes],
    progress: Progress,
    epoch: int,
    moving_slots_max: int,
) -> tuple[Ownership, int]:
    """Return ownership after one step towards `targets`, and how many slots still wait.

    Slots of lost workers go at once. Others go while fewer than `moving_slots_max` move: first home
    to workers that held them before, then away from draining workers.
    """
    draft = _Draft(before, progress, epoch)
    waiting = 0
    for slot in _in_order(before, targets, progress):
        move = draft.moves.get(slot)
        if move is not None:
            room = len(move.previous) < limits.PREVIOUS_OWNERS_MAX
        else:
            room = len(draft.moves) < moving_slots_max
        may_move = room and is_settled(before, progress, slot)
        owner, target = before.owners[slot], targets[slot]
        action = decide_slot(owner in progress.lost, owner != target, may_move)
        if action in (Action.REPLACE, Action.HAND_OVER):
            draft.give(slot, target)
        elif action is Action.WAIT:
            waiting += 1
    return draft.finish(), waiting


def _in_order(before: Ownership, targets: Sequence[bytes], progress: Progress) -> Iterable[int]:
    def rank(slot: int) -> tuple[int, int]:
        owner = before.owners[slot]
        if owner in progress.lost:
            return 0, slot
        if any(past.worker == targets[slot] for past in before.trails.get(slot, ())):
            return 1, slot
        return (2 if owner in progress.draining else 3), slot

    changing = (slot for slot, owner in enumerate(before.owners) if owner != targets[slot])
    return sorted(changing, key=rank)


class _Draft:
    """Ownership while a step changes it."""

    def __init__(self, before: Ownership, progress: Progress, epoch: int) -> None:
        self.owners = list(before.owners)
        self.moves = dict(before.moves)
        self.fenced = dict(before.fenced)
        self.trails = dict(before.trails)
        self._before = before
        self._progress = progress
        self._epoch = epoch

    def give(self, slot: int, target: bytes) -> None:
        """Make `target` the owner."""
        owner = self.owners[slot]
        ended = Tenure(owner, is_settled(self._before, self._progress, slot))
        trail = lengthen(self.trails.get(slot, ()), ended)
        move = self.moves.pop(slot, None)
        chain = (owner, *(move.previous if move else ()))
        previous = tuple(u for u in chain if u != target and u not in self._progress.lost)
        previous = previous[: limits.PREVIOUS_OWNERS_MAX]
        since = owners_since(target, trail)
        self.fenced.pop(slot, None)
        if since is None or not since <= set(previous):
            self.fenced[slot] = self._epoch
        if previous:
            self.moves[slot] = OpenMove(previous, self._epoch)
        self.trails[slot] = trail
        self.owners[slot] = target

    def finish(self) -> Ownership:
        """Return what was drafted."""
        return Ownership(tuple(self.owners), self.moves, self.fenced, self.trails)


def lengthen(trail: tuple[Tenure, ...], ended: Tenure) -> tuple[Tenure, ...]:
    """Put a tenure that just ended at the head; older ones it makes superfluous go."""
    kept = (
        past
        for past in trail
        if past.worker != ended.worker or (past.settled and not ended.settled)
    )
    return (ended, *kept)[: limits.OWNER_TRAIL_MAX]


def owners_since(worker: bytes, trail: tuple[Tenure, ...]) -> frozenset[bytes] | None:
    """Return who owned the slot after the worker's last settled tenure.

    Empty when it never owned the slot; None when the trail cannot tell.
    """
    later: set[bytes] = set()
    for past in trail:
        if past.worker == worker and past.settled:
            return frozenset(later - {worker})
        later.add(past.worker)
    if worker in later or len(trail) >= limits.OWNER_TRAIL_MAX:
        return None
    return frozenset()
