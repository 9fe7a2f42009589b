"""What a worker has to do before it serves by a new map. Pure.

A slot that this worker got by a move newer than the last map it applied may hold blocks that were
deleted while it was away. Until it heard of those deletes from all previous owners, requests for
the slot are answered as if another worker owned it: a miss. A fenced slot has nobody left to ask:
its blocks are deleted here, for good. What a worker holds of slots that it neither owns nor owned
before the move is out of reach and left to eviction; the same rules apply if it gets them back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from memkv.shardmap import (
    UNASSIGNED,
    MapVersion,
    Move,
    ShardMap,
    pack_owners,
    unpack_owners,
)


@dataclass(frozen=True, slots=True)
class Applied:
    """The newest map whose slots this worker took over, deletes included. Kept on disk."""

    lineage: bytes = b""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Takeover:
    """Work before a map is applied, and what can wait."""

    purge: frozenset[int] = frozenset()
    """Fenced slots: delete what is there."""
    hear: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Slot -> indexes of the workers to ask for deletes."""

    @property
    def closed(self) -> frozenset[int]:
        """Slots not to serve yet."""
        return self.purge | frozenset(self.hear)


def plan_takeover(shard_map: ShardMap, me: int | None, applied: Applied) -> Takeover:
    """Return what is to be done; `me` is this worker's index in the map, None when not named."""
    if me is None:
        return Takeover()
    known = applied.epoch if applied.lineage == shard_map.version.lineage else 0
    mine = frozenset(s for s, owner in enumerate(unpack_owners(shard_map.owners)) if owner == me)
    purge = frozenset(s for s, epoch in shard_map.fenced.items() if s in mine and epoch > known)
    hear = {
        slot: move.previous
        for slot, move in sorted(shard_map.moving.items())
        if slot in mine and move.since_epoch > known and slot not in purge
    }
    return Takeover(purge, hear)


def nobodys_map(slots: int) -> ShardMap:
    """Return the map of a worker that has not got one yet: nothing is its own, so it serves
    nothing, and any map is newer."""
    nowhere = MapVersion(bytes(16), 0, 0)
    return ShardMap(nowhere, slots, (), pack_owners([UNASSIGNED] * slots), intentional_empty=True)


def without_slots(shard_map: ShardMap, me: int, closed: Collection[int]) -> ShardMap:
    """Return the map as the worker's server shall see it while slots are closed.

    They belong to somebody else in it: to a previous owner where there is one, for that is where a
    block is found meanwhile. Same version, so hints made from it are no news to clients.
    """
    if not closed:
        return shard_map
    owners = unpack_owners(shard_map.owners)
    others = [index for index in range(len(shard_map.workers)) if index != me]
    for slot in closed:
        previous = shard_map.previous_owners(slot)
        owners[slot] = previous[0] if previous else (others[0] if others else UNASSIGNED)
    moving = {slot: move for slot, move in shard_map.moving.items() if slot not in closed}
    return replace(shard_map, owners=pack_owners(owners), moving=moving)


def open_moves(shard_map: ShardMap, me: int | None) -> dict[int, Move]:
    """Return the moves towards this worker, by slot."""
    return {
        slot: move
        for slot, move in sorted(shard_map.moving.items())
        if me is not None and shard_map.owner_index(slot) == me
    }
