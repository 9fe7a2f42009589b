"""DRAM of the store: one mapping, cut into extents of whole sectors.

An extent holds a record as it lies on flash: header page, then payload. It is in use while someone
holds a reference (a reader sending it, a write in flight, a put being filled) or while an index
entry names it. Without references but named it is clean: a cache entry, evicted oldest first.
Nothing here locks; the store's lock is held around every call.

Tenants may be guaranteed sectors. What such a tenant holds up to its guarantee, in use or clean, is
never taken for others; and what it does not hold yet stays within reach: free, or clean extents
that may be evicted for it.
"""

import mmap
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

from memkv.io.huge_pages import map_huge_pages, whole_pages
from memkv.limits import MIB, SECTOR_BYTES
from memkv.store.layout import RecordHeader

UNNAMED = -1
EVERYONE = -1
"""Instead of a tenant's number: memory of nobody in particular."""


class Extent:
    """Contiguous sectors of the arena. `handle` is the index entry that names it, or UNNAMED."""

    __slots__ = (
        "handle", "header", "references", "sectors", "stamp", "start", "tenant", "view",
    )  # fmt: skip

    def __init__(self, start: int, sectors: int, view: memoryview, tenant: int = EVERYONE) -> None:
        self.start = start
        self.sectors = sectors
        self.view = view
        self.tenant = tenant
        self.references = 1
        self.handle = UNNAMED
        self.stamp = 0  # when it became clean
        self.header: RecordHeader | None = None

    def payload(self, length: int) -> memoryview:
        """Return the block's bytes; valid while a reference is held."""
        return self.view[SECTOR_BYTES : SECTOR_BYTES + length]


class Clean:
    """Clean extents of one tenant with a guarantee, or of everyone else; the oldest first."""

    __slots__ = ("extents", "sectors")

    def __init__(self) -> None:
        self.extents: OrderedDict[int, Extent] = OrderedDict()
        self.sectors = 0

    def add(self, extent: Extent) -> None:
        self.extents[extent.start] = extent
        self.sectors += extent.sectors

    def remove(self, extent: Extent) -> None:
        del self.extents[extent.start]
        self.sectors -= extent.sectors

    def oldest(self) -> Extent | None:
        return next(iter(self.extents.values()), None)


