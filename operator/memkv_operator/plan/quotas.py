"""From what tenants are guaranteed in the whole pool to what each worker guarantees them. Pure.

A tenant's blocks lie on all workers, on each as many as it has slots; so each worker guarantees its
share of the quota, by capacity and by the weight of its group. Workers that give their slots away
or are lost do not count; the former keep their share until their blocks are copied. What does not
fit is scaled down in proportion, and said.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.conditions import Condition, condition
from memkv_operator.api.pool import Pool
from memkv_operator.api.quantity import format_bytes_roughly
from memkv_operator.plan.membership import Member

STEP_BYTES = 1 << 20  # shares are cut to it, so that no byte of capacity makes new ones


@dataclass(frozen=True, slots=True)
class WorkerQuota:
    """What one tenant is guaranteed on one worker of a node."""

    tenant: str
    worker: int
    """Position."""
    flash_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a pool's nodes can guarantee, and what was asked of them."""

    asked_bytes: int = 0
    usable_bytes: int = 0

    @property
    def exceeded(self) -> bool:
        """Whether more was asked than there is."""
        return self.asked_bytes > self.usable_bytes

    def fitted(self, size_bytes: int) -> int:
        """Return what is left of a quota when all are scaled down to fit."""
        if not self.exceeded:
            return size_bytes
        return size_bytes * self.usable_bytes // self.asked_bytes


@dataclass(frozen=True, slots=True)
class Sharing:
    """Quotas by node, and how they fit."""

    by_node: dict[str, tuple[WorkerQuota, ...]] = field(default_factory=dict)
    flash: Room = field(default_factory=Room)
    memory: Room = field(default_factory=Room)
    waits_for: tuple[str, ...] = ()
    """Nodes of which no worker has said yet what it has."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One worker."""

    node: str
    worker: int
    weight: int
    flash_bytes: int
    memory_bytes: int
    counts: bool


def share_quotas(pool: Pool, members: Sequence[Member], lost: Collection[str]) -> Sharing:
    """Return what each worker guarantees. `lost`: names of nodes that the map counts as lost."""
    tenants = [t for t in pool.spec.tenants if t.flash_bytes or t.memory_bytes]
    if not tenants:
        return Sharing()
    parts = [part for member in members for part in _parts(member, lost)]
    known = {part.node for part in parts}
    waits_for = tuple(m.name for m in members if _counts(m, lost) and m.name not in known)
    counting = [part for part in parts if part.counts and part.weight]
    total = sum(part.weight for part in counting)
    flash = Room(sum(t.flash_bytes for t in tenants), sum(p.flash_bytes for p in counting))
    memory = Room(sum(t.memory_bytes for t in tenants), sum(p.memory_bytes for p in counting))
    by_node: dict[str, tuple[WorkerQuota, ...]] = {}
    for part in parts if total else ():
        quotas = tuple(
            WorkerQuota(
                tenant.name,
                part.worker,
                _share(flash.fitted(tenant.flash_bytes), part.weight, total),
                _share(memory.fitted(tenant.memory_bytes), part.weight, total),
            )
            for tenant in tenants
        )
        given = tuple(quota for quota in quotas if quota.flash_bytes or quota.memory_bytes)
        by_node[part.node] = by_node.get(part.node, ()) + given
    return Sharing(by_node, flash, memory, waits_for)


def quotas_guaranteed(pool: Pool, sharing: Sharing) -> Condition | None:
    """Return the condition of a pool with quotas, None for one without."""
    if not any(tenant.flash_bytes or tenant.memory_bytes for tenant in pool.spec.tenants):
        return None
    if not sharing.by_node:
        return condition("QuotasGuaranteed", False, "WaitingForNodes", "no node has answered yet")
    problems = [
        f"{name} asks for {format_bytes_roughly(room.asked_bytes)} in all, and the nodes can "
        f"guarantee {format_bytes_roughly(room.usable_bytes)}: each tenant gets "
        f"{100 * room.usable_bytes // room.asked_bytes}% of its own"
        for name, room in (("flashQuota", sharing.flash), ("memoryQuota", sharing.memory))
        if room.exceeded
    ]
    if problems and not sharing.waits_for:
        message = "; ".join(problems) + ". Lower the quotas, or add nodes"
        return condition("QuotasGuaranteed", False, "QuotasExceedCapacity", message)
    if sharing.waits_for:
        message = "some nodes have not said yet what they have; the others guarantee their part"
        return condition("QuotasGuaranteed", False, "WaitingForNodes", message)
    return condition("QuotasGuaranteed", True, "Guaranteed", "")


def _counts(member: Member, lost: Collection[str]) -> bool:
    return member.desired and not member.draining and member.name not in lost


def _parts(member: Member, lost: Collection[str]) -> list[_Part]:
    """Return a member's workers as it said last, or as they were seen when it last served."""
    percent = member.group.weight_percent if member.group is not None else 100
    counts = _counts(member, lost)
    facts = member.seen.facts if member.seen is not None else None
    if facts is not None:
        return [
            _Part(
                member.name,
                worker.position,
                worker.capacity_bytes * percent // 100,
                worker.flash_guaranteed_bytes_max or worker.capacity_bytes,
                worker.memory_guaranteed_bytes_max,
                counts,
            )
            for worker in facts.workers
            if worker.capacity_bytes
        ]
    if member.memkv_node is None:
        return []
    kept = Reader({"status": member.memkv_node.status}).object("status").objects("workers")
    memory = member.group.memory_bytes if member.group is not None else 0
    return [
        _Part(
            member.name,
            worker.integer("position"),
            capacity * percent // 100,
            capacity,
            memory // len(kept),
            counts,
        )
        for worker in kept
        if (capacity := worker.integer("capacityBytes"))
    ]


def _share(size_bytes: int, weight: int, total: int) -> int:
    share = size_bytes * weight // total
    return share // STEP_BYTES * STEP_BYTES if share > STEP_BYTES else share
