"""What a worker counts, as samples for its supervisor (see `metrics`)."""

from collections.abc import Iterator, Mapping, Sequence

from memkv.node.messages import Sample, TenantUsage
from memkv.node.metrics import counter, gauge
from memkv.node.moves.keeper import MoveStatistics
from memkv.node.statistics import ConnectionCounts, WorkerStatistics
from memkv.rdma.rails import RailStatistics
from memkv.store.drive import DriveState
from memkv.store.statistics import StoreStatistics

US_PER_S = 1_000_000
TENANTS_REPORTED_MAX = 64  # of those without a guarantee

_EVENTS: Mapping[str, str] = {
    "accepted": "Connections accepted",
    "refused_sessions": "Sessions refused: too many, or the ticket does not allow them",
    "refused_lanes": "Lanes refused",
    "refused_connections": "Connections closed at once: too many",
    "protocol_errors": "Connections closed because the peer broke the protocol",
    "timed_out": "Connections closed because the peer did not go on",
    "tls_errors": "Connections closed because their TLS failed: no TLS, or not believed",
    "stalled": "Connections closed because the peer did not take or send bytes",
    "internal_errors": "Requests that met a bug",
    "map_behind": "Requests sent by a newer shard map than the worker has",
}
_STORE_GAUGES: Mapping[str, tuple[str, str]] = {
    "blocks": ("memkv_store_blocks", "Blocks stored"),
    "index_capacity": ("memkv_store_index_blocks_max", "Blocks the index has room for"),
    "index_bytes": ("memkv_store_index_bytes", "Memory of the index"),
    "memory_bytes": ("memkv_store_memory_bytes", "Memory for blocks"),
    "memory_free_bytes": ("memkv_store_memory_free_bytes", "Memory for blocks that is unused"),
    "memory_clean_bytes": (
        "memkv_store_memory_clean_bytes",
        "Memory of blocks that are on flash too",
    ),
    "capacity_bytes": ("memkv_store_capacity_bytes", "Flash managed"),
    "queued_puts": ("memkv_store_queued_puts", "Blocks accepted and not yet on flash"),
    "tombstones": ("memkv_store_tombstones", "Deletes remembered"),
}
_STORE_COUNTERS: Mapping[str, str] = {
    "puts": "Blocks accepted",
    "puts_present": "Puts of a block that was there already: no-ops",
    "puts_refused": "Puts refused for want of memory or space",
    "puts_failed": "Accepted blocks lost because a write or flush failed",
    "put_bytes": "Payload of accepted blocks",
    "hits_dram": "Gets served from DRAM",
    "hits_flash": "Gets served from flash",
    "misses": "Gets of blocks that are not stored",
    "prefetched_blocks": "Blocks brought from flash into DRAM before anybody asked for them",
    "prefetches_refused": "Blocks not prefetched: too many at once, too late, or no DRAM to spare",
    "expired": "Blocks dropped because their time was over",
    "corrupt": "Records that failed a check twice and were dropped: look at the drive",
    "rereads": "Records read again because a check failed",
    "collisions": "Reads that found another block with the same tag: a miss",
    "timeouts": "Reads that were not done by their deadline",
    "deletes": "Deletes accepted",
    "evicted_blocks": "Blocks evicted to make room",
    "evicted_bytes": "Flash of evicted blocks",
    "reappended_blocks": "Blocks written again because they were worth keeping",
    "reappended_bytes": "Flash written for blocks worth keeping",
    "segments_reclaimed": "Segments emptied for new blocks",
    "write_errors": "Writes that the drive refused",
    "read_errors": "Reads that the drive refused",
    "flush_errors": "Flushes that failed; what they covered is given up, never trusted",
    "flushes": "Flushes of the drive",
    "written_bytes": "Bytes written to flash, headers and copies included",
    "discarded_bytes": "Flash that the drive was told to be unused (TRIM)",
    "discards_refused": "Discards that the drive refused; one that refuses all is told no more",
    "tombstones_carried": "Deletes written again because older records still exist",
}


def server_samples(statistics: WorkerStatistics) -> Iterator[Sample]:
    """Yield what a worker's server counts."""
    yield gauge("memkv_sessions", "Open sessions", statistics.sessions)
    yield gauge("memkv_lanes", "Open payload lanes", statistics.lanes)
    yield gauge("memkv_connections", "Open connections", statistics.connections)
    text = "Pieces of memory that clients on this machine share"
    yield gauge("memkv_local_regions", text, statistics.local_regions)
    text = "Memory of clients that is mapped; theirs, though some counts it as the worker's"
    yield gauge("memkv_local_mapped_bytes", text, statistics.local_mapped_bytes)
    yield counter("memkv_received_bytes", "Payload of puts", statistics.bytes_in)
    yield counter("memkv_sent_bytes", "Payload of gets", statistics.bytes_out)
    for (opcode, status), count in sorted(statistics.items.items()):
        labels = {"operation": opcode.name.lower(), "status": status.name.lower()}
        yield counter("memkv_items", "Blocks and keys by operation and result", count, **labels)
    for opcode, buckets in sorted(statistics.latency_us.items()):
        yield _latency(opcode.name.lower(), buckets)
    yield from event_samples(statistics.events)


