"""Why blocks are gone: a bounded memory of what left the store last, and of puts it did not take.

Only in DRAM, and only of what left by its id: a restart, a slot that moved away and a segment whose
list was lost leave nothing here. So "not remembered" means never stored, or gone for long. It costs
nothing where blocks are stored or read: a ghost whose block came back is simply not asked. Tenants
share it: how soon a reason is forgotten depends on all of them, whether a block is there does not.
"""

from memkv.limits import GHOSTS_MAX
from memkv.reasons import MissReason

_TAG_BYTES = 16  # of the block id, as the index has it
_REASON_BITS = 5

assert max(MissReason) < 1 << _REASON_BITS


class Ghosts:
    """The last `ghosts_max` ids that left, oldest forgotten first. Under the store's lock."""

    def __init__(self, ghosts_max: int = GHOSTS_MAX) -> None:
        self._ghosts_max = ghosts_max
        self._ring: list[bytes] = []
        self._next = 0
        self._known: dict[bytes, int] = {}
        """By tenant and id: place in the ring, and reason."""
        self.is_complete = True
        """Whether nothing was forgotten since the store was opened."""

    def __len__(self) -> int:
        return len(self._known)

    def note(self, tenant: int, block_id: bytes, reason: MissReason) -> None:
        """Remember why a block left, instead of what was known of it before."""
        key = tenant.to_bytes(2, "little") + block_id[:_TAG_BYTES]
        if len(self._ring) < self._ghosts_max:
            self._ring.append(key)
        else:
            oldest = self._ring[self._next]
            # An id that was noted again since has a later place.
            if self._known[oldest] >> _REASON_BITS == self._next:
                del self._known[oldest]
                self.is_complete = False
            self._ring[self._next] = key
        self._known[key] = self._next << _REASON_BITS | reason
        self._next = (self._next + 1) % self._ghosts_max

    def reason_of(self, tenant: int, block_id: bytes) -> MissReason:
        """Return why a block is not there; NEVER_STORED where nothing is remembered."""
        known = self._known.get(tenant.to_bytes(2, "little") + block_id[:_TAG_BYTES])
        if known is None:
            return MissReason.NEVER_STORED
        return MissReason(known & (1 << _REASON_BITS) - 1)