class Arena:
    """Allocator of extents: first fit over a sorted free list, neighbours joined at once."""

    def __init__(
        self, size_bytes: int, point: Callable[[int, int], None], page_bytes: int = 0
    ) -> None:
        """`point(handle, start)` is told where the clean extent of an index entry lies from now on;
        -1: it was evicted.

        `page_bytes`: of reserved huge pages, whole ones of which are used; 0: ordinary pages.
        ConfigError when there are too few of them.
        """
        if page_bytes:
            self.memory = map_huge_pages(whole_pages(size_bytes, page_bytes), page_bytes)
        else:
            self.memory = mmap.mmap(-1, size_bytes // SECTOR_BYTES * SECTOR_BYTES)
            if len(self.memory) >= 64 * MIB and hasattr(mmap, "MADV_HUGEPAGE"):
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.sectors = len(self.memory) // SECTOR_BYTES
        self.view = memoryview(self.memory)
        self.sectors_free = self.sectors
        self.sectors_clean = 0
        self._point = point
        self._starts = [0]
        self._sizes = [self.sectors]
        self._named: dict[int, Extent] = {}
        self._guarantees: Mapping[int, int] = {}
        """Tenant -> sectors."""
        self._held: defaultdict[int, int] = defaultdict(int)
        self._clean: dict[int, Clean] = {EVERYONE: Clean()}
        self._stamp = 0

    # --- guarantees --------------------------------------------------------------------------

    def guarantee(self, sectors: Mapping[int, int]) -> None:
        """Keep so many sectors for these tenants from now on, by number, and none for others."""
        clean = [extent for group in self._clean.values() for extent in group.extents.values()]
        self._guarantees = dict(sectors)
        self._clean = {EVERYONE: Clean(), **{tenant: Clean() for tenant in sectors}}
        for extent in sorted(clean, key=lambda extent: extent.stamp):
            self._group(extent).add(extent)

    def held_sectors(self, tenant: int) -> int:
        """Return the sectors that a tenant's blocks take, in use or clean."""
        return self._held.get(tenant, 0)

    def room_sectors(self, tenant: int) -> int:
        """Return how many sectors are free or may be evicted for a tenant, without what others are
        guaranteed and do not hold yet."""
        room = self.sectors_free + self._clean[EVERYONE].sectors
        for other, guarantee in self._guarantees.items():
            clean, over = self._clean[other].sectors, self._held[other] - guarantee
            if other == tenant:
                room += clean
            else:
                room += min(clean, over) if over > 0 else over
        return room

    def _group(self, extent: Extent) -> Clean:
        return self._clean.get(extent.tenant) or self._clean[EVERYONE]

    def _victim(self, tenant: int) -> Extent | None:
        """Return the oldest clean extent that may be evicted for a tenant."""
        if not self._guarantees:
            return self._clean[EVERYONE].oldest()
        found: Extent | None = None
        for group, clean in self._clean.items():
            oldest = clean.oldest()
            if oldest is None or (found is not None and oldest.stamp > found.stamp):
                continue
            left = self._held[group] - oldest.sectors
            if group in (EVERYONE, tenant) or left >= self._guarantees[group]:
                found = oldest
        return found

    # --- extents -----------------------------------------------------------------------------

    def allocate(self, sectors: int, tenant: int = EVERYONE) -> Extent | None:
        """Return an extent with one reference, evicting clean ones as needed; None: no room now."""
        if self._guarantees and self.room_sectors(tenant) < sectors:
            return None
        while (start := self._take(sectors)) < 0:
            victim = self._victim(tenant)
            if victim is not None:
                self._evict(victim)
            elif not self._move_aside(sectors):
                return None
        self._held[tenant] += sectors
        return Extent(start, sectors, self._view(start, sectors), tenant)

    def get(self, start: int) -> Extent:
        """Return the named extent an index entry points at."""
        return self._named[start]

    def hold(self, extent: Extent) -> None:
        """Take a reference."""
        if extent.references == 0:
            self._group(extent).remove(extent)
            self.sectors_clean -= extent.sectors
        extent.references += 1

    def release(self, extent: Extent) -> None:
        """Give a reference back; after the last, an unnamed extent is free, a named one clean."""
        assert extent.references > 0, "an extent was released twice"
        extent.references -= 1
        if extent.references:
            return
        if extent.handle == UNNAMED:
            self._free(extent)
        else:
            self._stamp += 1
            extent.stamp = self._stamp
            self._group(extent).add(extent)
            self.sectors_clean += extent.sectors

    def name(self, extent: Extent, handle: int) -> None:
        """Let an index entry name the extent. The caller holds a reference."""
        extent.handle = handle
        self._named[extent.start] = extent

    def drop(self, start: int) -> None:
        """The index entry is gone: the extent lives only as long as its references."""
        extent = self._named[start]
        self._unname(extent)
        if extent.references == 0:
            self._group(extent).remove(extent)
            self.sectors_clean -= extent.sectors
            self._free(extent)

    def _unname(self, extent: Extent) -> None:
        del self._named[extent.start]
        extent.handle = UNNAMED

    def _evict(self, extent: Extent) -> None:
        self._point(extent.handle, -1)
        self.drop(extent.start)

    def _free(self, extent: Extent) -> None:
        self._held[extent.tenant] -= extent.sectors
        self._give(extent.start, extent.sectors)

    def _view(self, start: int, sectors: int) -> memoryview:
        return self.view[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES]

    # --- making room by moving ---------------------------------------------------------------

    def _move_aside(self, sectors: int) -> bool:
        """Join free sectors by moving the clean extents between them; only guaranteed ones are
        left then. False: there is no such place. What fits nowhere else is evicted after all."""
        if self.sectors_free < sectors:
            return False
        moved = self._narrowest(sectors)
        if moved is None:
            return False
        kept = [(extent, bytes(extent.view)) for extent in moved]
        for extent in moved:
            del self._named[extent.start]
            self._group(extent).remove(extent)
            self._give(extent.start, extent.sectors)
        start = self._take(sectors)
        for extent, content in kept:
            self._place(extent, content)
        self._give(start, sectors)
        return True

    def _place(self, extent: Extent, content: bytes) -> None:
        extent.start = self._take(extent.sectors)
        if extent.start < 0:
            self._point(extent.handle, -1)
            extent.handle = UNNAMED
            self._held[extent.tenant] -= extent.sectors
            self.sectors_clean -= extent.sectors
            return
        extent.view = self._view(extent.start, extent.sectors)
        extent.view[:] = content
        self._stamp += 1
        extent.stamp = self._stamp
        self._named[extent.start] = extent
        self._group(extent).add(extent)
        self._point(extent.handle, extent.start)

    def _narrowest(self, sectors: int) -> list[Extent] | None:
        """Return the clean extents within the run of free and clean sectors that is long enough and
        has the fewest clean ones."""
        spans: list[tuple[int, int, Extent | None]] = [
            (start, size, None) for start, size in zip(self._starts, self._sizes, strict=True)
        ]
        for clean in self._clean.values():
            spans += [(e.start, e.sectors, e) for e in clean.extents.values()]
        spans.sort(key=lambda span: span[0])
        best: list[Extent] | None = None
        fewest = self.sectors + 1
        first = total = cost = 0
        for last, (start, size, extent) in enumerate(spans):
            if last > first and spans[last - 1][0] + spans[last - 1][1] != start:
                first, total, cost = last, 0, 0
            total += size
            cost += size if extent is not None else 0
            while total - spans[first][1] >= sectors:
                total -= spans[first][1]
                cost -= spans[first][1] if spans[first][2] is not None else 0
                first += 1
            if total >= sectors and cost < fewest:
                fewest = cost
                best = [e for _, _, e in spans[first : last + 1] if e is not None]
        return best

    # --- the free list -----------------------------------------------------------------------

    def _take(self, sectors: int) -> int:
        for i, size in enumerate(self._sizes):
            if size >= sectors:
                start = self._starts[i]
                if size == sectors:
                    del self._starts[i], self._sizes[i]
                else:
                    self._starts[i] += sectors
                    self._sizes[i] -= sectors
                self.sectors_free -= sectors
                return start
        return -1

    def _give(self, start: int, sectors: int) -> None:
        self.sectors_free += sectors
        i = bisect_left(self._starts, start)
        if i < len(self._starts) and start + sectors == self._starts[i]:
            sectors += self._sizes[i]
            del self._starts[i], self._sizes[i]
        if i > 0 and self._starts[i - 1] + self._sizes[i - 1] == start:
            self._sizes[i - 1] += sectors
        else:
            self._starts.insert(i, start)
            self._sizes.insert(i, sectors)

    def check_invariants(self) -> None:
        """Assert that the free list is sorted, joined and accounts for every free sector, and that
        every guarantee is held or within reach."""
        assert sum(self._sizes) == self.sectors_free
        spans = list(zip(self._starts, self._sizes, strict=True))
        for (start, size), (following, _) in pairwise(spans):
            assert start + size < following
        clean = [extent for group in self._clean.values() for extent in group.extents.values()]
        assert all(extent.references == 0 for extent in clean)
        assert self.sectors_clean == sum(extent.sectors for extent in clean)
        assert self.sectors - self.sectors_free == sum(self._held.values())
