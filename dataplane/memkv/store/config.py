"""What a store is told when it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from memkv.limits import BLOCK_BYTES_MAX, MIB, SLOTS_DEFAULT
from memkv.store.checks import ALL_CHECKS, Checks
from memkv.store.eviction import EvictionPolicy, LruTailsFirst

INDEX_BYTES_PER_BLOCK = 64  # 56 in the native table, and room for what Python keeps of few blocks
INDEX_MEMORY_FRACTION_MAX = 0.125  # the rest of memory holds blocks
RECORD_BYTES_MIN = 8192  # a header and one sector: more blocks than this do not fit the drive


class Randomness(Protocol):
    """Source of nonces and identifiers; `random.SystemRandom` outside tests."""

    def getrandbits(self, k: int, /) -> int:
        """Return `k` random bits."""


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """A tenant with room of its own, which nobody else can take. In force is what fits: see
    `guarantees`."""

    name: str
    flash_bytes: int = 0
    """Rounded up to whole segments."""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Sizes and policies of one store. `memory_bytes` bounds blocks in DRAM and index together.

    With huge pages it is the blocks alone, in whole pages; the index is in ordinary memory beside
    them, of at most an eighth as much.
    """

    memory_bytes: int = 256 * MIB
    block_bytes_max: int = BLOCK_BYTES_MAX
    index_blocks_max: int | None = None
    """None: as many as fit the drive, within an eighth of memory."""
    segment_bytes: int | None = None
    """Only for formatting; None: min(256 MiB, capacity / 64)."""
    worker_uuid: bytes | None = None
    """16 bytes the drive must carry; None: take what it carries (a new one when formatting)."""
    slots: int = SLOTS_DEFAULT
    quotas: tuple[TenantQuota, ...] = ()
    policy: EvictionPolicy = field(default_factory=LruTailsFirst)
    checks: Checks = ALL_CHECKS
    index_tag_bits: int = 128
    index_check_tenant: bool = True
    threads: bool = True
    """False: nothing runs unless the caller pumps; for deterministic tests."""
    on_evict: Callable[[bytes, bytes], None] | None = None
    """Told (tenant tag, block id) of every block evicted from flash, under the store's lock."""
    queue_depth: int = 32
    slot_floors: Mapping[int, int] = field(default_factory=dict)
    """Slot -> generation: what `Store.purge_slots` returned in earlier lives of the store."""
    tenant_floors: Mapping[bytes, int] = field(default_factory=dict)
    """Tenant tag -> generation: what `Store.purge_tenant` returned."""
    discard: bool = True
    """Tell a drive that takes discards what is unused."""
    huge_page_bytes: int = 0
    """Of reserved huge pages (see memkv.io.huge_pages); 0: ordinary pages."""
