"""Nodes that give their slots away: which may, which are done, and which are dropped then."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memkv.shardmap import ShardMap, WorkerState
from memkv_operator.api.node import WantedState
from memkv_operator.api.pool import Pool
from memkv_operator.plan.membership import Member, Refusal
from memkv_operator.plan.ownership import (
    lost_nodes,
    nodes_in_map,
    nodes_in_state,
    slots_by_node,
)

DRAINED = "Drained"
"""Condition of a MemKVNode that has given everything away; nothing is lost when it stops."""


def with_refusals(
    pool: Pool, members: Sequence[Member], shard_map: ShardMap | None, *, nobody_lives: bool
) -> list[Member]:
    """Return the members, those marked that must keep their slots although they should drain.

    `nobody_lives`: every worker that the map may give slots to is gone, so it stays as it is.

    While the pool is paused nothing moves. And slots need an owner: when every node that could take
    them should drain too, those that own slots keep them, and the others stay empty.
    """
    owners = slots_by_node(shard_map)
    if pool.spec.paused:
        return [_refused(m, Refusal.PAUSED) if m.name in owners else m for m in members]
    lost = nodes_in_state(shard_map, WorkerState.LOST)
    known = frozenset(w.node_name for w in shard_map.workers) if shard_map is not None else ()
    if not nobody_lives and any(_can_take(member, known, lost) for member in members):
        return list(members)
    lost = frozenset(owners) if nobody_lives else lost
    alive = {m.name for m in members if m.should_drain and m.name in owners and m.name not in lost}
    keep = alive or {m.name for m in members if m.group is not None}
    return [_refused(m, Refusal.NO_OTHER_NODE) if m.name in keep else m for m in members]


def _refused(member: Member, refusal: Refusal) -> Member:
    return replace(member, refusal=refusal) if member.should_drain else member


def _can_take(member: Member, known: Collection[str], lost: Collection[str]) -> bool:
    """A short silence does not count: whoever is in the map and not lost will be back."""
    if not member.desired or member.should_drain or member.cordoned:
        return False
    if member.group is None or member.group.weight_percent == 0:
        return False
    return member.ready or (member.name in known and member.name not in lost)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which nodes the map needs: read once a look, and not once for each of hundreds of nodes."""

    in_use: frozenset[str]
    """They own slots, or did of slots that still move."""
    lost: frozenset[str]
    """They have a lost worker."""
    drained: frozenset[str]
    """They have given everything away."""


def ownership_of(members: Sequence[Member], shard_map: ShardMap | None) -> Ownership:
    """Return what a map says of the members. Without a map: who was said to be drained last."""
    in_use = nodes_in_map(shard_map)
    drained = frozenset(
        member.name
        for member in members
        if member.draining and member.memkv_node is not None
        if (member.memkv_node.holds(DRAINED) if shard_map is None else member.name not in in_use)
    )
    return Ownership(in_use, lost_nodes(shard_map), drained)


def dropped_nodes(members: Sequence[Member], in_use: frozenset[str]) -> frozenset[str]:
    """Return the removed nodes that have nothing left: their pods leave. `in_use`: by the map.

    Only what was written as drained counts, so that an operator that has just taken over, and does
    not know the map yet, neither drops a node too early nor brings one back.
    """
    return frozenset(
        member.name
        for member in members
        if member.wanted is WantedState.REMOVED
        and member.memkv_node is not None
        and member.memkv_node.holds(DRAINED)
        and member.name not in in_use
    )
