"""The store without threads or I/O: every method is called under one lock and never waits.

`poll` returns the operations to start, and each takes its result by `complete`. The driver
(`engine.py`) brings both to a device; readers bring their own queue and use `lookup` and `finish`.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from memkv._hotpath import BlockIndex, slots_of
from memkv.checksum import SUM_BYTES, chunk_count
from memkv.clock import Clock
from memkv.limits import BLOCK_ID_BYTES, ROOT_BYTES, SECTOR_BYTES
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.arena import EVERYONE, UNNAMED, Arena, Extent
from memkv.store.config import Randomness, StoreConfig
from memkv.store.discards import Discards
from memkv.store.drive import DriveTraits, DriveWatch
from memkv.store.feeds import NO_PREFIX, REMOVED, STORED, Feeds
from memkv.store.ghosts import Ghosts
from memkv.store.layout import RecordHeader, Superblock, record_sectors
from memkv.store.log import Log
from memkv.store.pins import Pins
from memkv.store.puts import Put, PutState
from memkv.store.quotas import Quotas
from memkv.store.reclaim import Reclaim
from memkv.store.records import Place
from memkv.store.requests import IoRequest, PutRequest
from memkv.store.segments import FREE_SEGMENTS_WANTED, Segment, SegmentTable
from memkv.store.statistics import Counters
from memkv.store.tenants import Tenants, TenantState
from memkv.store.tombstones import Tombstones
from memkv.tenant import TenantScope

GENERATION_OPEN_SHIFT = 40  # upper bits: how often the store was opened; lower: puts since
_STAMP_MASK = 0xFFFF_FFFF  # stamps of the index are modulo 2**32
SEQUENCE_OPEN_SHIFT = 32  # likewise: a segment that could not be read has no later number than ours
EXPIRY_S_MAX = 0xFFFFFFFF  # of the format, in 2106; a longer life ends there
PENDING_SECTOR = 0  # in the index: written nowhere yet; the superblock lies there


class Found(NamedTuple):
    """Where a block is: an extent with a reference for the caller, or a place on flash."""

    handle: int
    extent: Extent | None
    segment: Segment | None
    sector: int
    sectors: int


class StoreCore:
    """State of one open store."""

    def __init__(
        self, config: StoreConfig, superblock: Superblock, index: BlockIndex, arena_bytes: int,
        clock: Clock, random: Randomness, traits: DriveTraits,
    ) -> None:  # fmt: skip
        self.config = config
        self.superblock = superblock
        self.index = index
        self.random = random
        self.clock = clock
        self.counters = Counters()
        self.access_clock = 1
        self.table = SegmentTable(
            superblock.segment_count, superblock.segment_bytes,
            superblock.incarnation << SEQUENCE_OPEN_SHIFT,
        )  # fmt: skip
        self.arena = Arena(arena_bytes, index.set_buffer, config.huge_page_bytes)
        self.reserve = self.arena.allocate(record_sectors(self.block_bytes_max))
        self.tenants = Tenants(self.usable_bytes(), index.capacity)
        self.drive = DriveWatch(self.now_ns, superblock.segment_count, traits)
        self.log = Log(
            self.table, superblock.device_uuid, self.counters, lambda: self.access_clock, self.drive
        )
        self.pins = Pins(self.table, self.tenants)
        self.quotas = Quotas(self)
        self.tombstones = Tombstones(self)
        self.reclaim = Reclaim(self)
        self.discards = Discards(self.table, self.counters, self.now_ns, traits.discards)
        self.undurable: dict[int, Put] = {}
        self.ghosts = Ghosts()
        self.feeds = Feeds(random)
        self.slot_floors = dict(config.slot_floors)  # records up to these generations are gone
        self.tenant_floors = dict(config.tenant_floors)
        self._generation = superblock.incarnation << GENERATION_OPEN_SHIFT
        self._last_prefix = b""
        self.quotas.set(config.quotas)

    # --- small facts -------------------------------------------------------------------------

    @property
    def block_bytes_max(self) -> int:
        """Longest block that fits a segment beside its header and footer."""
        room = self.superblock.segment_bytes - 4 * SECTOR_BYTES
        return min(self.config.block_bytes_max, room)

    def usable_bytes(self) -> int:
        """Return the bytes of segments that can hold blocks: all but the spare ones."""
        count = self.superblock.segment_count - FREE_SEGMENTS_WANTED
        return count * self.superblock.segment_bytes

    def now_ns(self) -> int:
        """Return monotonic time."""
        return self.clock.monotonic_ns()

    @property
    def generation(self) -> int:
        """The largest number given so far."""
        return self._generation

    def next_generation(self) -> int:
        """Return a number larger than that of every put and delete accepted before."""
        self._generation += 1
        return self._generation

    # --- the driver --------------------------------------------------------------------------

    def poll(self, room: int) -> list[IoRequest]:
        """Return at most `room` operations to start now."""
        self.drive.look()
        if self.drive.is_faulted:
            self.log.give_up()
            self.discards.stop()
            return []
        self.reclaim.step()
        return self.log.poll(room)

    def idle(self) -> bool:
        """Say whether there is nothing to do until somebody calls."""
        return self.log.idle() and (self.drive.is_faulted or not self.reclaim.active)

    # --- put ---------------------------------------------------------------------------------

    def check_put(self, request: PutRequest) -> Status:
        """Return OK, or why this can never be stored."""
        if len(request.block_id) != BLOCK_ID_BYTES or len(request.root) != ROOT_BYTES:
            return Status.INVALID
        if request.length < 1:
            return Status.INVALID
        if request.length > self.block_bytes_max:
            return Status.TOO_LARGE
        if len(request.sums) != SUM_BYTES * chunk_count(request.length):
            return Status.INVALID
        return Status.OK

    def begin_put(self, tenant: TenantScope, request: PutRequest) -> Put | Status:
        """Return a put to fill, PRESENT at once for a known block, or BUSY, NO_SPACE,
        UNAVAILABLE or MISS."""
        owner = self.tenants.get(tenant.tag, tenant.name)
        handle = self.valid_handle(owner, request.block_id)
        if handle >= 0:
            self.counters.puts_present += 1
            self.index.touch(handle, self.access_clock)
            waiting = self.undurable.get(handle)
            if not request.durable or waiting is None:
                return Status.OK
            self.want_durable(waiting)
            put = Put(self, owner, request, waiting.extent)
            put.state, put.alias = PutState.PRESENT, waiting
            return put
        if self._outlived(owner, request):
            return Status.MISS
        if self.drive.is_faulted:
            self.refused(owner, request.block_id)
            return Status.UNAVAILABLE
        if self.drive.refuses() or not self._room_in_index(owner):
            self.refused(owner, request.block_id)
            return Status.NO_SPACE
        extent = self.arena.allocate(record_sectors(request.length), owner.number)
        if extent is None:
            return Status.BUSY
        return Put(self, owner, request, extent)

    def refused(self, owner: TenantState, block_id: bytes) -> None:
        """Count a put that is not taken, and remember it."""
        self.counters.puts_refused += 1
        self.ghosts.note(owner.number, block_id, MissReason.NOT_ADMITTED)

    def left(self, owner: TenantState, block_id: bytes, reason: MissReason) -> None:
        """Remember that a block is gone, and tell who watches."""
        self.ghosts.note(owner.number, block_id, reason)
        if owner.feed is not None:
            owner.feed.add(REMOVED, block_id, NO_PREFIX, 0)

    def _outlived(self, owner: TenantState, request: PutRequest) -> bool:
        """Say whether a copy comes too late: its block expired, or was deleted here meanwhile."""
        if request.expiry_s and request.expiry_s <= self.clock.wall_s():
            return True
        since = request.unless_deleted_since
        if since is None:
            return False
        slot = self._slot_of(request.block_id)
        return (
            self.slot_floors.get(slot, 0) > since
            or self.tenant_floors.get(owner.tag, 0) > since
            or self.tombstones.deleted_since(owner.tag, request.block_id, since)
        )

    def _slot_of(self, block_id: bytes) -> int:
        return int.from_bytes(slots_of(block_id, self.config.slots), "little")

    def _room_in_index(self, owner: TenantState) -> bool:
        free = self.index.capacity - len(self.index)
        return free > 0 and self.tenants.admits(owner, free)

    def commit(self, put: Put) -> Status:
        """Make a filled put visible and queue its write."""
        assert put.state is PutState.FILLING
        request, owner = put.request, put.tenant
        handle = self.valid_handle(owner, request.block_id)
        if handle >= 0:  # somebody else's put of this key was complete first
            put.state = PutState.PRESENT
            put.alias = self.undurable.get(handle)
            if request.durable:
                self.want_durable(put)
            self.arena.release(put.extent)
            self.counters.puts_present += 1
            return Status.OK
        if self._outlived(owner, request):
            put.state = PutState.ABORTED
            self.arena.release(put.extent)
            return Status.MISS
        expiry_s = self.clock.wall_s() + request.ttl_s if request.ttl_s else request.expiry_s
        expiry_s = min(expiry_s, EXPIRY_S_MAX)
        if request.prefix_id != self._last_prefix:
            self._last_prefix = request.prefix_id
            self.access_clock += 1
        slot = self._slot_of(request.block_id)
        handle = self.index.insert(
            owner.number, request.block_id, slot, PENDING_SECTOR, put.sectors, expiry_s,
            request.depth, self.access_clock,
        )  # fmt: skip
        if handle < 0:
            put.state = PutState.ABORTED
            self.arena.release(put.extent)
            self.refused(owner, request.block_id)
            return Status.NO_SPACE
        put.prepare(self.next_generation(), expiry_s)
        put.state = PutState.QUEUED
        put.handle = handle
        self.undurable[handle] = put
        self.index.set_buffer(handle, put.extent.start)
        self.arena.name(put.extent, handle)
        self.tenants.add_block(owner, put.sectors * SECTOR_BYTES)
        self.tombstones.forget(owner.tag, request.block_id)
        if owner.feed is not None:
            owner.feed.add(STORED, request.block_id, request.prefix_id, request.depth)
        self.counters.puts += 1
        self.counters.put_bytes += put.sectors * SECTOR_BYTES
        self.log.add(put)
        return Status.OK

    def want_durable(self, put: Put) -> None:
        """Ask for the flush that makes a committed put durable."""
        put = put.alias or put
        if put.state in (PutState.QUEUED, PutState.WRITTEN):
            put.request = put.request._replace(durable=True)
            if put.state is PutState.WRITTEN:
                self.log.flush_wanted = True

    def abort(self, put: Put) -> None:
        """Give up a put that was not committed; harmless afterwards."""
        if put.state is PutState.FILLING:
            put.state = PutState.ABORTED
            self.arena.release(put.extent)

    # --- entries -----------------------------------------------------------------------------

    def valid_handle(self, owner: TenantState, block_id: bytes) -> int:
        """Return the handle of a block that has not expired, dropping one that has."""
        handle = self.index.find(owner.number, block_id)
        if handle >= 0:
            expiry_s = self.index.expiry_s(handle)
            if expiry_s and expiry_s <= self.clock.wall_s():
                self.counters.expired += 1
                self.remove_entry(handle)
                self.left(owner, block_id, MissReason.EXPIRED)
                return -1
        return handle

    def live_handle(self, tenant: int, block_id: bytes, sector: int) -> int:
        """Return the handle of a block if its record is the one at `sector`, else -1."""
        handle = self.index.find(tenant, block_id)
        if handle >= 0 and self.index.location(handle)[0] != sector:
            return -1
        return handle

    def remove_entry(self, handle: int) -> None:
        """Forget a block: index, buffer, pin, counters; a write that has not begun is cancelled."""
        buffer = self.index.buffer(handle)
        if buffer >= 0:
            self.arena.drop(buffer)
        put = self.undurable.pop(handle, None)
        if put is not None and put.state is PutState.QUEUED and put.segment is None:
            put.cancelled = True
        self.pins.unpin(handle)
        owner = self.tenants.all[self.index.tenant(handle)]
        self.tenants.remove_block(owner, self.index.location(handle)[1] * SECTOR_BYTES)
        self.index.remove(handle)

    def forget_segment(self, segment: Segment) -> None:
        """Drop every block of a segment whose list cannot be read."""
        first, end = segment.base_sector, segment.base_sector + self.table.sectors
        self.feeds.lost_track()
        for handle in range(self.index.handles_end):
            try:
                sector = self.index.location(handle)[0]
            except ValueError:
                continue
            if first <= sector < end:
                self.remove_entry(handle)

    # --- memory of reclaim -------------------------------------------------------------------

    def take_reserve(self) -> Extent | None:
        """Lend the one extent kept for reclaim, which must go on when puts have filled memory."""
        extent, self.reserve = self.reserve, None
        return extent

    def give_back(self, extent: Extent) -> None:
        """Release a copy's extent, into the reserve if that was lent."""
        sectors = record_sectors(self.block_bytes_max)
        lent = extent.tenant == EVERYONE and extent.sectors == sectors
        if self.reserve is None and lent and extent.references == 1 and extent.handle == UNNAMED:
            self.reserve = extent
        else:
            self.arena.release(extent)

    # --- lookup ------------------------------------------------------------------------------

    def touch(self, owner: TenantState, block_ids: bytes) -> None:
        """Stamp a batch so that its head is the youngest."""
        handles = self.index.find_many(owner.number, block_ids, self.clock.wall_s())
        self.index.touch_many(handles, self.access_clock)
        self.access_clock += len(handles) // 4

    def come_back_soon(self, owner: TenantState, block_ids: bytes) -> list[bool]:
        """Say of each block whether it was used so lately that DRAM, had it been kept there, would
        still hold it: the blocks asked for since then, of its size, fit. Ask before `touch`."""
        found: list[bool] = []
        handles = self.index.find_many(owner.number, block_ids, self.clock.wall_s())
        for (handle,) in struct.iter_unpack("<i", handles):
            if handle < 0:
                found.append(False)
                continue
            uses = (self.access_clock - self.index.stamp(handle)) & _STAMP_MASK
            found.append(uses * self.index.location(handle)[1] <= self.arena.sectors)
        return found

    def lookup(self, owner: TenantState, block_id: bytes) -> Found | None:
        """Find one block for reading. In DRAM the caller gets a reference to its extent."""
        handle = self.valid_handle(owner, block_id)
        if handle < 0:
            return None
        buffer = self.index.buffer(handle)
        sector, sectors = self.index.location(handle)
        if buffer < 0 and not self.drive.is_readable:
            return None
        if buffer < 0:
            return Found(handle, None, self.table.at_sector(sector), sector, sectors)
        extent = self.arena.get(buffer)
        header = extent.header
        assert header is not None
        checks = self.config.checks
        if (checks.block_id and header.block_id != block_id) or (
            checks.tenant and header.tenant_tag != owner.tag
        ):
            self.counters.collisions += 1
            return None
        self.arena.hold(extent)
        return Found(handle, extent, None, sector, sectors)

    def without_unreadable(self, owner: TenantState, ids: bytes, found: bytes) -> bytes:
        """Take from what `exists` found the blocks that `lookup` does not give."""
        kept = []
        for position, (there,) in enumerate(struct.iter_unpack("<i", found)):
            block_id = ids[position * BLOCK_ID_BYTES :][:BLOCK_ID_BYTES]
            handle = self.index.find(owner.number, block_id) if there == 1 else -1
            kept.append(int(handle >= 0 and self.index.buffer(handle) >= 0))
        return struct.pack(f"<{len(kept)}i", *kept)

    def take_hit(self, tenant_tag: bytes, block_id: bytes, max_length: int) -> Extent | None:
        """Touch, count and reference one block in DRAM, in one step for the sake of latency.

        None leaves no trace: `touch` and `lookup` find out why.
        """
        owner = self.tenants.find(tenant_tag)
        handle = -1 if owner is None else self.index.find(owner.number, block_id)
        if handle < 0:
            return None
        buffer = self.index.buffer(handle)
        expiry_s = self.index.expiry_s(handle)
        if buffer < 0 or (expiry_s and expiry_s <= self.clock.wall_s()):
            return None
        extent = self.arena.get(buffer)
        header = extent.header
        if (
            header is None
            or header.length > max_length
            # Another block of the same tag, if so. Whether that counts is for `lookup` to say.
            or header.block_id != block_id
            or header.tenant_tag != tenant_tag
        ):
            return None
        self.index.touch(handle, self.access_clock)
        self.access_clock += 1
        self.counters.hits_dram += 1
        self.arena.hold(extent)
        return extent

    def why(self, owner: TenantState, block_id: bytes) -> MissReason:
        """Say why a block is not there, as far as is remembered. Touches nothing."""
        handle = self.valid_handle(owner, block_id)
        if handle < 0:
            return self.ghosts.reason_of(owner.number, block_id)
        if self.index.buffer(handle) < 0 and not self.drive.is_readable:
            return MissReason.LOST
        return MissReason.PRESENT

    def place(self, segment: Segment, sector: int) -> Place:
        """Return what a record read at `sector` must say of itself."""
        return Place(sector * SECTOR_BYTES, segment.sequence, segment.nonce)

    def promote(
        self, owner: TenantState, block_id: bytes, sector: int, extent: Extent,
        header: RecordHeader,
    ) -> None:  # fmt: skip
        """Keep what was read in DRAM, unless the block moved, went or is there already."""
        extent.header = header
        handle = self.live_handle(owner.number, block_id, sector)
        if handle >= 0 and self.index.buffer(handle) < 0:
            self.index.set_buffer(handle, extent.start)
            self.arena.name(extent, handle)

    def drop_buffer(self, extent: Extent) -> None:
        """Forget a copy in DRAM that failed its sums; a block that is nowhere else goes with it."""
        if extent.handle == UNNAMED:
            return
        handle = extent.handle
        if self.index.location(handle)[0] == PENDING_SECTOR:
            assert extent.header is not None
            owner = self.tenants.all[self.index.tenant(handle)]
            self.left(owner, extent.header.block_id, MissReason.CORRUPT)
            self.remove_entry(handle)
        else:
            self.index.set_buffer(handle, -1)
            self.arena.drop(extent.start)

    def drop_at(
        self, owner: TenantState, block_id: bytes, sector: int, reason: MissReason
    ) -> None:
        """Forget a block whose record is unfit or too old, if the index still points there."""
        handle = self.live_handle(owner.number, block_id, sector)
        if handle >= 0:
            self.remove_entry(handle)
            self.left(owner, block_id, reason)

    # --- delete and pin ----------------------------------------------------------------------

    def delete(self, owner: TenantState, ids: Sequence[bytes]) -> None:
        """Make blocks invisible now; their tombstones are the caller's to write."""
        for block_id in ids:
            handle = self.index.find(owner.number, block_id)
            if handle >= 0:
                self.remove_entry(handle)
                self.left(owner, block_id, MissReason.DELETED)
        self.counters.deletes += len(ids)

    def purge_slot(self, slot: int) -> int:
        """Forget all blocks of a slot; return the generation up to which none comes back."""
        floor = self.slot_floors[slot] = self.next_generation()
        self.feeds.lost_track()
        for (handle,) in struct.iter_unpack("<I", self.index.handles_of_slot(slot)):
            self.remove_entry(handle)
        return floor

    def lease(self, owner: TenantState, block_id: bytes, lease_ms: int) -> None:
        """Protect a block from reclaim for `lease_ms` if it is there and pins have room."""
        handle = self.valid_handle(owner, block_id)
        if handle >= 0:
            size_bytes = self.index.location(handle)[1] * SECTOR_BYTES
            self.pins.lease(handle, owner, size_bytes, self.now_ns(), lease_ms)

    def pin(self, owner: TenantState, block_id: bytes, ttl_s: int) -> Status:
        """Pin for `ttl_s`, or unpin with 0. MISS when absent, QUOTA over the limit."""
        handle = self.valid_handle(owner, block_id)
        if handle < 0:
            return Status.MISS
        if ttl_s == 0:
            self.pins.unpin(handle)
            return Status.OK
        size_bytes = self.index.location(handle)[1] * SECTOR_BYTES
        return self.pins.pin(handle, owner, size_bytes, self.now_ns(), ttl_s)
