"""Pins: blocks that reclaim always keeps, for a time, within a part of their tenant's quota.

The part is what reclaim can carry within its share of host writes. Tenants without a quota share
that of the shared queue, or a few of them could pin all of it and leave reclaim nothing to free.
Pins live as long as the process: engines renew them.
"""

from collections import Counter

from memkv.limits import PINNED_FRACTION_MAX
from memkv.status import Status
from memkv.store.segments import SegmentTable
from memkv.store.tenants import Tenants, TenantState


class Pin:
    """One pinned block."""

    __slots__ = ("expires_ns", "size_bytes", "tenant")

    def __init__(self, tenant: TenantState, size_bytes: int, expires_ns: int) -> None:
        self.tenant = tenant
        self.size_bytes = size_bytes
        self.expires_ns = expires_ns


class Pins:
    """Pinned blocks by index handle."""

    def __init__(self, table: SegmentTable, tenants: Tenants) -> None:
        self._table = table
        self._tenants = tenants
        self._pins: dict[int, Pin] = {}
        self._queue_bytes: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._pins)

    def pin(
        self, handle: int, tenant: TenantState, size_bytes: int, now_ns: int, ttl_s: int
    ) -> Status:
        """Pin or renew. QUOTA when the pins of the tenant's queue would pass their limit."""
        expires_ns = now_ns + ttl_s * 1_000_000_000
        known = self._pins.get(handle)
        if known is not None:
            known.expires_ns = expires_ns
            return Status.OK
        filled = self._table.filled_fraction(tenant.queue)
        guarantee = self._tenants.queue_guarantees[tenant.queue]
        limit = int(guarantee * filled * PINNED_FRACTION_MAX)
        if self._queue_bytes[tenant.queue] + size_bytes > limit:
            self.expire(now_ns)
            if self._queue_bytes[tenant.queue] + size_bytes > limit:
                return Status.QUOTA
        self._count(tenant, size_bytes)
        self._pins[handle] = Pin(tenant, size_bytes, expires_ns)
        return Status.OK

    def lease(
        self, handle: int, tenant: TenantState, size_bytes: int, now_ns: int, lease_ms: int
    ) -> None:
        """Keep a block a moment longer, as far as the tenant's pins allow; never shortens a pin."""
        ends_ns = now_ns + lease_ms * 1_000_000
        known = self._pins.get(handle)
        if known is not None:
            known.expires_ns = max(known.expires_ns, ends_ns)
        elif self.pin(handle, tenant, size_bytes, now_ns, 0) is Status.OK:
            self._pins[handle].expires_ns = ends_ns

    def unpin(self, handle: int) -> None:
        """Forget a pin; harmless where there is none."""
        pin = self._pins.pop(handle, None)
        if pin is not None:
            self._count(pin.tenant, -pin.size_bytes)

    def give_queue(self, tenant: TenantState, before: int, after: int) -> None:
        """Count a tenant's pins to another queue. Those beyond its limit stay until they end."""
        self._queue_bytes[before] -= tenant.pinned_bytes
        self._queue_bytes[after] += tenant.pinned_bytes

    def _count(self, tenant: TenantState, change: int) -> None:
        tenant.pinned_bytes += change
        self._queue_bytes[tenant.queue] += change

    def expire(self, now_ns: int) -> None:
        """Forget pins whose time is over."""
        for handle in [h for h, pin in self._pins.items() if pin.expires_ns <= now_ns]:
            self.unpin(handle)

    def is_pinned(self, handle: int, now_ns: int) -> bool:
        """Say whether reclaim must keep the block."""
        pin = self._pins.get(handle)
        return pin is not None and pin.expires_ns > now_ns
