"""Tenants in a store: numbers for the index, counters, guarantees and queues.

Queue 0 is shared; each tenant with a quota has a queue, so a segment never holds blocks of a tenant
with a guarantee together with anyone else's (but for those from before it had one: see `quotas`).
The shared queue is guaranteed what is left over. Guarantees are whole segments.
"""

from typing import TYPE_CHECKING

from memkv.errors import ConfigError
from memkv.tenant import tenant_tag

if TYPE_CHECKING:
    from memkv.store.feeds import Feed

SHARED_QUEUE = 0
TENANTS_MAX = 65535  # u16 in the index


class TenantState:
    """One tenant's numbers; bytes are those on flash, header sectors included."""

    __slots__ = (
        "blocks", "bytes", "feed", "memory_quota_bytes", "name", "number", "pinned_bytes", "queue",
        "quota_bytes", "tag",
    )  # fmt: skip

    def __init__(self, number: int, tag: bytes, name: str) -> None:
        self.number = number
        self.tag = tag
        self.name = name
        self.queue = SHARED_QUEUE
        self.quota_bytes = 0
        """Of flash, guaranteed to it alone; 0: it shares."""
        self.memory_quota_bytes = 0
        self.blocks = 0
        self.bytes = 0
        self.pinned_bytes = 0
        self.feed: Feed | None = None
        """Where events go while somebody watches."""


class Tenants:
    """Every tenant seen since the store was opened."""

    def __init__(self, usable_bytes: int, index_capacity: int) -> None:
        self.by_tag: dict[bytes, TenantState] = {}
        self.all: list[TenantState] = []
        self._usable_bytes = usable_bytes
        self._index_capacity = index_capacity
        self.queue_owners: list[TenantState | None] = [None]
        """Who has a queue; None: everyone, or nobody any more."""
        self.queue_guarantees = [usable_bytes]
        self.queue_blocks = [0]
        self._blocks_unused = self._reserved(SHARED_QUEUE)

    @property
    def shared_bytes(self) -> int:
        """Flash that those without a queue of their own are guaranteed together."""
        return self.queue_guarantees[SHARED_QUEUE]

    def find(self, tag: bytes) -> TenantState | None:
        """Return a tenant that was seen before."""
        return self.by_tag.get(tag)

    def get(self, tag: bytes, name: str = "") -> TenantState:
        """Return the tenant of this tag, new ones in the shared queue."""
        tenant = self.by_tag.get(tag)
        if tenant is None:
            tenant = self._add(tag, name)
        elif name and not tenant.name:
            tenant.name = name
        return tenant

    def named(self, name: str) -> TenantState:
        """Return the tenant of this name."""
        return self.get(tenant_tag(name), name)

    def _add(self, tag: bytes, name: str) -> TenantState:
        if len(self.all) >= TENANTS_MAX:
            raise ConfigError(f"over {TENANTS_MAX} tenants on one drive; use more workers")
        tenant = TenantState(len(self.all), tag, name)
        self.all.append(tenant)
        self.by_tag[tag] = tenant
        return tenant

    # --- queues ------------------------------------------------------------------------------

    def give_queue(self, tenant: TenantState, queue: int) -> None:
        """Count a tenant's blocks to another queue: one of its own, or the shared one."""
        before = tenant.queue
        if before != SHARED_QUEUE:
            self.queue_owners[before] = None
        if queue == len(self.queue_owners):
            self.queue_owners.append(None)
            self.queue_guarantees.append(0)
            self.queue_blocks.append(0)
        if queue != SHARED_QUEUE:
            self.queue_owners[queue] = tenant
        tenant.queue = queue
        self.queue_blocks[before] -= tenant.blocks
        self.queue_blocks[queue] += tenant.blocks
        self.guarantee()

    def guarantee(self) -> None:
        """Have every queue keep what its owner's quota says now."""
        given = [owner.quota_bytes if owner is not None else 0 for owner in self.queue_owners]
        given[SHARED_QUEUE] = self._usable_bytes - sum(given)
        self.queue_guarantees = given
        self._blocks_unused = sum(map(self._unused, range(len(given))))

    # --- shares of the index -----------------------------------------------------------------

    def _reserved(self, queue: int) -> int:
        share = self._index_capacity * self.queue_guarantees[queue]
        return share // max(1, self._usable_bytes)

    def blocks_over(self, queue: int, fraction: float) -> int:
        """Return how many entries of the index a queue has over this part of its share."""
        return self.queue_blocks[queue] - int(self._reserved(queue) * fraction)

    def _unused(self, queue: int) -> int:
        return max(0, self._reserved(queue) - self.queue_blocks[queue])

    def admits(self, tenant: TenantState, entries_free: int) -> bool:
        """Say whether one more index entry of this tenant leaves the others their share."""
        queue = tenant.queue
        if self.queue_blocks[queue] < self._reserved(queue):
            return True
        return entries_free > self._blocks_unused

    def add_block(self, tenant: TenantState, size_bytes: int, count: int = 1) -> None:
        """Count blocks in."""
        tenant.blocks += count
        tenant.bytes += size_bytes
        self._count(tenant.queue, count)

    def remove_block(self, tenant: TenantState, size_bytes: int) -> None:
        """Count a block out."""
        tenant.blocks -= 1
        tenant.bytes -= size_bytes
        self._count(tenant.queue, -1)

    def _count(self, queue: int, change: int) -> None:
        before = self._unused(queue)
        self.queue_blocks[queue] += change
        self._blocks_unused += self._unused(queue) - before
