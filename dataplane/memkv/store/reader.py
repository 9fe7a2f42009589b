"""Reading: one reader for each thread, with a device queue of its own.

A reader looks blocks up under the store's lock, reads flash without it, and judges what came. An
extent that is being read belongs to the store until its completion arrives, however long after the
deadline that is. Memory of others (`read_into`) is waited for instead: a call that read into it
ends when the drive is done with it.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Literal

from memkv.io.device import DeviceQueue
from memkv.limits import BLOCK_ID_BYTES, SECTOR_BYTES
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.arena import Extent
from memkv.store.core import Found, StoreCore
from memkv.store.direct import BOUNCE_SECTORS, ENDS_BYTES, Target
from memkv.store.engine import Engine
from memkv.store.flights import Batch, Flight
from memkv.store.layout import RecordHeader, record_sectors
from memkv.store.records import Flaw, judge, payload_ok
from memkv.tenant import TenantScope

WINDOW_ITEMS = 16  # looked up together: bounds what a slow consumer of results holds in DRAM
REAP_NS_MAX = 60_000_000_000  # another thread takes a millisecond to take reads back
REAP_WAIT_MS = 1  # by the store's writer, which has a segment to wait for
ATTEMPTS_MAX = 2  # transient errors of a bus go away when the record is read again

Source = Literal["dram", "flash"]


class ReadResult:
    """One block's answer. With OK, `payload` is valid until `release` is called (once or more)."""

    __slots__ = (
        "_engine", "_extent", "header", "length", "payload", "placed", "source", "status",
    )  # fmt: skip

    def __init__(self, status: Status, length: int = 0) -> None:
        self.status = status
        self.placed = False
        """With OK: the bytes lie in the caller's memory already, and `payload` is empty."""
        self.length = length
        """Of the block, with OK and BUFFER_TOO_SMALL."""
        self.header: RecordHeader | None = None
        """length, root, sums, depth, prefix_id and the rest; with OK."""
        self.payload: memoryview = memoryview(b"")
        self.source: Source = "dram"
        self._extent: Extent | None = None
        self._engine: Engine | None = None

    def hold(self, engine: Engine, extent: Extent, header: RecordHeader, source: Source) -> None:
        """Take over the caller's reference to the extent."""
        self._engine, self._extent = engine, extent
        self.header, self.source, self.length = header, source, header.length
        self.payload = extent.payload(header.length)

    def release(self) -> None:
        """Give the buffer back; `payload` must not be used any more."""
        extent, self._extent = self._extent, None
        if extent is not None and self._engine is not None:
            self.payload = memoryview(b"")
            self._engine.release(extent)


Answer = tuple[int, ReadResult]


