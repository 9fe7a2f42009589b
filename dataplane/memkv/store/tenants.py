"""Tenants in a store: numbers for the index, counters, guarantees and queues.

Queue 0 is shared; each tenant with a quota has a queue, so a segment never holds blocks of a tenant
with a guarantee together with anyone else's. The shared queue is guaranteed what is left over.
Guarantees are whole segments, a quota is rounded up: the log gives and takes nothing smaller.
"""

from memkv.errors import ConfigError
from memkv.store.config import TenantQuota
from memkv.tenant import tenant_tag

SHARED_QUEUE = 0
TENANTS_MAX = 65535  # u16 in the index


class TenantState:
    """One tenant's numbers; bytes are those on flash, header sectors included."""

    __slots__ = ("blocks", "bytes", "name", "number", "pinned_bytes", "queue", "quota_bytes", "tag")

    def __init__(self, number: int, tag: bytes, name: str, queue: int, quota_bytes: int) -> None:
        self.number = number
        self.tag = tag
        self.name = name
        self.queue = queue
        self.quota_bytes = quota_bytes
        self.blocks = 0
        self.bytes = 0
        self.pinned_bytes = 0


class Tenants:
    """Every tenant seen since the store was opened."""

    def __init__(
        self, quotas: tuple[TenantQuota, ...], usable_bytes: int, segment_bytes: int,
        index_capacity: int,
    ) -> None:  # fmt: skip
        """Raises ConfigError when the quotas do not fit `usable_bytes`."""
        guarantees = [-(-quota.flash_bytes // segment_bytes) * segment_bytes for quota in quotas]
        total = sum(guarantees)
        if total > usable_bytes:
            raise ConfigError(
                f"quotas ask for {total} bytes of flash in whole segments, the drive has"
                f" {usable_bytes} for blocks; lower the quotas or add capacity"
            )
        self.by_tag: dict[bytes, TenantState] = {}
        self.all: list[TenantState] = []
        self.shared_bytes = usable_bytes - total
        self._usable_bytes = max(1, usable_bytes)
        self._index_capacity = index_capacity
        self.queue_guarantees = [self.shared_bytes, *guarantees]
        for queue, quota in enumerate(quotas, 1):
            self._add(tenant_tag(quota.name), quota.name, queue, quota.flash_bytes)
        self.queue_blocks = [0] * len(self.queue_guarantees)
        self._blocks_unused = sum(map(self._reserved, range(len(self.queue_guarantees))))

    def _add(self, tag: bytes, name: str, queue: int, quota_bytes: int) -> TenantState:
        if len(self.all) >= TENANTS_MAX:
            raise ConfigError(f"over {TENANTS_MAX} tenants on one drive; use more workers")
        tenant = TenantState(len(self.all), tag, name, queue, quota_bytes)
        self.all.append(tenant)
        self.by_tag[tag] = tenant
        return tenant

    def find(self, tag: bytes) -> TenantState | None:
        """Return a tenant that was seen before."""
        return self.by_tag.get(tag)

    def get(self, tag: bytes, name: str = "") -> TenantState:
        """Return the tenant of this tag, new ones in the shared queue."""
        tenant = self.by_tag.get(tag)
        if tenant is None:
            tenant = self._add(tag, name, SHARED_QUEUE, self.shared_bytes)
        elif name and not tenant.name:
            tenant.name = name
        return tenant

    def _reserved(self, queue: int) -> int:
        return self._index_capacity * self.queue_guarantees[queue] // self._usable_bytes

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
