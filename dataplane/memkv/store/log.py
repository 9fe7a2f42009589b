"""The log: where the next record goes, what is in flight, and what a flush has made durable.

Order is truth: within a tenant, a record at a later (segment sequence, sector) supersedes earlier
ones. Places are therefore given when a write is issued, under the store's lock, in the order in
which puts and deletes were accepted. Records in flight together may reach flash in any order.

A write that fails ends its segment (FAULTY). A flush that fails ends every segment with records it
should have covered; these records are lost and never trusted again, whatever a later flush says.
"""

from collections import deque
from collections.abc import Callable
from errno import EIO

from memkv._hotpath import xxh3_64
from memkv.limits import KIB, MIB, SECTOR_BYTES, SPARE_SEGMENTS
from memkv.store.drive import DriveWatch
from memkv.store.layout import (
    ENTRY,
    Trailer,
    aligned_buffer,
    footer_sectors,
    sectors_for,
    write_trailer,
)
from memkv.store.requests import IoKind, IoRequest
from memkv.store.segments import Segment, SegmentTable, State
from memkv.store.statistics import Counters
from memkv.store.tenants import TenantState

GROUP_BYTES_MAX = 512 * KIB  # small neighbours share one write; larger writes gain nothing
GROUP_RECORDS_MAX = 32
WRITE_BYTES_IN_FLIGHT_MAX = 64 * MIB  # also bounds the gap recovery must look across
FLUSH_BACKLOG_BYTES_MAX = 256 * MIB  # cached puts are flushed at the latest after so much

Barrier = Callable[[bool], None]


class Append:
    """A record that waits for its place. Subclasses know what it carries and who waits for it."""

    __slots__ = ("cancelled", "entry_count", "sector", "sectors", "segment", "tenant", "urgent")

    def __init__(
        self, tenant: TenantState, sectors: int, entry_count: int = 1, urgent: bool = False
    ) -> None:
        self.tenant = tenant
        self.sectors = sectors
        self.entry_count = entry_count
        self.urgent = urgent  # may use the last free segment: reclaim's own writes
        self.cancelled = False
        self.segment: Segment | None = None
        self.sector = 0

    @property
    def queue(self) -> int:
        """Where it waits: in the queue of its tenant, which may get another one meanwhile."""
        return self.tenant.queue

    def check(self) -> None:
        """Set `cancelled` if the record is not wanted any more; asked just before it is placed."""

    def encode(self, segment: Segment, sector: int) -> tuple[memoryview, bytes]:
        """Write the header for this place; return (record, footer entries)."""
        raise NotImplementedError

    def written(self, ok: bool, error: int) -> None:
        """The write completed, or failed, or was cancelled before it began."""
        raise NotImplementedError

    def durable(self, ok: bool) -> None:
        """A flush covered the record, or failed and the record is lost."""
        raise NotImplementedError


