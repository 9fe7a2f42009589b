"""DRAM of the store: one mapping, cut into extents of whole sectors.

An extent holds a record as it lies on flash: header page, then payload. It is in use while someone
holds a reference (a reader sending it, a write in flight, a put being filled) or while an index
entry names it. Without references but named it is clean: a cache entry, evicted oldest first.
Nothing here locks; the store's lock is held around every call.
"""

import mmap
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from memkv.limits import MIB, SECTOR_BYTES
from memkv.store.layout import RecordHeader

UNNAMED = -1


class Extent:
    """Contiguous sectors of the arena. `handle` is the index entry that names it, or UNNAMED."""

    __slots__ = ("handle", "header", "references", "sectors", "start", "view")

    def __init__(self, start: int, sectors: int, view: memoryview) -> None:
        self.start = start
        self.sectors = sectors
        self.view = view
        self.references = 1
        self.handle = UNNAMED
        self.header: RecordHeader | None = None

    def payload(self, length: int) -> memoryview:
        """Return the block's bytes; valid while a reference is held."""
        return self.view[SECTOR_BYTES : SECTOR_BYTES + length]


class Arena:
    """Allocator of extents: first fit over a sorted free list, neighbours joined at once."""

    def __init__(self, size_bytes: int, forget: Callable[[int], None]) -> None:
        """`forget(handle)` is told when a clean extent is evicted from under an index entry."""
        self.sectors = size_bytes // SECTOR_BYTES
        self.memory = mmap.mmap(-1, self.sectors * SECTOR_BYTES)
        if self.sectors * SECTOR_BYTES >= 64 * MIB and hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self.memory)
        self.sectors_free = self.sectors
        self.sectors_clean = 0
        self._forget = forget
        self._starts = [0]
        self._sizes = [self.sectors]
        self._clean: OrderedDict[int, Extent] = OrderedDict()
        self._named: dict[int, Extent] = {}

    def allocate(self, sectors: int) -> Extent | None:
        """Return an extent with one reference, evicting clean ones as needed; None: no room now."""
        while (start := self._take(sectors)) < 0:
            if not self._clean:
                return None
            _, victim = self._clean.popitem(last=False)
            self.sectors_clean -= victim.sectors
            self._forget(victim.handle)
            self._unname(victim)
            self._give(victim)
        first = start * SECTOR_BYTES
        return Extent(start, sectors, self.view[first : first + sectors * SECTOR_BYTES])

    def get(self, start: int) -> Extent:
        """Return the named extent an index entry points at."""
        return self._named[start]

    def hold(self, extent: Extent) -> None:
        """Take a reference."""
        if extent.references == 0:
            del self._clean[extent.start]
            self.sectors_clean -= extent.sectors
        extent.references += 1

    def release(self, extent: Extent) -> None:
        """Give a reference back; after the last, an unnamed extent is free, a named one clean."""
        assert extent.references > 0, "an extent was released twice"
        extent.references -= 1
        if extent.references:
            return
        if extent.handle == UNNAMED:
            self._give(extent)
        else:
            self._clean[extent.start] = extent
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
            del self._clean[start]
            self.sectors_clean -= extent.sectors
            self._give(extent)

    def _unname(self, extent: Extent) -> None:
        del self._named[extent.start]
        extent.handle = UNNAMED

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

    def _give(self, extent: Extent) -> None:
        start, sectors = extent.start, extent.sectors
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
        """Assert that the free list is sorted, joined and accounts for every free sector."""
        assert sum(self._sizes) == self.sectors_free
        spans = list(zip(self._starts, self._sizes, strict=True))
        for (start, size), (following, _) in pairwise(spans):
            assert start + size < following
        assert all(extent.references == 0 for extent in self._clean.values())
        assert self.sectors_clean == sum(extent.sectors for extent in self._clean.values())
