"""What a new shard map means for one worker's slots. Pure: two maps and a memory in, actions out.

A worker that was away holds blocks that were deleted meanwhile. It serves such a slot only after it
heard of those deletes from everyone who may have accepted one: the previous owners in the map, who
are exactly those (memkv.metadata.ownership). Where the map says with a fence that nobody can tell,
the blocks go. "Newer" is newer than the last map under which the worker knew all deletes of the
slot (`MoveMemory.heard`); it holds nothing of a slot that it has no such map for.

One slot, rows tried in order. Before and after: this worker's role in the map it went by until now
(none at a start) and in the new one.

| case     | after    | before   | holds | newer fence | newer move | action | until it is done |
| -------- | -------- | -------- | ----- | ----------- | ---------- | ------ | ---------------- |
| begin    | owner    | *        | no    | *           | *          | START  | closed           |
| fenced   | owner    | *        | yes   | yes         | *          | PURGE  | closed           |
| regained | owner    | *        | yes   | no          | yes        | HEAR   | closed           |
| owned    | owner    | *        | yes   | no          | no         | KEEP   | served           |
| leaving  | previous | *        | *     | *           | *          | KEEP   | served           |
| retired  | none     | previous | yes   | *           | *          | DROP   | not ours         |
| away     | none     | *        | *     | *           | *          | ASIDE  | not ours         |

START only notes that the slot begins empty. DROP: the new owner has copied the blocks. ASIDE keeps
what is there out of reach: this worker was away and the slot went to another, it may come back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from memkv.errors import InternalBug
from memkv.node.moves.memory import MoveMemory
from memkv.shardmap import Move, ShardMap, unpack_owners


class Role(Enum):
    """What a worker is to a slot, by one map."""

    OWNER = "owner"
    PREVIOUS = "previous"
    NONE = "none"


class Action(Enum):
    """What becomes of a slot here."""

    START = "start empty"
    PURGE = "forget the blocks, nobody knows which are deleted"
    HEAR = "hear of deletes first"
    KEEP = "go on"
    DROP = "forget the blocks, they were copied"
    ASIDE = "keep the blocks out of reach"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table above; None matches anything."""

    label: str
    action: Action
    after: Role
    before: Role | None = None
    holds: bool | None = None
    newer_fence: bool | None = None
    newer_move: bool | None = None


CASES: tuple[Case, ...] = (
    Case("begin", Action.START, Role.OWNER, holds=False),
    Case("fenced", Action.PURGE, Role.OWNER, holds=True, newer_fence=True),
    Case("regained", Action.HEAR, Role.OWNER, holds=True, newer_fence=False, newer_move=True),
    Case("owned", Action.KEEP, Role.OWNER, holds=True, newer_fence=False, newer_move=False),
    Case("leaving", Action.KEEP, Role.PREVIOUS),
    Case("retired", Action.DROP, Role.NONE, before=Role.PREVIOUS, holds=True),
    Case("away", Action.ASIDE, Role.NONE),
)


def decide(
    after: Role, before: Role, holds: bool, newer_fence: bool, newer_move: bool
) -> Action:
    """Return the action for one slot by the first row that matches."""
    for case in CASES:
        if (
            case.after is after
            and case.before in (None, before)
            and case.holds in (None, holds)
            and case.newer_fence in (None, newer_fence)
            and case.newer_move in (None, newer_move)
        ):
            return case.action
    raise InternalBug("the table of slots has a hole")


@dataclass(frozen=True, slots=True)
class Plan:
    """The work that a map brings."""

    start: frozenset[int] = frozenset()
    purge: frozenset[int] = frozenset()
    hear: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Slot -> indexes of the workers to ask for deletes, newest owner first."""
    keep: frozenset[int] = frozenset()
    drop: frozenset[int] = frozenset()
    stale: frozenset[int] = frozenset()
    """Blocks from a lineage whose end this worker missed: forget them before anything else."""
    pull: Mapping[int, Move] = field(default_factory=dict)
    """Slots on their way here, once they are open."""
    @property
    def closed(self) -> frozenset[int]:
        """Slots not to serve yet."""
        return self.start | self.purge | frozenset(self.hear)


def roles(shard_map: ShardMap | None, me: bytes) -> dict[int, Role]:
    """Return the worker's role in each slot that it has one in."""
    index = shard_map.index_of(me) if shard_map is not None else None
    if shard_map is None or index is None:
        return {}
    found = {
        slot: Role.PREVIOUS for slot, move in shard_map.moving.items() if index in move.previous
    }
    for slot, owner in enumerate(unpack_owners(shard_map.owners)):
        if owner == index:
            found[slot] = Role.OWNER
    return found


def make_plan(
    before: ShardMap | None, after: ShardMap, me: bytes, memory: MoveMemory
) -> Plan:
    """Return what to do. `memory` as it was before; `before` is of this process's life."""
    known = memory.in_lineage(after.version.lineage)
    if before is not None and before.version.lineage != after.version.lineage:
        before = None
    was, now = roles(before, me), roles(after, me)
    decided: dict[Action, set[int]] = {action: set() for action in Action}
    for slot in range(after.slots):
        heard = known.heard.get(slot)
        move = after.moving.get(slot)
        action = decide(
            now.get(slot, Role.NONE),
            was.get(slot, Role.NONE),
            heard is not None,
            after.fenced.get(slot, 0) > (heard or 0),
            move is not None and move.since_epoch > (heard or 0),
        )
        decided[action].add(slot)
    return Plan(
        frozenset(decided[Action.START]),
        frozenset(decided[Action.PURGE]),
        {slot: after.moving[slot].previous for slot in sorted(decided[Action.HEAR])},
        frozenset(decided[Action.KEEP]),
        frozenset(decided[Action.DROP]),
        frozenset(memory.heard) - frozenset(known.heard),
        {
            slot: move
            for slot, move in sorted(after.moving.items())
            if now.get(slot) is Role.OWNER
        },
    )


def dropped_tenants(after: ShardMap, memory: MoveMemory) -> dict[bytes, int]:
    """Return tag -> generation of tenants whose blocks are to be forgotten."""
    known = memory.in_lineage(after.version.lineage).tenants
    return {
        tag: generation
        for tag, generation in sorted(after.tenant_generations.items())
        if generation > known.get(tag, (0, 0))[0]
    }