class Log:
    """Appends of every queue. Pure: `poll` gives requests, their `done` takes results."""

    def __init__(
        self, table: SegmentTable, device_uuid: bytes, counters: Counters,
        access_clock: Callable[[], int], drive: DriveWatch,
    ) -> None:  # fmt: skip
        self.table = table
        self.device_uuid = device_uuid
        self.counters = counters
        self.open: list[Segment | None] = [None]
        """By queue, and so are the others; the first is the shared one."""
        self.pending: list[deque[Append]] = [deque()]
        # Reclaim's own records do not wait behind puts that wait for what reclaim makes free.
        self._urgent: list[deque[Append]] = [deque()]
        self.reclaiming = False
        self.owed = 0
        """Free segments that puts leave alone beside the spare ones."""
        self.flush_wanted = False
        self.flushing = False
        self.writes_in_flight = 0
        self._bytes_in_flight = 0
        self._unflushed: list[Append] = []
        self._unflushed_bytes = 0
        self._barriers: list[Barrier] = []
        self._requests: list[IoRequest] = []
        self._drive = drive
        self._turn = 0
        self._access_clock = access_clock

    # --- what callers ask --------------------------------------------------------------------

    def add(self, append: Append) -> None:
        """Queue a record."""
        (self._urgent if append.urgent else self.pending)[append.queue].append(append)

    def barrier(self, done: Barrier) -> None:
        """Call `done(ok)` after a flush that covers every write completed until now."""
        self._barriers.append(done)

    def request(self, request: IoRequest) -> None:
        """Queue an operation that is not a record (headers, footers, reads of reclaim)."""
        self._requests.append(request)

    def idle(self) -> bool:
        """Say whether nothing waits, is in flight or needs a flush that was asked for."""
        return not (
            any(self.pending) or any(self._urgent) or self._requests or self.writes_in_flight
            or self.flushing or self._barriers or self.flush_wanted
        )  # fmt: skip

    def seal_all(self) -> None:
        """Close every open segment, so that the next open reads its footer."""
        for segment in self.open:
            if segment is not None:
                self.seal(segment)

    def give_queue(self, tenant: TenantState, before: int, after: int) -> None:
        """Have a tenant's waiting records wait elsewhere, in their order; `after` may be new."""
        if after == len(self.open):
            self.open.append(None)
            self.pending.append(deque())
            self._urgent.append(deque())
        for queues in (self.pending, self._urgent):
            waiting = queues[before]
            queues[after].extend(append for append in waiting if append.tenant is tenant)
            queues[before] = deque(append for append in waiting if append.tenant is not tenant)

    # --- requests ----------------------------------------------------------------------------

    def poll(self, room: int) -> list[IoRequest]:
        """Return at most `room` operations to start now."""
        requests = self._requests[:room]
        del self._requests[:room]
        if self._drive.refuses():
            self._fail_pending()
        self._start_writes(requests, room)
        if len(requests) < room and not self.flushing and self._flush_due():
            requests.append(self._flush())
        return requests

    def _start_writes(self, requests: list[IoRequest], room: int) -> None:
        """Reclaim's records first, then one group of each queue in turn: none starves another."""
        for pending in self._urgent:
            while self._start_write(pending, requests, room):
                pass
        refused = 0
        while refused < len(self.pending):
            pending = self.pending[self._turn]
            self._turn = (self._turn + 1) % len(self.pending)
            refused = 0 if self._start_write(pending, requests, room) else refused + 1

    def _start_write(
        self, pending: deque[Append], requests: list[IoRequest], room: int
    ) -> bool:
        """Start one write; False when there is none, or no room for it."""
        full = self._bytes_in_flight >= WRITE_BYTES_IN_FLIGHT_MAX
        if not pending or len(requests) >= room or full:
            return False
        group = self._group(pending)
        if group:
            requests.append(self._write(group))
        return group is not None

    def _fail_pending(self) -> None:
        for pending in self._urgent + self.pending:
            while pending:
                pending.popleft().written(False, 0)

    def give_up(self) -> None:
        """Fail all that waits: nothing is written to a FAULTED drive."""
        self.flush_wanted = False
        while not self._is_empty():
            self._fail_pending()
            requests, self._requests = self._requests, []
            for request in requests:
                request.complete(-EIO)
            self._lose([], [])

    def _is_empty(self) -> bool:
        return not (
            any(self.pending) or any(self._urgent) or self._requests or self._unflushed
            or self._barriers
        )  # fmt: skip

    def _group(self, pending: deque[Append]) -> list[Append] | None:
        """Take records that lie side by side; None when there is no segment for the first."""
        group: list[Append] = []
        size_bytes = 0
        while pending and len(group) < GROUP_RECORDS_MAX:
            append = pending[0]
            append.check()
            if append.cancelled:
                pending.popleft().written(False, 0)
                continue
            if group and size_bytes + append.sectors * SECTOR_BYTES > GROUP_BYTES_MAX:
                break
            if self.reclaiming and not append.urgent and len(self.table.free) <= self.owed:
                # What reclaim has begun to copy fits the last segment, if nobody else writes there.
                return group or None
            segment = self.open[append.queue]
            if segment is not None and not self._fits(segment, append):
                if group:
                    break
                self.seal(segment)
                segment = None
            if segment is None:
                if self._awaits_discard():
                    return group or None
                segment = self._open_next(append)
                if segment is None and append.urgent and not group:
                    # Reclaim holds the last segment: waiting for one would wait for itself.
                    pending.popleft().written(False, 0)
                    continue
                if segment is None:
                    return group or None
            pending.popleft()
            append.segment = segment
            append.sector = segment.base_sector + segment.next_sector
            segment.next_sector += append.sectors
            segment.entry_count += append.entry_count
            size_bytes += append.sectors * SECTOR_BYTES
            group.append(append)
        return group

    def _fits(self, segment: Segment, append: Append) -> bool:
        footer = footer_sectors(segment.entry_count + append.entry_count)
        return segment.next_sector + append.sectors + footer <= self.table.sectors

    def _awaits_discard(self) -> bool:
        """Say whether the next segment is just being discarded (see `Discards`, rule 2)."""
        return bool(self.table.free) and self.table.free[0].is_discarding

    def _open_next(self, append: Append) -> Segment | None:
        reserve = 0 if append.urgent else SPARE_SEGMENTS - 1 + self.owed
        if len(self.table.free) <= reserve:
            return None
        segment = self.table.free.popleft()
        self.table.move(segment, State.OPEN)
        segment.queue = append.queue
        segment.next_sector = 1
        segment.entries = bytearray()
        segment.entry_count = 0
        segment.tenants = set()
        self.open[append.queue] = segment
        return segment

    def _write(self, group: list[Append]) -> IoRequest:
        segment = group[0].segment
        assert segment is not None
        assert segment.entries is not None
        buffers = []
        for append in group:
            record, entries = append.encode(segment, append.sector)
            segment.entries += entries
            segment.tenants.add(append.tenant.number)
            buffers.append(record)
        request = IoRequest(
            IoKind.WRITE, group[0].sector * SECTOR_BYTES, buffers,
            lambda ok, error: self._written(group, segment, request.size_bytes, ok, error),
        )  # fmt: skip
        segment.writes += 1
        self.writes_in_flight += 1
        self._bytes_in_flight += request.size_bytes
        return request

    def _written(
        self, group: list[Append], segment: Segment, size_bytes: int, ok: bool, error: int
    ) -> None:
        segment.writes -= 1
        self.writes_in_flight -= 1
        self._bytes_in_flight -= size_bytes
        if ok:
            self._unflushed += group
            self._unflushed_bytes += size_bytes
            self.counters.written_bytes += size_bytes
        else:
            self.counters.write_errors += 1
            self.quarantine(segment)
        for append in group:
            append.written(ok, error)
        if segment.state is State.SEALING and segment.writes == 0:
            self.seal_when_durable(segment)

    def quarantine(self, segment: Segment) -> None:
        """Append nothing more to a segment whose write or flush failed."""
        if segment.state in (State.OPEN, State.SEALING, State.SEALED):
            self.table.move(segment, State.FAULTY)
        if self.open[segment.queue] is segment:
            self.open[segment.queue] = None

    # --- flush -------------------------------------------------------------------------------

    def _flush_due(self) -> bool:
        return bool(
            self.flush_wanted
            or self._barriers
            or self._unflushed_bytes >= FLUSH_BACKLOG_BYTES_MAX
        )

    def _flush(self) -> IoRequest:
        covered, barriers = self._unflushed, self._barriers
        self._unflushed, self._barriers = [], []
        self._unflushed_bytes = 0
        self.flush_wanted = False
        self.flushing = True
        self.counters.flushes += 1
        return IoRequest(
            IoKind.FLUSH, 0, [], lambda ok, _error: self._flushed(covered, barriers, ok)
        )

    def _flushed(self, covered: list[Append], barriers: list[Barrier], ok: bool) -> None:
        self.flushing = False
        if not ok:
            self.counters.flush_errors += 1
            self._lose(covered, barriers)
            return
        for append in covered:
            append.durable(True)
        for barrier in barriers:
            barrier(True)

    def _lose(self, covered: list[Append], barriers: list[Barrier]) -> None:
        """Give up what a flush should have covered, and what completed since it began: the kernel
        reports an error once, and it may be hit by it too."""
        covered = covered + self._unflushed
        barriers = barriers + self._barriers
        self._unflushed, self._barriers = [], []
        self._unflushed_bytes = 0
        for append in covered:
            assert append.segment is not None
            self.quarantine(append.segment)
        for append in covered:
            append.durable(False)
        for barrier in barriers:
            barrier(False)

    # --- footers -----------------------------------------------------------------------------

    def seal(self, segment: Segment) -> None:
        """Append nothing more to an open segment; its footer follows."""
        self.table.move(segment, State.SEALING)
        segment.horizon = self._access_clock()
        self.open[segment.queue] = None
        if segment.writes == 0:
            self.seal_when_durable(segment)

    def seal_when_durable(self, segment: Segment) -> None:
        """Write the footer of a SEALING segment after a flush: what it lists must be durable."""
        self.barrier(lambda ok: self._write_footer(segment, ok))

    def _write_footer(self, segment: Segment, flushed: bool) -> None:
        if segment.state is not State.SEALING or not flushed:
            self.quarantine(segment)
            return
        entries = segment.entries
        assert entries is not None
        size = sectors_for(len(entries))
        buffer = aligned_buffer((size + 1) * SECTOR_BYTES)
        buffer[: len(entries)] = entries
        segment.footer_sector = self.table.sectors - size - 1
        trailer = Trailer(
            self.device_uuid, segment.number, segment.sequence, segment.nonce,
            segment.footer_sector, len(entries) // ENTRY.size, segment.next_sector,
            xxh3_64(entries),
        )  # fmt: skip
        write_trailer(buffer[size * SECTOR_BYTES :], trailer)
        offset = segment.offset + segment.footer_sector * SECTOR_BYTES
        segment.writes += 1
        self.request(
            IoRequest(
                IoKind.WRITE, offset, [buffer], lambda ok, _error: self._footer_done(segment, ok)
            )
        )

    def _footer_done(self, segment: Segment, ok: bool) -> None:
        segment.writes -= 1
        if segment.state is not State.SEALING:
            return
        if ok:
            self.table.move(segment, State.SEALED)
            segment.entries = None
        else:
            self.counters.write_errors += 1
            self.quarantine(segment)
