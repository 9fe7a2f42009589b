"""Reclaim: turn the oldest segment of the queue that is most over its guarantee into a free one.

    IDLE -> LISTING -> SORTING -> COPYING -> FLUSHING -> DRAINING -> (erased) -> IDLE

One segment at a time up to DRAINING; erasing is `erasure`'s and goes on beside the next one. A
segment becomes FREE only after its new header and trailer were flushed. Safety, in three steps.
(1) Wanted blocks and tombstones are durable elsewhere before these are overwritten.
(2) Within a queue segments are erased oldest first, so when a tombstone's segment is erased no
older record of its key is left in that queue; where an older segment of another queue (a changed
quota) or a retired one still holds records of that tenant, the tombstone is written again. What is
still being erased may be back after a crash: reclaim waits for it before it judges a tombstone.
(3) Reads in flight hold their segment: it is drained before it is erased.
"""

from enum import Enum
from typing import TYPE_CHECKING

from memkv._hotpath import xxh3_64
from memkv.limits import REAPPEND_FRACTION_MAX, SECTOR_BYTES, SPARE_SEGMENTS
from memkv.reasons import MissReason
from memkv.store.copies import BlockCopy
from memkv.store.erasure import Erasures
from memkv.store.eviction import Candidate
from memkv.store.layout import (
    ENTRY,
    Entry,
    Kind,
    aligned_buffer,
    decode_trailer,
    record_sectors,
)
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import FREE_SEGMENTS_WANTED, Segment, State
from memkv.store.tenants import SHARED_QUEUE, TenantState

if TYPE_CHECKING:
    from memkv.store.core import StoreCore

ENTRIES_PER_STEP_MAX = 512  # work under the lock in one go: under a millisecond
COPIES_IN_FLIGHT_MAX = 4
INDEX_FULL_FRACTION = 0.98  # reclaim starts here even when segments are free
RETRIES_MAX = 3  # of one segment, then it is retired


class Phase(Enum):
    """What the reclaim is doing."""

    IDLE = "idle"
    LISTING = "listing"
    SORTING = "sorting"
    COPYING = "copying"
    FLUSHING = "flushing"
    DRAINING = "draining"


class Wanted:
    """A live block of the victim."""

    __slots__ = ("entry", "must_stay", "pinned", "sector", "tenant")

    def __init__(
        self, entry: Entry, tenant: TenantState, sector: int, pinned: bool, must_stay: bool
    ) -> None:
        self.entry = entry
        self.tenant = tenant
        self.sector = sector
        self.pinned = pinned
        self.must_stay = must_stay