def event_samples(events: ConnectionCounts) -> Iterator[Sample]:
    """Yield what happened to connections."""
    for name, text in _EVENTS.items():
        yield counter(f"memkv_connection_{name}", text, getattr(events, name))


def rail_samples(rails: RailStatistics) -> Iterator[Sample]:
    """Yield what there is to say about RDMA."""
    text = "RDMA ports that clients can use"
    yield gauge("memkv_rdma_rails_usable", text, len(rails.usable))
    text = "RDMA ports and devices that clients cannot use"
    yield gauge("memkv_rdma_rails_unusable", text, len(rails.problems))
    text = "Connections to clients, one a lane"
    yield gauge("memkv_rdma_queue_pairs", text, rails.queue_pairs)
    text = "Connections to clients that broke: an error, a deadline, or the client was gone"
    yield counter("memkv_rdma_broken_queue_pairs", text, rails.broken)


def move_samples(moves: MoveStatistics) -> Iterator[Sample]:
    """Yield what there is to say about slots that move."""
    pulls = moves.pulls
    text = "Slots not served yet: their deletes are still being asked for"
    yield gauge("memkv_worker_closed_slots", text, moves.closed_slots)
    text = "Slots on their way here whose blocks are not all copied"
    yield gauge("memkv_worker_moving_slots", text, moves.moving_slots)
    yield counter("memkv_pulled_blocks", "Blocks copied from previous owners", pulls.blocks)
    yield counter("memkv_pulled_bytes", "Payload copied from previous owners", pulls.bytes)
    text = "Blocks not copied: deleted or expired meanwhile, or no room"
    yield counter("memkv_pull_refused_blocks", text, pulls.refused)
    text = "Blocks not copied because their sums failed"
    yield counter("memkv_pull_corrupt_blocks", text, pulls.corrupt)
    text = "Pulls that broke off and are tried again"
    yield counter("memkv_pull_failures", text, pulls.failures)


def store_samples(statistics: StoreStatistics) -> Iterator[Sample]:
    """Yield what a worker's store counts."""
    for field, (name, text) in _STORE_GAUGES.items():
        yield gauge(name, text, getattr(statistics, field))
    for drive_state in DriveState:
        text = "1 for what the drive is good for; faulted: it is written no more"
        value = int(statistics.drive_state == drive_state.value)
        yield gauge("memkv_store_drive_state", text, value, state=drive_state.value)
    for state, count in sorted(statistics.segments.items()):
        yield gauge("memkv_store_segments", "Segments by state", count, state=state)
    for name, count in sorted(statistics.counters.items()):
        yield counter(f"memkv_store_{name}", _STORE_COUNTERS[name], count)
    for tenant in statistics.tenants:
        labels = {"tenant": tenant.name or tenant.tag.hex()}
        yield gauge("memkv_tenant_blocks", "Blocks of a tenant", tenant.blocks, **labels)
        yield gauge("memkv_tenant_flash_bytes", "Flash of a tenant", tenant.flash_bytes, **labels)
        yield gauge("memkv_tenant_pinned_bytes", "Pinned flash", tenant.pinned_bytes, **labels)
        text = "Flash guaranteed to a tenant alone; 0: it shares"
        yield gauge("memkv_tenant_quota_bytes", text, tenant.quota_bytes, **labels)
        yield gauge("memkv_tenant_memory_bytes", "DRAM of a tenant", tenant.memory_bytes, **labels)
        text = "DRAM guaranteed to a tenant alone; 0: it shares"
        yield gauge("memkv_tenant_memory_quota_bytes", text, tenant.memory_quota_bytes, **labels)


def tenant_usages(statistics: StoreStatistics) -> Iterator[TenantUsage]:
    """Yield the tenants with a guarantee, and of the others those with the most flash."""
    named = [tenant for tenant in statistics.tenants if tenant.name]
    guaranteed = [t for t in named if t.quota_bytes or t.memory_quota_bytes]
    others = [t for t in named if not t.quota_bytes and not t.memory_quota_bytes]
    others.sort(key=lambda tenant: (-tenant.flash_bytes, tenant.name))
    for tenant in (*guaranteed, *others[:TENANTS_REPORTED_MAX]):
        yield TenantUsage(
            tenant.name, tenant.flash_bytes, tenant.quota_bytes, tenant.memory_bytes,
            tenant.memory_quota_bytes,
        )  # fmt: skip


def _latency(operation: str, buckets: Sequence[int]) -> Sample:
    """Bucket b holds requests that took under 2^b us; the sum is of the buckets' middles."""
    cumulative: list[tuple[float, int]] = []
    seen, total_us = 0, 0.0
    for exponent, count in enumerate(buckets):
        seen += count
        total_us += count * 0.75 * (1 << exponent)
        last = exponent == len(buckets) - 1
        cumulative.append((float("inf") if last else (1 << exponent) / US_PER_S, seen))
    text = "Time from the whole request to the end of the response"
    return Sample(
        "memkv_request_duration_seconds",
        text,
        {"operation": operation},
        total_us / US_PER_S,
        tuple(cumulative),
    )
