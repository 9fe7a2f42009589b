"""Counters of a store, and the frozen record callers get of them."""

from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Counters:
    """What happened since the store was opened."""

    puts: int = 0
    """Blocks accepted."""
    puts_present: int = 0
    """Puts of a block that was there already: no-ops."""
    puts_refused: int = 0
    """Puts refused for want of memory or space."""
    puts_failed: int = 0
    """Accepted blocks lost because a write or flush failed."""
    put_bytes: int = 0
    hits_dram: int = 0
    hits_flash: int = 0
    misses: int = 0
    prefetched_blocks: int = 0
    """Brought from flash into DRAM before anybody asked."""
    prefetches_refused: int = 0
    """Asked for and not done: too many at once, too late, or no memory to spare."""
    expired: int = 0
    corrupt: int = 0
    """Records that failed a check twice and were dropped from the index."""
    rereads: int = 0
    collisions: int = 0
    """Reads that found a sound record of another block with the same tag."""
    timeouts: int = 0
    deletes: int = 0
    evicted_blocks: int = 0
    evicted_bytes: int = 0
    reappended_blocks: int = 0
    reappended_bytes: int = 0
    segments_reclaimed: int = 0
    write_errors: int = 0
    read_errors: int = 0
    flush_errors: int = 0
    flushes: int = 0
    written_bytes: int = 0
    discarded_bytes: int = 0
    """Flash that the drive was told to be unused."""
    discards_refused: int = 0
    """By a drive that said it takes them."""
    tombstones_carried: int = 0
    """Tombstones written again because older records of their tenant still exist."""


@dataclass(frozen=True, slots=True)
class TenantStatistics:
    """One tenant's share."""

    name: str
    """Empty for a tenant known only from flash."""
    tag: bytes
    blocks: int
    flash_bytes: int
    pinned_bytes: int
    quota_bytes: int
    """Flash guaranteed to it alone, in whole segments; 0: it shares."""
    memory_bytes: int = 0
    memory_quota_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """A moment of a store. Gauges first; `counters` are since open."""

    blocks: int
    index_capacity: int
    index_bytes: int
    memory_bytes: int
    memory_free_bytes: int
    memory_clean_bytes: int
    segments: dict[str, int]
    segment_bytes: int
    capacity_bytes: int
    queued_puts: int
    tombstones: int
    tenants: tuple[TenantStatistics, ...]
    quota_bytes_max: int
    """Flash that can be guaranteed to all tenants together."""
    memory_quota_bytes_max: int
    counters: dict[str, int] = field(default_factory=dict)
    drive_state: str = "healthy"
    """healthy, suspect or faulted; see `memkv.store.drive`."""
    drive_problem: str = ""
    """What failed last or, of a drive that is faulted, why it is so."""


def counters_as_dict(counters: Counters) -> dict[str, int]:
    """Return the counters by name."""
    return {item.name: getattr(counters, item.name) for item in fields(counters)}