class Reclaim:
    """The state machine. `step` is called before each poll; it never waits."""

    def __init__(self, core: "StoreCore") -> None:
        self._core = core
        self._log = core.log
        self._table = core.table
        self._phase = Phase.IDLE
        self._segment: Segment | None = None
        self._entries: list[Entry] = []
        self._next = 0
        self._wanted: list[Wanted] = []
        self._candidates: list[Candidate] = []
        self._kept: list[Wanted] = []
        self._carried: dict[int, list[tuple[bytes, int]]] = {}
        self._copy_lost = False
        self.copies_in_flight = 0
        self._copied = 0
        self._credit_bytes = 0.0
        self._put_bytes_seen = 0
        self._retries = 0
        self._erasures = Erasures(core.log, core.table, core.random.getrandbits)
        self._fruitless = (-1, -1)  # when there was nothing to turn over: changes, blocks

    @property
    def active(self) -> bool:
        """Say whether a segment is being turned over."""
        return self._phase is not Phase.IDLE or len(self._erasures) > 0

    @property
    def waits_for_readers(self) -> bool:
        """Say whether a segment cannot be erased because it is still being read."""
        segment = self._segment
        return self._phase is Phase.DRAINING and segment is not None and segment.readers > 0

    def step(self) -> None:
        """Go as far as possible without waiting for I/O."""
        while self._advance():
            pass
        self._log.reclaiming = self._phase is not Phase.IDLE
        self._log.owed = self._core.quotas.owed

    def _advance(self) -> bool:
        if self._phase is Phase.IDLE:
            return self._start()
        if self._phase is Phase.SORTING:
            return self._sort()
        if self._phase is Phase.COPYING:
            return self._copy()
        if self._phase is Phase.DRAINING:
            return self._drain()
        return False

    # --- choice ------------------------------------------------------------------------------

    def _start(self) -> bool:
        core, table = self._core, self._table
        core.quotas.join()
        crowded = len(core.index) >= core.index.capacity * INDEX_FULL_FRACTION
        if self._enough_free() and not crowded:
            return False
        moment = (table.changes, len(core.index))
        if moment == self._fruitless:
            return False
        if core.drive.refuses():
            return False
        if table.blank and not self._enough_free():
            self._erasures.begin(table.blank.popleft())
            return True
        victim = self._victim()
        if victim is None:
            self._fruitless = moment
            return False
        if victim is not self._segment:
            self._retries = 0
        self._segment = victim
        table.move(victim, State.RECLAIMING)
        self._list(victim)
        return True

    def _enough_free(self) -> bool:
        free = len(self._table.free) + len(self._erasures)
        return free >= FREE_SEGMENTS_WANTED + self._core.quotas.owed

    def _victim(self) -> Segment | None:
        """Return the oldest segment of the queue that is most over its guarantee.

        A queue within its guarantee gives nothing, also when those over it have nothing to give
        just now; only segments lost to a bad drive make that impossible to keep.
        """
        table, tenants = self._table, self._core.tenants
        guarantees = tenants.queue_guarantees
        if not table.free and self._erasures:
            return None  # there will be one to carry things to
        if self._enough_free():  # the index is full, whatever flash is
            over = [tenants.blocks_over(q, INDEX_FULL_FRACTION) for q in range(len(guarantees))]
        else:
            sizes = table.queue_sizes(len(guarantees))
            over = [size - guarantee for size, guarantee in zip(sizes, guarantees, strict=True)]
            over[SHARED_QUEUE] += self._core.quotas.owed * table.segment_bytes
        by_excess = sorted(range(len(over)), key=lambda queue: -over[queue])
        oldest = [s for queue in by_excess if over[queue] > 0 and (s := table.oldest(queue))]
        if not oldest and table.count_by_state[State.RETIRED] and not self._room_for_puts():
            oldest = [s for queue in by_excess if (s := table.oldest(queue))]
        if oldest and not table.free:
            # No room to carry anything away: only a segment that needs nothing carried can go.
            oldest = [s for s in oldest if not self._must_carry(s)]
            return oldest[0] if oldest else table.globally_oldest()
        return oldest[0] if oldest else None

    def _room_for_puts(self) -> bool:
        return len(self._table.free) >= SPARE_SEGMENTS

    def _must_carry(self, segment: Segment) -> bool:
        return any(self._table.older_holds(segment, tenant) for tenant in segment.tenants)

    # --- the list of its records -------------------------------------------------------------

    def _list(self, segment: Segment) -> None:
        if segment.entries is not None:
            self._listed(bytes(segment.entries))
            return
        self._phase = Phase.LISTING
        size = self._table.sectors - segment.footer_sector
        buffer = aligned_buffer(size * SECTOR_BYTES)
        offset = segment.offset + segment.footer_sector * SECTOR_BYTES
        self._log.request(
            IoRequest(IoKind.READ, offset, [buffer], lambda ok, _e: self._footer_read(buffer, ok))
        )

    def _footer_read(self, buffer: memoryview, ok: bool) -> None:
        segment = self._segment
        assert segment is not None
        trailer = decode_trailer(buffer[-SECTOR_BYTES:]) if ok else None
        known = (segment.sequence, segment.footer_sector)
        if trailer is not None and (trailer.sequence, trailer.footer_sector) == known:
            entries = bytes(buffer[: trailer.entry_count * ENTRY.size])
            if xxh3_64(entries) == trailer.footer_sum:
                self._listed(entries)
                return
        self._core.counters.read_errors += 1
        self._give_up(State.RETIRED)

    def _listed(self, entries: bytes) -> None:
        self._entries = [Entry(*fields) for fields in ENTRY.iter_unpack(entries)]
        self._next = 0
        self._wanted, self._candidates, self._kept = [], [], []
        self._carried = {}
        self._copy_lost = False
        self._copied = 0
        self._phase = Phase.SORTING

    # --- what to keep ------------------------------------------------------------------------

    def _sort(self) -> bool:
        segment, core = self._segment, self._core
        assert segment is not None
        now_ns = core.now_ns()
        end = min(len(self._entries), self._next + ENTRIES_PER_STEP_MAX)
        for position in range(self._next, end):
            entry = self._entries[position]
            tenant = core.tenants.get(entry.tenant_tag)
            if entry.kind == Kind.TOMBSTONES:
                if self._erasures:
                    self._next = position
                    return False
                if self._table.older_holds(segment, tenant.number):
                    carried = self._carried.setdefault(tenant.number, [])
                    carried.append((entry.block_id, entry.generation))
                continue
            handle = core.index.find(tenant.number, entry.block_id)
            sector = segment.base_sector + entry.sector
            if handle < 0 or core.index.location(handle)[0] != sector:
                continue
            pinned = core.pins.is_pinned(handle, now_ns)
            size_bytes = record_sectors(entry.length) * SECTOR_BYTES
            must_stay = pinned or core.quotas.carries(segment, tenant, size_bytes)
            self._wanted.append(Wanted(entry, tenant, sector, pinned, must_stay))
            if not must_stay:
                stamp = core.index.stamp(handle)
                self._candidates.append(
                    Candidate(len(self._wanted) - 1, stamp, entry.depth, size_bytes)
                )
        self._next = end
        if end == len(self._entries):
            self._choose(segment)
            self._carry()
        return True

    def _carry(self) -> None:
        for number, tombstones in self._carried.items():
            self._core.counters.tombstones_carried += len(tombstones)
            self._core.tombstones.carry(self._core.tenants.all[number], tombstones)
        self._carried = {}

    def copy_lost(self) -> None:
        """A block or tombstone did not become durable elsewhere: the segment must not be erased."""
        self._copy_lost = True

    def _choose(self, segment: Segment) -> None:
        core = self._core
        new_bytes = core.counters.put_bytes - self._put_bytes_seen
        self._put_bytes_seen = core.counters.put_bytes
        self._credit_bytes += new_bytes * REAPPEND_FRACTION_MAX
        # A segment's worth is all one reclaim can use; more would only save up for a burst.
        self._credit_bytes = min(self._credit_bytes, float(self._table.segment_bytes))
        pinned = [wanted.entry.length for wanted in self._wanted if wanted.pinned]
        # What a changed quota has carried is bounded by that quota, and no debt of anyone.
        # Pins must be kept; what they use is taken from the others. A turn of the log pays for them
        # (PINNED_FRACTION_MAX), but where they lie together they are in debt for a part of it.
        self._credit_bytes -= sum(map(record_sectors, pinned)) * SECTOR_BYTES
        kept = core.config.policy.keep(
            self._candidates, segment.horizon, max(0, int(self._credit_bytes))
        )
        self._credit_bytes -= sum(candidate.size_bytes for candidate in kept)
        positions = {candidate.position for candidate in kept}
        for position, wanted in enumerate(self._wanted):
            if wanted.must_stay:
                self._kept.append(wanted)
            elif position not in positions:
                self.evict(wanted)
        self._kept += [self._wanted[candidate.position] for candidate in kept]
        self._kept.reverse()  # taken from the end
        self._entries, self._wanted, self._candidates = [], [], []
        self._phase = Phase.COPYING

    def evict(self, wanted: Wanted) -> None:
        """Drop a block of the victim unless a newer put owns the key."""
        core = self._core
        handle = core.live_handle(wanted.tenant.number, wanted.entry.block_id, wanted.sector)
        if handle < 0:
            return
        core.remove_entry(handle)
        core.left(wanted.tenant, wanted.entry.block_id, MissReason.EVICTED)
        core.counters.evicted_blocks += 1
        core.counters.evicted_bytes += record_sectors(wanted.entry.length) * SECTOR_BYTES
        if core.config.on_evict is not None:
            core.config.on_evict(wanted.tenant.tag, wanted.entry.block_id)

    # --- copies ------------------------------------------------------------------------------

    def _copy(self) -> bool:
        while self._kept and self.copies_in_flight < COPIES_IN_FLIGHT_MAX:
            wanted = self._kept[-1]
            copy = BlockCopy.begin(self._core, self, wanted)
            if copy is None and self.copies_in_flight:
                return False  # memory comes back when a copy ends
            self._kept.pop()
            if copy is None:
                self.evict(wanted)
        if self._kept or self.copies_in_flight or self._core.tombstones.carrying:
            return False
        if self._copy_lost:
            self._retry()
        elif self._copied:
            self._phase = Phase.FLUSHING
            self._log.barrier(self._flushed)
        else:
            self._phase = Phase.DRAINING
        return True

    def copied(self) -> None:
        """A copy was written; it must be flushed before its source is erased."""
        self._copied += 1

    def _flushed(self, ok: bool) -> None:
        if ok:
            self._phase = Phase.DRAINING
        else:
            self._retry()

    def _retry(self) -> None:
        """The copies are lost and the source is whole: put it back, a few times."""
        self._retries += 1
        segment = self._segment
        assert segment is not None
        if self._retries >= RETRIES_MAX:
            self._give_up(State.RETIRED)
        else:
            self._give_up(State.FAULTY if segment.entries is not None else State.SEALED)

    def _give_up(self, state: State) -> None:
        segment = self._segment
        assert segment is not None
        self._table.move(segment, state)
        if state is State.RETIRED:
            self._core.forget_segment(segment)
        self._phase = Phase.IDLE

    # --- erase -------------------------------------------------------------------------------

    def _drain(self) -> bool:
        segment = self._segment
        assert segment is not None
        if segment.readers or segment.writes:
            return False
        self._core.counters.segments_reclaimed += 1
        self._erasures.begin(segment)
        self._phase = Phase.IDLE
        return True