class StoreReader:
    """Reads for one thread. Close it before the store."""

    def __init__(self, engine: Engine, core: StoreCore, queue: DeviceQueue) -> None:
        self._engine = engine
        self._core = core
        self._queue = queue
        self._flights: dict[int, Flight] = {}
        self._token = 0
        self._arrived: list[tuple[int, int]] = []  # came back while reads were started
        self._calls = 0  # under way in the reader's thread
        self._reaped_elsewhere = False
        queue.register_arena(core.arena.memory)
        engine.readers.append(self)

    def read(
        self, tenant: TenantScope, ids: bytes, max_lengths: Sequence[int] | None, deadline_ns: int,
        verify: bool = False, background: bool = False, ahead: bool = False,
    ) -> Iterator[Answer]:  # fmt: skip
        """Yield (position, result) for each id, in the order in which they become known.

        Never waits past the deadline: what is not there by then is TIMEOUT. A result with OK holds
        its buffer until released; an iterator that is dropped leaves nothing behind. `verify` sums
        every payload before it is answered. `background` reads leave no trace: blocks get neither
        younger nor a place in DRAM by them. `ahead`: nobody asked for it yet.
        """
        self._begin()
        try:
            self._reap(0)
            with self._engine.lock:
                owner = self._core.tenants.find(tenant.tag)
                if owner is not None and not background:
                    self._core.touch(owner, ids)
            if owner is None:
                yield from self._all_miss(ids)
                return
            batch = Batch(owner, ids, max_lengths, deadline_ns, verify)
            batch.background, batch.ahead = background, ahead
            yield from self._run(batch)
        finally:
            self._calls -= 1

    def read_into(
        self, tenant: TenantScope, ids: bytes, targets: Sequence[Target], deadline_ns: int,
        verify: bool = False, guard_fd: int = -1,
    ) -> Generator[Answer, None, None]:  # fmt: skip
        """As `read`, but blocks on flash go straight into `targets` where they can (`placed`).

        What comes otherwise (from DRAM, or where the target is not aligned) is the caller's to
        copy. Nothing is written into a target after its result was yielded, nor after the iterator
        ended: for that it may wait beyond the deadline until the drive is done. A target whose
        result is not OK holds bytes of no value, none of them another tenant's.

        A block read this way gets no place in DRAM, unless it came back so soon that DRAM would
        still hold it, had it been kept the last time: then it is read through DRAM and stays. So
        what is used often gets hot, and what is read once does not push it out.

        `guard_fd`: the socket whose end tells the targets' owner that nobody writes any more.
        """
        self._begin()
        try:
            self._reap(0)
            soon: list[bool] = []
            with self._engine.lock:
                owner = self._core.tenants.find(tenant.tag)
                if owner is not None:
                    soon = self._core.come_back_soon(owner, ids)
                    self._core.touch(owner, ids)
            if owner is None:
                yield from self._all_miss(ids)
                return
            batch = Batch(owner, ids, [target.room for target in targets], deadline_ns, verify)
            if not verify:  # sums are checked where all of a block lies in one piece
                batch.targets = [
                    None if again else target for target, again in zip(targets, soon, strict=True)
                ]
            batch.guard_fd = guard_fd
            yield from self._run(batch)
        finally:
            self._calls -= 1

    @property
    def is_reading(self) -> bool:
        """Whether a read of flash is under way."""
        return bool(self._flights)

    def _begin(self) -> None:
        with self._engine.lock:
            self._await_reaping()
            self._calls += 1

    def _await_reaping(self) -> None:
        if self._reaped_elsewhere:
            deadline_ns = self._core.now_ns() + REAP_NS_MAX
            self._engine.wait(lambda: not self._reaped_elsewhere, deadline_ns)

    def reap_if_idle(self) -> bool:
        """Take back what an earlier call left in flight, while the reader's own thread has nothing
        for it to do: for the store's writer, which waits for a segment that is still read. True if
        anything came back."""
        with self._engine.lock:
            if self._calls or not self._flights:
                return False
            self._reaped_elsewhere = True
        before = len(self._flights)
        try:
            self._reap(REAP_WAIT_MS)
        finally:
            with self._engine.lock:
                self._reaped_elsewhere = False
                self._engine.progress()
        return len(self._flights) < before

    def _run(self, batch: Batch) -> Iterator[Answer]:
        try:
            while batch.todo or batch.flights:
                if self._core.now_ns() >= batch.deadline_ns:
                    yield from self._give_up(batch)
                    return
                yield from self._plan(batch)
                yield from self._collect(batch)
        finally:
            self._abandon(batch)
            if batch.is_guarded:
                self._queue.guard(-1)

    def hit(self, tenant: TenantScope, block_id: bytes, max_length: int) -> ReadResult | None:
        """Return a block that is in DRAM and no longer than `max_length`, as `read` would.

        None leaves no trace, whatever the reason: the caller goes on with `read`.
        """
        if self._flights:
            return None  # `read` takes back first what an earlier call left behind
        with self._engine.lock:
            extent = self._core.take_hit(tenant.tag, block_id, max_length)
        if extent is None or extent.header is None:
            return None
        result = ReadResult(Status.OK)
        result.hold(self._engine, extent, extent.header, "dram")
        return result

    def close(self) -> None:
        """Wait for reads in flight and give their buffers back."""
        self._begin()
        while self._flights:
            self._reap(1000)
        with self._engine.lock:
            self._engine.readers.remove(self)
        self._queue.close()

    # --- planning ----------------------------------------------------------------------------

    def _plan(self, batch: Batch) -> Iterator[Answer]:
        """Look up the next items; start reads for those on flash."""
        ready: list[tuple[int, Extent | None]] = []
        started = batch.stalled = False
        with self._engine.lock:
            while batch.todo and len(ready) < WINDOW_ITEMS and self._room():
                position = batch.todo[-1]
                found = self._core.lookup(batch.owner, batch.block_id(position))
                if found is None or found.extent is not None:
                    ready.append((position, None if found is None else found.extent))
                elif self._fly(batch, position, found):
                    started = True
                elif batch.flights or ready:
                    batch.stalled = not ready  # until a read lands, there is no memory
                    break
                elif not self._wait_for_memory(batch, found):
                    batch.todo.pop()
                    yield position, ReadResult(Status.BUSY)
                    return
                else:
                    continue
                batch.todo.pop()
        if started:
            self._arrived += self._queue.wait(0, 0)
        try:
            while ready:
                position, extent = ready.pop(0)
                if extent is None:
                    yield position, self._miss()
                else:
                    answer = self._from_dram(batch, position, extent)
                    if answer is not None:
                        yield position, answer
        finally:
            for _, extent in ready:
                if extent is not None:
                    self._engine.release(extent)

    def _room(self) -> bool:
        return len(self._flights) < self._engine.depth

    def _wait_for_memory(self, batch: Batch, found: Found) -> bool:
        core = self._core

        def ready() -> bool:
            return core.arena.room_sectors(batch.owner.number) >= found.sectors

        if ready():
            return False  # there is room, but in pieces: waiting would not end
        return self._engine.wait(ready, batch.deadline_ns)

    def _fly(self, batch: Batch, position: int, found: Found) -> bool:
        assert found.segment is not None
        target = batch.target(position, found.sectors)
        if target is not None and not self._guarded(batch):
            batch.targets = target = None
        sectors = found.sectors if target is None else BOUNCE_SECTORS
        extent = self._core.arena.allocate(sectors, batch.owner.number)
        if extent is None:
            return False
        found.segment.readers += 1
        place = self._core.place(found.segment, found.sector)
        flight = Flight(
            position, batch.owner, batch.block_id(position), found.segment, place, extent,
            found.sectors, target,
        )  # fmt: skip
        self._token += 1
        self._flights[self._token] = flight
        batch.flights.add(self._token)
        self._queue.read(self._token, place.device_offset, flight.views)
        return True

    def _guarded(self, batch: Batch) -> bool:
        if not batch.is_guarded and batch.guard_fd >= 0:
            batch.is_guarded = self._queue.guard(batch.guard_fd)
        return batch.is_guarded or batch.guard_fd < 0

    def _from_dram(self, batch: Batch, position: int, extent: Extent) -> ReadResult | None:
        """Answer from DRAM; None puts the item back because the copy in DRAM failed its sums."""
        header = extent.header
        assert header is not None
        if batch.verify and not payload_ok(extent.view, header):
            with self._engine.lock:
                self._core.counters.corrupt += 1
                self._core.drop_buffer(extent)
                self._engine.release(extent)
            batch.todo.append(position)
            return None
        self._core.counters.hits_dram += 1
        return self._answer(batch, position, extent, header, "dram")

    def _answer(
        self, batch: Batch, position: int, extent: Extent, header: RecordHeader, source: Source
    ) -> ReadResult:
        if batch.too_small(position, header.length):
            self._engine.release(extent)
            return ReadResult(Status.BUFFER_TOO_SMALL, header.length)
        result = ReadResult(Status.OK)
        result.hold(self._engine, extent, header, source)
        return result

    def _all_miss(self, ids: bytes) -> Iterator[Answer]:
        for position in range(len(ids) // BLOCK_ID_BYTES):
            yield position, self._miss()

    def _miss(self) -> ReadResult:
        self._core.counters.misses += 1
        return ReadResult(Status.MISS)

    # --- completions -------------------------------------------------------------------------

    def _collect(self, batch: Batch) -> Iterator[Answer]:
        """Take completions; wait for one when there is nothing else to do."""
        if not batch.flights:
            return
        left_ms = max(0, (batch.deadline_ns - self._core.now_ns()) // 1_000_000)
        wait = 0 if batch.todo and self._room() and not batch.stalled else 1
        wait = 0 if self._arrived else wait
        results, self._arrived = self._arrived, []
        results += self._queue.wait(wait, min(left_ms + 1, 60_000) if wait else 0)
        answers: list[Answer] = []
        try:
            for token, result in results:
                answers += self._landed(batch, token, result)
            while answers:
                yield answers.pop(0)
        finally:
            for _, answer in answers:
                answer.release()

    def _landed(self, batch: Batch, token: int, result: int) -> list[Answer]:
        flight = self._flights[token]
        if not flight.wanted:
            self._end(token, flight, result)
            return []
        whole = result == flight.sectors * SECTOR_BYTES
        found = self._judge(flight, batch.verify) if whole else None
        if isinstance(found, RecordHeader):
            hit = self._hit if flight.target is None else self._placed
            return [(flight.position, hit(batch, token, flight, found))]
        if found is Flaw.OTHER_BLOCK:
            with self._engine.lock:
                self._core.counters.collisions += 1
            batch.flights.discard(token)
            self._end(token, flight)
            return [(flight.position, self._miss())]
        if flight.attempts < ATTEMPTS_MAX:
            flight.attempts += 1
            self._core.counters.rereads += 1
            self._queue.read(token, flight.place.device_offset, flight.views)
            return []
        with self._engine.lock:
            self._core.counters.corrupt += whole
            self._core.counters.read_errors += not whole
            if not whole:
                self._core.drive.unread(flight.segment.number, -min(result, 0))
            sector = flight.place.device_offset // SECTOR_BYTES
            reason = MissReason.CORRUPT if whole else MissReason.LOST
            self._core.drop_at(flight.owner, flight.block_id, sector, reason)
        batch.flights.discard(token)
        self._end(token, flight)
        return [(flight.position, ReadResult(Status.CORRUPT))]

    def _judge(self, flight: Flight, verify: bool) -> RecordHeader | Flaw:
        found = judge(
            flight.extent.view, flight.place, self._core.config.checks,
            block_id=flight.block_id, tenant_tag=flight.owner.tag, payload=verify,
        )  # fmt: skip
        if isinstance(found, RecordHeader):
            needed = record_sectors(found.length)
            # Of a record that is read around DRAM the last page must be where it was looked for.
            if needed > flight.sectors or (flight.target is not None and needed != flight.sectors):
                return Flaw.LENGTH
        return found

    def _hit(
        self, batch: Batch, token: int, flight: Flight, header: RecordHeader
    ) -> ReadResult:
        batch.flights.discard(token)
        del self._flights[token]
        core = self._core
        with self._engine.lock:
            flight.segment.readers -= 1
            expired = header.expiry_s and header.expiry_s <= core.clock.wall_s()
            sector = flight.place.device_offset // SECTOR_BYTES
            if expired:
                core.drop_at(flight.owner, flight.block_id, sector, MissReason.EXPIRED)
                core.counters.expired += 1
            else:
                if batch.background:
                    flight.extent.header = header
                else:
                    core.promote(flight.owner, flight.block_id, sector, flight.extent, header)
                core.counters.prefetched_blocks += batch.ahead
                core.counters.hits_flash += not batch.ahead
            if core.reclaim.active:
                self._engine.wake()
        if expired:
            self._engine.release(flight.extent)
            return self._miss()
        return self._answer(batch, flight.position, flight.extent, header, "flash")

    def _placed(
        self, batch: Batch, token: int, flight: Flight, header: RecordHeader
    ) -> ReadResult:
        """Complete a block that was read into its target."""
        target, core = flight.target, self._core
        assert target is not None
        body = flight.sectors * SECTOR_BYTES - ENDS_BYTES
        batch.flights.discard(token)
        with self._engine.lock:
            expired = header.expiry_s and header.expiry_s <= core.clock.wall_s()
            if expired:
                sector = flight.place.device_offset // SECTOR_BYTES
                core.drop_at(flight.owner, flight.block_id, sector, MissReason.EXPIRED)
                core.counters.expired += 1
            else:
                core.counters.hits_flash += 1
        result = ReadResult(Status.OK, header.length)
        if expired:
            result = self._miss()
        elif header.length > target.room:
            result = ReadResult(Status.BUFFER_TOO_SMALL, header.length)
        else:
            rest = header.length - body
            target.put(body, flight.extent.view[SECTOR_BYTES : SECTOR_BYTES + rest])
            result.header, result.source, result.placed = header, "flash", True
        self._release(token, flight)
        return result

    def _end(self, token: int, flight: Flight, result: int = 0) -> None:
        """Give everything of a flight back that brought nothing."""
        if result < 0:  # of one that nobody waits for: a drive that hangs fails late
            with self._engine.lock:
                self._core.drive.unread(flight.segment.number, -result)
        if flight.target is not None:
            flight.target.wipe(flight.sectors)
        self._release(token, flight)

    def _release(self, token: int, flight: Flight) -> None:
        del self._flights[token]
        with self._engine.lock:
            flight.segment.readers -= 1
            if self._core.reclaim.active:
                self._engine.wake()
            self._engine.release(flight.extent)

    def _give_up(self, batch: Batch) -> Iterator[Answer]:
        """Answer TIMEOUT for the rest; what flies is taken back when it lands."""
        positions = [self._flights[token].position for token in batch.flights] + batch.todo[::-1]
        self._abandon(batch)
        batch.todo.clear()
        self._core.counters.timeouts += len(positions)
        for position in positions:
            yield position, ReadResult(Status.TIMEOUT)

    def _abandon(self, batch: Batch) -> None:
        """Leave the flights of a batch to themselves, but wait for those into foreign memory."""
        for token in batch.flights:
            self._flights[token].wanted = False
        foreign = [token for token in batch.flights if self._flights[token].target is not None]
        batch.flights.clear()
        while any(token in self._flights for token in foreign):
            self._reap(1000)

    def _reap(self, timeout_ms: int) -> None:
        """Take back what earlier calls left in flight."""
        if self._flights:
            results, self._arrived = self._arrived, []
            results += self._queue.wait(1 if timeout_ms and not results else 0, timeout_ms)
            for token, result in results:
                self._end(token, self._flights[token], result)
