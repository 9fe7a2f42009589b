"""Quotas that change while the store is open.

A tenant that gets a quota gets a queue. What it stored before lies in shared segments, among blocks
of others. While a tenant *settles*, reclaim carries its blocks out of such segments as it carries
pinned ones, up to its guarantee; so they are safe from the moment the quota is there.

Rule 1: all records of a tenant go to one queue at a time, and into a segment opened after those of
its queue before: order is truth. So pending records move along, and open segments are sealed.
Rule 2: a few tenants settle at a time, each while there is a free segment for its queue beside
those that reclaim needs (`owed`). Until its turn comes reclaim carries a tenant's blocks within the
shared queue. Else several that join a full drive would need a segment each before one is free.
Rule 3: what is carried for one tenant is bounded by some times its guarantee, whatever the segments
look like: reclaim always ends.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memkv.limits import SECTOR_BYTES
from memkv.store.config import TenantQuota
from memkv.store.guarantees import fitted_bytes, fitted_segments
from memkv.store.layout import record_sectors
from memkv.store.segments import FREE_SEGMENTS_WANTED, OCCUPIED, Everyone, Segment, State
from memkv.store.tenants import SHARED_QUEUE, TenantState

if TYPE_CHECKING:
    from memkv.store.core import StoreCore

SETTLING_MAX = 8  # at a time
SEGMENTS_PER_CHANGE = 64  # looked at, on the average: some microseconds
CARRIES_MIN = 2  # of each block: within the shared queue perhaps, and into the tenant's own
MEMORY_RECORDS_SHARED = 4  # of the longest block: reclaim's, and what nobody has for himself


class Quotas:
    """The quotas of one store. All methods under its lock."""

    def __init__(self, core: "StoreCore") -> None:
        self._core = core
        self._joining: list[TenantState] = []
        self._promised: dict[int, int] = {}
        """Tenant number -> bytes, of those that wait for their queue."""
        self._settling: dict[int, int] = {}
        """Tenant number -> bytes that reclaim may still carry for it."""
        self._look_at_changes = 0

    # --- changes -----------------------------------------------------------------------------

    def set(self, quotas: Sequence[TenantQuota]) -> None:
        """Guarantee this from now on, and nothing else."""
        core = self._core
        segment_bytes = core.table.segment_bytes
        segments = fitted_segments(
            [quota.flash_bytes for quota in quotas], core.usable_bytes(), segment_bytes
        )
        promised = {
            core.tenants.named(quota.name).number: count * segment_bytes
            for quota, count in zip(quotas, segments, strict=True)
            if count
        }
        for tenant in core.tenants.all:
            if tenant.queue != SHARED_QUEUE and tenant.number not in promised:
                self._leave(tenant)
        self._joining, self._promised = [], {}
        for number, size_bytes in promised.items():
            tenant = core.tenants.all[number]
            if tenant.queue != SHARED_QUEUE:
                tenant.quota_bytes = size_bytes
            else:
                self._joining.append(tenant)
                self._promised[number] = size_bytes
        core.tenants.guarantee()
        carries = CARRIES_MIN + len(promised) // SETTLING_MAX  # turns of the shared queue
        self._settling = {number: carries * size for number, size in promised.items()}
        self._look_at_changes = 0
        self._set_memory(quotas)

    def _set_memory(self, quotas: Sequence[TenantQuota]) -> None:
        core = self._core
        for tenant in core.tenants.all:
            tenant.memory_quota_bytes = 0
        sizes = fitted_bytes([quota.memory_bytes for quota in quotas], self.memory_bytes_max())
        for quota, size_bytes in zip(quotas, sizes, strict=True):
            core.tenants.named(quota.name).memory_quota_bytes = size_bytes
        core.arena.guarantee(
            {
                tenant.number: tenant.memory_quota_bytes // SECTOR_BYTES
                for tenant in core.tenants.all
                if tenant.memory_quota_bytes >= SECTOR_BYTES
            }
        )

    def memory_bytes_max(self) -> int:
        """Return the memory that all tenants together can have for themselves."""
        core = self._core
        shared = MEMORY_RECORDS_SHARED * record_sectors(core.block_bytes_max)
        return max(0, core.arena.sectors - shared) * SECTOR_BYTES

    # --- queues ------------------------------------------------------------------------------

    def join(self) -> None:
        """Give their queues to those that wait for one, as far as it is their turn."""
        if not self._joining:
            return
        self._look()
        waiting, self._joining = self._joining, []
        for tenant in waiting:
            if tenant.number in self._settling and not self._has_turn():
                self._joining.append(tenant)
                continue
            tenant.quota_bytes = self._promised.pop(tenant.number)
            queue = self._unused_queue()
            self._move(tenant, queue)
            self._core.table.give_queue(tenant.number, queue)
            self._look_at_changes = 0
            self._look()

    def _has_turn(self) -> bool:
        settling = self._settling_now()
        free = len(self._core.table.free)
        return settling < SETTLING_MAX and free > FREE_SEGMENTS_WANTED + settling

    def _settling_now(self) -> int:
        tenants = self._core.tenants.all
        return sum(tenants[number].queue != SHARED_QUEUE for number in self._settling)

    def _leave(self, tenant: TenantState) -> None:
        tenant.quota_bytes = 0
        left = tenant.queue
        self._move(tenant, SHARED_QUEUE)
        log = self._core.log
        for queue in (left, SHARED_QUEUE):  # nobody fills the one; the other may be older than it
            if (segment := log.open[queue]) is not None:
                log.seal(segment)

    def _move(self, tenant: TenantState, queue: int) -> None:
        core, before = self._core, tenant.queue
        core.log.give_queue(tenant, before, queue)
        core.pins.give_queue(tenant, before, queue)
        core.tenants.give_queue(tenant, queue)

    def _unused_queue(self) -> int:
        core = self._core
        sizes = core.table.queue_sizes(len(core.tenants.queue_owners))
        for queue, owner in enumerate(core.tenants.queue_owners):
            if queue != SHARED_QUEUE and owner is None and not sizes[queue]:
                return queue
        return len(core.tenants.queue_owners)

    # --- what reclaim asks -------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """How many segments must be kept free beside those that reclaim needs to turn one queue
        over: for each tenant that settles in a queue of its own, and for the next."""
        self._look()
        if not self._settling:
            return 0
        return min(SETTLING_MAX, self._settling_now() + bool(self._joining))

    def carries(self, segment: Segment, tenant: TenantState, size_bytes: int) -> bool:
        """Say whether a block of this tenant must outlive this segment, and count it if so."""
        left = self._settling.get(tenant.number, 0)
        if size_bytes > left or not _is_foreign(segment, tenant) or not self._is_within(tenant):
            return False
        self._settling[tenant.number] = left - size_bytes
        return True

    def _is_within(self, tenant: TenantState) -> bool:
        """In segments: of its own queue, or what its blocks need of the shared one."""
        table, tenants = self._core.table, self._core.tenants
        if tenant.queue == SHARED_QUEUE:
            needed = tenant.bytes / table.filled_fraction(SHARED_QUEUE)
            return needed <= self._promised.get(tenant.number, 0)
        return table.queue_sizes(len(tenants.queue_owners))[tenant.queue] <= tenant.quota_bytes

    def _look(self) -> None:
        """Find out who has settled: while anyone has not, and not often on a drive with many
        segments, all of which are looked at. To learn it late costs a segment that is kept free."""
        core = self._core
        changes = core.table.changes
        if not self._settling or changes < self._look_at_changes:
            return
        self._look_at_changes = changes + 1 + len(core.table.all) // SEGMENTS_PER_CHANGE
        unsettled = {
            number
            for segment in core.table.all
            if segment.state in OCCUPIED and not isinstance(segment.tenants, Everyone)
            for number in segment.tenants & self._settling.keys()
            if _is_foreign(segment, core.tenants.all[number])
        }
        self._settling = {n: left for n, left in self._settling.items() if n in unsettled}


def _is_foreign(segment: Segment, tenant: TenantState) -> bool:
    """Say whether a segment is not of the tenant's own queue, nor could be made one of it."""
    if tenant.queue == SHARED_QUEUE:
        return segment.state is State.OPEN or len(segment.tenants) > 1
    return segment.queue != tenant.queue
