"""Nodes that are away on purpose: their slots wait for them instead of moving twice.

Two things announce it: the operator's own replacement of a pod, and a cordon in a pool that does
not drain on cordon. Both hold for `disruption.maintenanceTimeoutSeconds` at most, and only where
the node's content outlives the restart: a node that comes back empty is worth no waiting.
"""

from collections.abc import Sequence
from dataclasses import replace

from memkv_operator.api.node import RestartPhase
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import seconds_of
from memkv_operator.plan.membership import Member
from memkv_operator.plan.restarts import has_failed


def with_holds(pool: Pool, members: Sequence[Member], now_s: int) -> list[Member]:
    """Return the members, those marked whose slots wait."""
    return [
        replace(member, held=True) if is_held(pool, member, now_s) else member for member in members
    ]


def is_held(pool: Pool, member: Member, now_s: int) -> bool:
    """Return whether a node's absence is no loss yet."""
    group, node = member.group, member.kube_node
    if group is None or not group.survives_restarts or member.should_drain:
        return False
    limit_s = pool.spec.maintenance_timeout_s
    restart = member.restart
    if restart is not None and restart.phase is RestartPhase.REPLACING:
        # A node that dies in the middle is a dead node.
        alive = node is not None and node.ready
        fails = has_failed(member, restart, now_s)
        return alive and not fails and now_s - restart.since_s < limit_s
    return announces_maintenance(member) and now_s - _down_since_s(member, now_s) < limit_s


def announces_maintenance(member: Member) -> bool:
    """Return whether a node is cordoned in a pool that waits for such nodes."""
    node = member.kube_node
    return node is not None and node.leaving and not node.for_good and not member.drains_on_cordon


def _down_since_s(member: Member, now_s: int) -> int:
    """By what was written of it, so that it is the same for an operator that takes over."""
    said = member.memkv_node.conditions.get("Ready") if member.memkv_node is not None else None
    if said is None or said.holds:
        return now_s
    return seconds_of(said.last_transition) or now_s
