"""What the core looks like at a moment, as the record that callers get."""

from memkv.limits import SECTOR_BYTES
from memkv.store.core import StoreCore
from memkv.store.statistics import StoreStatistics, TenantStatistics, counters_as_dict


def moment_of(core: StoreCore) -> StoreStatistics:
    """Return a moment of the store. The lock is held."""
    tenants = tuple(
        TenantStatistics(
            t.name, t.tag, t.blocks, t.bytes, t.pinned_bytes, t.quota_bytes,
            core.arena.held_sectors(t.number) * SECTOR_BYTES, t.memory_quota_bytes,
        )
        for t in core.tenants.all
    )  # fmt: skip
    states = {state.value: count for state, count in core.table.count_by_state.items() if count}
    return StoreStatistics(
        blocks=len(core.index),
        index_capacity=core.index.capacity,
        index_bytes=core.index.memory_bytes,
        memory_bytes=core.arena.sectors * SECTOR_BYTES,
        memory_free_bytes=core.arena.sectors_free * SECTOR_BYTES,
        memory_clean_bytes=core.arena.sectors_clean * SECTOR_BYTES,
        segments=states,
        segment_bytes=core.table.segment_bytes,
        capacity_bytes=core.superblock.capacity_bytes,
        drive_state=core.drive.state.value,
        drive_problem=core.drive.cause,
        queued_puts=sum(map(len, core.log.pending)),
        tombstones=len(core.tombstones),
        tenants=tenants,
        quota_bytes_max=core.usable_bytes(),
        memory_quota_bytes_max=core.quotas.memory_bytes_max(),
        counters=counters_as_dict(core.counters),
    )
