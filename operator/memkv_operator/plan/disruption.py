"""How many data-plane pods others may evict, by what is degraded now. Pure.

What is out of the map already cannot be hurt and blocks nobody: lost nodes, and drained nodes
whose pod is gone. What the operator is about to take away itself counts as gone.
"""

from collections.abc import Collection, Sequence

from memkv_operator.api.pool import Pool
from memkv_operator.plan.membership import Member
from memkv_operator.plan.rollout import max_unavailable


def available_min(
    pool: Pool,
    members: Sequence[Member],
    lost: Collection[str],
    drained: Collection[str],
) -> int:
    """Return how many data-plane pods evictions must leave.

    `lost`: nodes that the map calls lost; `drained`: those that have given everything away.
    """
    needed = [
        member
        for member in members
        if member.desired
        and member.name not in lost
        and (member.ready or member.name not in drained)
    ]
    leaving = sum(member.restart is not None and member.ready for member in needed)
    room = max(0, max_unavailable(pool, len(needed)) - leaving)
    return max(0, len(needed) - room)
