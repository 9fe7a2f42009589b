"""Segments and their states. Rule 1: every change of state is a row of TRANSITIONS.

A segment's identity on flash is (sequence, nonce). It changes only by ERASE, which writes and
flushes a new header; so whatever is read back under an identity was written under it.
"""

from collections import Counter, deque
from enum import Enum

from memkv.errors import InternalBug
from memkv.limits import SECTOR_BYTES, SPARE_SEGMENTS
from memkv.store.layout import SUPERBLOCK_AREA_BYTES


class State(Enum):
    """Where a segment is in its life."""

    BLANK = "blank"
    """Nothing on it is ours; erased before use."""
    ERASING = "erasing"
    """Its new header is on the way to flash."""
    FREE = "free"
    """New header flushed, no record."""
    OPEN = "open"
    """Records are appended."""
    SEALING = "sealing"
    """Full; its footer is not written yet."""
    SEALED = "sealed"
    """Full and listed by its footer."""
    RECLAIMING = "reclaiming"
    """Its wanted blocks are being copied away."""
    FAULTY = "faulty"
    """A write or flush failed; what was durable is still read, nothing is appended."""
    RETIRED = "retired"
    """Cannot be erased or read; keeps its old identity, never used again until the next open."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.BLANK: frozenset({State.ERASING}),
    State.ERASING: frozenset({State.FREE, State.RETIRED}),
    State.FREE: frozenset({State.OPEN}),
    State.OPEN: frozenset({State.SEALING, State.FAULTY}),
    State.SEALING: frozenset({State.SEALED, State.FAULTY}),
    State.SEALED: frozenset({State.RECLAIMING, State.FAULTY}),
    State.FAULTY: frozenset({State.RECLAIMING}),
    State.RECLAIMING: frozenset({State.ERASING, State.SEALED, State.FAULTY, State.RETIRED}),
    State.RETIRED: frozenset(),
}
IDENTIFIED = frozenset(
    {State.OPEN, State.SEALING, State.SEALED, State.RECLAIMING, State.FAULTY, State.RETIRED}
)
"""States in which records of the segment may be found after a crash. In BLANK those of an earlier
life may, where recovery found a trailer of it."""
RECLAIMABLE = frozenset({State.SEALED, State.FAULTY})
OCCUPIED = IDENTIFIED - {State.RETIRED}
FREE_SEGMENTS_WANTED = SPARE_SEGMENTS + 1  # reclaim goes on until there are as many


class Everyone(set[int]):
    """The tenants of a segment that could not be read: it may hold records of any of them."""

    def __contains__(self, item: object) -> bool:
        return True


class Segment:
    """One segment. `entries` lists its records while no footer on flash does."""

    __slots__ = (
        "base_sector", "entries", "entry_count", "footer_sector", "horizon", "is_discarding",
        "is_told", "next_sector", "nonce", "number", "queue", "readers", "sequence", "state",
        "tenants", "writes",
    )  # fmt: skip

    def __init__(self, number: int, base_sector: int) -> None:
        self.number = number
        self.base_sector = base_sector
        self.state = State.BLANK
        self.sequence = 0
        self.nonce = 0
        self.queue = 0
        self.next_sector = 1
        self.entries: bytearray | None = None
        self.entry_count = 0
        self.footer_sector = 0
        self.horizon = 0  # access clock when it was sealed: blocks stamped later are hot
        self.readers = 0
        self.writes = 0
        self.tenants: set[int] = set()
        self.is_told = False  # the drive knows that it is free
        self.is_discarding = False  # it is being told

    @property
    def offset(self) -> int:
        """First byte on the device."""
        return self.base_sector * SECTOR_BYTES


class SegmentTable:
    """All segments of a store, and the free ones in the order they were erased."""

    def __init__(self, count: int, segment_bytes: int, sequence_last: int) -> None:
        self.segment_bytes = segment_bytes
        self.sectors = segment_bytes // SECTOR_BYTES
        self._base = SUPERBLOCK_AREA_BYTES // SECTOR_BYTES
        self.all = [Segment(i, self._base + i * self.sectors) for i in range(count)]
        self.free: deque[Segment] = deque()
        self.blank: deque[Segment] = deque(self.all)
        self.count_by_state: Counter[State] = Counter({State.BLANK: count})
        self.sequence_last = sequence_last
        self.changes = 0  # of states, so that nobody looks twice at what has not changed
        self._filled: dict[int, float] = {}  # by queue, as of that many changes:
        self._filled_changes = 0
        self._sizes: list[int] = []
        self._sizes_of = (-1, 0)  # changes, queues

    def move(self, segment: Segment, state: State) -> None:
        """Change a segment's state. Raises InternalBug for a change the table does not know."""
        if state not in TRANSITIONS[segment.state]:
            raise InternalBug(f"segment {segment.number}: {segment.state} to {state}")
        self._set(segment, state)

    def globally_oldest(self) -> Segment | None:
        """Return the segment whose erasure can bring nothing back, whatever the queues."""
        found = [s for s in self.all if s.state in RECLAIMABLE and s.writes == 0]
        return min(found, key=lambda segment: segment.sequence, default=None)

    def adopt(self, segment: Segment, state: State) -> None:
        """Set the state found by recovery; the segment was BLANK until now."""
        self._set(segment, state)
        if state is not State.BLANK:
            self.blank.remove(segment)

    def queue_sizes(self, queue_count: int) -> list[int]:
        """Return the bytes each queue occupies, in whole segments; lost ones are nobody's."""
        if self._sizes_of != (self.changes, queue_count):
            sizes = [0] * queue_count
            for segment in self.all:
                if segment.state in OCCUPIED:
                    sizes[segment.queue] += self.segment_bytes
            self._sizes, self._sizes_of = sizes, (self.changes, queue_count)
        return self._sizes

    def give_queue(self, tenant: int, queue: int) -> None:
        """Count closed segments with records of one tenant alone to a queue."""
        closed = OCCUPIED - {State.OPEN}
        for segment in self.all:
            if segment.state in closed and segment.tenants == {tenant}:
                segment.queue = queue
        self.changes += 1

    def filled_fraction(self, queue: int) -> float:
        """Return which part of a queue's sealed segments is records. The rest is headers, footers,
        and ends that no block fitted into."""
        if self._filled_changes != self.changes:
            self._filled, self._filled_changes = {}, self.changes
        if queue not in self._filled:
            sealed = [
                segment.next_sector - 1
                for segment in self.all
                if segment.queue == queue and segment.state is State.SEALED
            ]
            whole = len(sealed) * self.sectors
            self._filled[queue] = sum(sealed) / whole if whole else 1.0
        return self._filled[queue]

    def _set(self, segment: Segment, state: State) -> None:
        self.changes += 1
        self.count_by_state[segment.state] -= 1
        self.count_by_state[state] += 1
        segment.state = state

    def at_sector(self, sector: int) -> Segment:
        """Return the segment that holds a sector of the device."""
        return self.all[(sector - self._base) // self.sectors]

    def next_sequence(self) -> int:
        """Return a sequence number that was never used before on this drive."""
        self.sequence_last += 1
        return self.sequence_last

    def older_holds(self, segment: Segment, tenant: int) -> bool:
        """Say whether an older segment may bring back records of `tenant` after a crash."""
        return any(
            other.sequence < segment.sequence
            and (other.state in IDENTIFIED or other.state is State.BLANK)
            and tenant in other.tenants
            for other in self.all
        )

    def oldest(self, queue: int) -> Segment | None:
        """Return the segment of a queue that is reclaimed next."""
        found = [
            s
            for s in self.all
            if s.queue == queue and s.state in RECLAIMABLE and s.writes == 0
        ]
        return min(found, key=lambda segment: segment.sequence, default=None)
