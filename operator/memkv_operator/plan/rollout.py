"""Replacing data-plane pods after their template changed (updateStrategy OnDelete).

A pod is deleted only while enough others serve: nodes that are down for whatever reason count
against `maxUnavailable`, and pods that do not serve anyway go first, for they cost nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from memkv_operator.api.pool import Pool
from memkv_operator.plan.membership import Member


@dataclass(frozen=True, slots=True)
class Rolling:
    """What remains of a rolling update, and which pods may go now."""

    outdated: tuple[str, ...] = ()
    """Nodes whose pod has an older template."""
    victims: tuple[Member, ...] = ()
    """Members whose pods to delete now."""
    updated: int = 0
    reason: str = "RollingUpdate"


def rolling_update(
    pool: Pool, members: Sequence[Member], templates: Mapping[str, str], settled: bool
) -> Rolling:
    """Return the next step. `templates`: group -> hash of the template that pods should have.

    `settled`: no slots are moving for want of a node, so that one more may go.
    """
    desired = [member for member in members if member.desired and member.pod is not None]
    outdated = [member for member in desired if not _is_current(member, templates)]
    names = tuple(member.name for member in outdated)
    updated = len(desired) - len(outdated)
    if not outdated:
        return Rolling(updated=updated)
    if pool.spec.update_type == "OnDelete":
        return Rolling(names, (), updated, "WaitingForDeletion")
    if pool.spec.paused:
        return Rolling(names, (), updated, "UpdatePaused")
    budget = max_unavailable(pool, sum(member.desired for member in members))
    down = [member for member in members if member.desired and not member.ready]
    broken = [m for m in outdated if not m.ready and m.pod is not None and not m.pod.deleting]
    room = budget - len(down) if settled else 0
    serving = [member for member in outdated if member.ready][: max(0, room)]
    return Rolling(names, (*broken, *serving), updated)


def max_unavailable(pool: Pool, desired: int) -> int:
    """Return how many nodes may be down at once; at least one, or an update never ended."""
    wanted = pool.spec.max_unavailable
    if isinstance(wanted, int):
        return max(1, wanted)
    return max(1, desired * int(wanted.rstrip("%")) // 100)


def available_min(pool: Pool, members: Sequence[Member], lost: Collection[str]) -> int:
    """Return how many data-plane pods evictions must leave.

    Lost nodes are out of the map already and do not count: a dead drive that waits for weeks must
    not block the maintenance of every other node.
    """
    alive = sum(member.desired and member.name not in lost for member in members)
    return max(0, alive - max_unavailable(pool, alive))


def _is_current(member: Member, templates: Mapping[str, str]) -> bool:
    assert member.pod is not None
    assert member.group is not None
    facts = member.seen.facts if member.seen is not None else None
    if facts is not None and member.drives is not None and member.drives.outdated(facts):
        return False
    return member.pod.template == templates.get(member.group.name)
