"""The store as its users see it. All calls are thread-safe; readers belong to one thread each."""

import struct
from collections.abc import Iterable, Sequence

from memkv import _hotpath
from memkv.clock import Clock
from memkv.errors import ConfigError
from memkv.io.device import Device
from memkv.io.huge_pages import whole_pages
from memkv.limits import BLOCK_ID_BYTES, SECTOR_BYTES
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.store.config import (
    INDEX_BYTES_PER_BLOCK,
    INDEX_MEMORY_FRACTION_MAX,
    RECORD_BYTES_MIN,
    Randomness,
    StoreConfig,
    TenantQuota,
)
from memkv.store.core import StoreCore
from memkv.store.drive import DriveTraits
from memkv.store.engine import Engine, drive
from memkv.store.feed_reader import FeedReader
from memkv.store.layout import Superblock, record_sectors
from memkv.store.listing import ListedBlock, ListedTombstone, SlotLister
from memkv.store.moment import moment_of
from memkv.store.prefetch import Prefetcher
from memkv.store.puts import Put, PutState
from memkv.store.reader import ReadResult, StoreReader
from memkv.store.recovery import Recovery, RecoveryReport
from memkv.store.requests import PutRequest
from memkv.store.statistics import StoreStatistics
from memkv.store.superblock import SuperblockOpener
from memkv.tenant import TenantScope

__all__ = [
    "ListedBlock", "ListedTombstone", "PendingPut", "PutRequest", "ReadResult", "Store",
    "StoreConfig", "StoreReader", "open_store",
]  # fmt: skip

CLOSE_TIMEOUT_NS = 30_000_000_000
HANDLES_PER_STEP = 8192  # looked at under the lock in one go: about a millisecond


class PendingPut:
    """A block being received. Fill `payload`, then `commit` or `abort`; exactly one of them."""

    __slots__ = ("_put", "_store", "payload")

    def __init__(self, store: "Store", put: Put) -> None:
        self._store = store
        self._put = put
        self.payload: memoryview = put.extent.payload(put.request.length)
        """Writable until `commit`; the store's afterwards."""

    @property
    def put(self) -> Put:
        """The put inside, for the store."""
        return self._put

    def commit(self, received_sums: bytes | None = None) -> Status:
        """Check what arrived and make it visible.

        OK: visible and queued (or another put of this key was first). CORRUPT: the bytes do not
        have the sums or root of the request. NO_SPACE: the index is full. MISS: as `begin_put`.
        `received_sums` are chunk sums of `payload` made by the caller while receiving.
        """
        request = self._put.request
        sums = _hotpath.chunk_sums(self.payload) if received_sums is None else received_sums
        self.payload = memoryview(b"")
        tag = self._put.tenant.tag
        root = _hotpath.block_root(request.block_id, tag, request.length, sums)
        return self._store.finish_put(self._put, sums == request.sums and root == request.root)

    def abort(self) -> None:
        """Give the buffer back; nothing was stored."""
        self.payload = memoryview(b"")
        self._store.abort_put(self._put)


class Store:
    """An open store. Made by `open_store`."""

    def __init__(self, engine: Engine, core: StoreCore, report: RecoveryReport) -> None:
        self._engine = engine
        self._core = core
        self._closed = False
        self._lister: SlotLister | None = None
        self._prefetcher = Prefetcher(
            engine, core, self.new_reader, threads=core.config.threads
        )
        self.feeds = FeedReader(engine, core)
        self.recovery = report

    @property
    def superblock(self) -> Superblock:
        """Device and worker UUID, incarnation, geometry."""
        return self._core.superblock

    @property
    def block_bytes_max(self) -> int:
        """Longest block this store takes."""
        return self._core.block_bytes_max

    @property
    def memory(self) -> memoryview:
        """DRAM of all blocks, for devices that move them. Lives as long as the store."""
        return self._core.arena.view

    # --- lookups -----------------------------------------------------------------------------

    def exists(self, tenant: TenantScope, ids: bytes, now_s: int | None = None) -> bytes:
        """Return an i32 of 1 or 0 for each 32-byte id. Touches nothing."""
        with self._engine.lock:
            owner = self._core.tenants.find(tenant.tag)
            if owner is None:
                return bytes(4 * (len(ids) // BLOCK_ID_BYTES))
            now_s = self._core.clock.wall_s() if now_s is None else now_s
            found = self._core.index.exists_many(owner.number, ids, now_s)
            if self._core.drive.is_readable:
                return found
            return self._core.without_unreadable(owner, ids, found)

    def why(self, tenant: TenantScope, ids: bytes) -> bytes:
        """Return an i32 of a `MissReason` for each id: PRESENT, or why it is not there, as far as
        is remembered. Touches nothing."""
        reasons: list[int] = []
        with self._engine.lock:
            owner = self._core.tenants.find(tenant.tag)
            for first in range(0, len(ids), BLOCK_ID_BYTES):
                block_id = ids[first : first + BLOCK_ID_BYTES]
                reasons.append(
                    MissReason.NEVER_STORED if owner is None else self._core.why(owner, block_id)
                )
        return struct.pack(f"<{len(reasons)}i", *reasons)

    def prefetch(self, tenant: TenantScope, ids: bytes) -> bytes:
        """Have blocks on flash brought into DRAM, best effort; return at once an i32 for each id:
        a `Prefetched`, or BUSY where it will not be done."""
        return struct.pack(f"<{len(ids) // BLOCK_ID_BYTES}i", *self._prefetcher.ask(tenant, ids))

    def new_reader(self) -> StoreReader:
        """Return a reader for the calling thread. Close it before the store."""
        queue = self._engine.device.open_queue(self._engine.depth)
        return StoreReader(self._engine, self._core, queue)

    # --- puts --------------------------------------------------------------------------------

    def begin_put(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> PendingPut | Status:
        """Return a buffer to fill, or a status.

        OK: present already (and durable, if the request says durable). BUSY: no buffer by the
        deadline. TOO_LARGE, INVALID: never. NO_SPACE: index full, or the drive refuses writes for
        now. UNAVAILABLE: the drive is FAULTED.
        MISS: a copy of what expired or was deleted here (`unless_deleted_since`).
        """
        core, engine = self._core, self._engine
        status = core.check_put(request)
        if status is not Status.OK:
            return status
        with engine.lock:
            self._check_open()
            result = core.begin_put(tenant, request)
            if result is Status.BUSY:
                result = self._wait_for_buffer(tenant, request, deadline_ns)
            if isinstance(result, Status):
                return result
            if result.state is PutState.PRESENT:
                put = result
                engine.wait(lambda: put.status() is not None, deadline_ns)
                return put.status_or(Status.TIMEOUT)
        return PendingPut(self, result)

    def _wait_for_buffer(
        self, tenant: TenantScope, request: PutRequest, deadline_ns: int
    ) -> Put | Status:
        core = self._core
        found: list[Put | Status] = []

        def attempt() -> bool:
            result = core.begin_put(tenant, request)
            if result is Status.BUSY:
                return False
            found.append(result)
            return True

        self._engine.wait(attempt, deadline_ns)
        if found:
            return found[0]
        core.refused(core.tenants.get(tenant.tag, tenant.name), request.block_id)
        return Status.BUSY

    def finish_put(self, put: Put, sound: bool) -> Status:
        """Commit a put whose bytes were checked (for PendingPut)."""
        with self._engine.lock:
            if put.state is not PutState.FILLING:
                return Status.INVALID
            if not sound:
                self._core.abort(put)
                self._core.counters.corrupt += 1
                self._engine.progress()
                return Status.CORRUPT
            status = self._core.commit(put)
            self._engine.wake()
            return status

    def abort_put(self, put: Put) -> None:
        """Abort a put (for PendingPut)."""
        with self._engine.lock:
            self._core.abort(put)
            self._engine.progress()

    def wait_durable(self, puts: Sequence[PendingPut], deadline_ns: int) -> list[Status]:
        """Wait until committed puts are durable.

        OK, TIMEOUT (it may still become durable), or UNAVAILABLE / NO_SPACE when it was lost.
        """
        inner = [pending.put for pending in puts]
        with self._engine.lock:
            for put in inner:
                self._core.want_durable(put)
            self._engine.wait(
                lambda: all(put.status() is not None for put in inner), deadline_ns
            )
            return [put.status_or(Status.TIMEOUT) for put in inner]

    # --- deletes and pins --------------------------------------------------------------------

    def delete(self, tenant: TenantScope, ids: bytes, deadline_ns: int) -> bytes:
        """Delete blocks, present or not; return an i32 for each id.

        All are invisible at once. OK: the tombstone is durable, so it stays deleted after any
        restart. TIMEOUT or UNAVAILABLE: it may come back after a restart; delete again. BUSY:
        nothing was done, since the drive does not keep up with deletes.
        """
        return self.delete_tagged(tenant.tag, ids, deadline_ns, name=tenant.name)

    def delete_tagged(
        self, tenant_tag: bytes, ids: bytes, deadline_ns: int, *, name: str = ""
    ) -> bytes:
        """Delete as `delete` does, for a worker that learned of the delete from another one and
        knows the tenant's tag only."""
        split = [ids[i : i + BLOCK_ID_BYTES] for i in range(0, len(ids), BLOCK_ID_BYTES)]
        outcomes: list[bool] = []
        with self._engine.lock:
            self._check_open()
            if self._core.tombstones.full():
                return struct.pack("<i", Status.BUSY) * len(split)
            owner = self._core.tenants.get(tenant_tag, name)
            self._core.delete(owner, split)
            records = self._core.tombstones.add(owner, split, outcomes.append)
            self._engine.wait(lambda: len(outcomes) == records, deadline_ns)
        if len(outcomes) < records:
            status = Status.TIMEOUT
        else:
            status = Status.OK if all(outcomes) else Status.UNAVAILABLE
        return struct.pack("<i", status) * len(split)

    def pin(self, tenant: TenantScope, ids: bytes, ttl_s: int) -> bytes:
        """Pin blocks for `ttl_s` (0: unpin); return an i32 for each: OK, MISS or QUOTA."""
        results = []
        with self._engine.lock:
            owner = self._core.tenants.find(tenant.tag)
            for first in range(0, len(ids), BLOCK_ID_BYTES):
                block_id = ids[first : first + BLOCK_ID_BYTES]
                known = owner is not None
                results.append(
                    self._core.pin(owner, block_id, ttl_s) if known and owner else Status.MISS
                )
        return struct.pack(f"<{len(results)}i", *results)

    def lease(self, tenant: TenantScope, ids: bytes, lease_ms: int) -> None:
        """Protect blocks from eviction for `lease_ms`, best effort within the pin quota."""
        with self._engine.lock:
            owner = self._core.tenants.find(tenant.tag)
            if owner is None:
                return
            for first in range(0, len(ids), BLOCK_ID_BYTES):
                self._core.lease(owner, ids[first : first + BLOCK_ID_BYTES], lease_ms)

    def set_quotas(self, quotas: Sequence[TenantQuota]) -> None:
        """Guarantee tenants this much from now on, and others nothing. Blocks that a tenant with a
        guarantee stored before stay, as far as its guarantee goes."""
        with self._engine.lock:
            self._check_open()
            self._core.quotas.set(quotas)
            self._core.quotas.join()
            self._engine.wake()
            self._engine.progress()

    # --- slots -------------------------------------------------------------------------------

    def drop_slots(self, slots: Iterable[int]) -> int:
        """Forget the blocks of slots that moved away, in memory; return how many.

        Their records stay on flash until reclaimed: after a restart the worker asks again, and a
        worker that regains a slot applies the tombstones it missed first.
        """
        dropped = 0
        with self._engine.lock:
            self._core.feeds.lost_track()
            for slot in slots:
                for (handle,) in struct.iter_unpack("<I", self._core.index.handles_of_slot(slot)):
                    self._core.remove_entry(handle)
                    dropped += 1
            self._engine.progress()
        return dropped

    @property
    def generation(self) -> int:
        """The number of the last put or delete accepted; later ones get larger numbers."""
        with self._engine.lock:
            return self._core.generation

    def purge_slots(self, slots: Iterable[int]) -> dict[int, int]:
        """Forget the blocks of slots for good; return the floor of each, a generation.

        Records up to the floor never come back, after a restart only if the caller kept the floors
        and opens the store with them (`StoreConfig.slot_floors`).
        """
        floors: dict[int, int] = {}
        for slot in slots:
            with self._engine.lock:  # for one slot at a time: each is a scan of the index
                floors[slot] = self._core.purge_slot(slot)
                self._engine.progress()
        return floors

    def purge_tenant(self, tenant_tag: bytes) -> int:
        """Forget a tenant's blocks for good; return the floor, as `purge_slots` does."""
        core = self._core
        with self._engine.lock:
            floor = core.tenant_floors[tenant_tag] = core.next_generation()
            owner = core.tenants.find(tenant_tag)
            end = core.index.handles_end
        if owner is None:
            return floor
        for first in range(0, end, HANDLES_PER_STEP):
            with self._engine.lock:
                for handle in range(first, min(first + HANDLES_PER_STEP, end)):
                    try:
                        mine = core.index.tenant(handle) == owner.number
                    except ValueError:
                        continue  # no entry has this number
                    if mine:
                        core.remove_entry(handle)
                core.feeds.lost_track()
                self._engine.progress()
        return floor

    def list_slot(self, slot: int, cursor: int, limit: int) -> tuple[int, list[ListedBlock]]:
        """Return (next cursor, blocks) of a slot; start with cursor 0, ends with cursor -1."""
        with self._engine.lock:
            self._check_open()
            if self._lister is None:
                queue = self._engine.device.open_queue(self._engine.depth)
                self._lister = SlotLister(self._engine, self._core, queue)
        return self._lister.list_slot(slot, cursor, limit)

    def list_tombstones(
        self, slot: int, since_generation: int
    ) -> tuple[bool, list[ListedTombstone]]:
        """Return (complete, tombstones of a slot from `since_generation` on).

        Not complete: older ones may have been forgotten, and older records must count as misses.
        """
        with self._engine.lock:
            recent = list(self._core.tombstones.recent.items())
            complete = since_generation >= self._core.tombstones.complete_since
        packed = _hotpath.slots_of(b"".join(key[1] for key, _ in recent), self._core.config.slots)
        slots = struct.unpack(f"<{len(recent)}H", packed)
        return complete, [
            ListedTombstone(tag, block_id, generation)
            for ((tag, block_id), generation), found in zip(recent, slots, strict=True)
            if found == slot and generation >= since_generation
        ]

    # --- life --------------------------------------------------------------------------------

    def statistics(self) -> StoreStatistics:
        """Return a moment of the store."""
        with self._engine.lock:
            return moment_of(self._core)

    def flush(self, deadline_ns: int) -> bool:
        """Make everything accepted until now durable; False when that was not done in time."""
        outcome: list[bool] = []
        core = self._core
        with self._engine.lock:
            last = [pending[-1] for pending in core.log.pending if pending]
            self._engine.wait(
                lambda: core.drive.is_faulted
                or (all(a.segment is not None or a.cancelled for a in last)
                    and core.log.writes_in_flight == 0),
                deadline_ns,
            )  # fmt: skip
            core.log.barrier(outcome.append)
            self._engine.wait(lambda: bool(outcome), deadline_ns)
        return bool(outcome and outcome[0])

    def pump(self) -> None:
        """Run until nothing is left to do; only for stores opened with `threads=False`."""
        while self._prefetcher.step():
            pass
        self._engine.pump()

    def close(self, clean: bool = True) -> None:
        """Write what is queued and the footers of open segments (`clean`), then stop.

        The device stays open; it belongs to the caller. Readers must be closed before.
        """
        self._prefetcher.close()
        with self._engine.lock:
            if self._closed:
                return
            self._closed = True
            core = self._core
            if clean:
                deadline_ns = core.now_ns() + CLOSE_TIMEOUT_NS
                self.flush(deadline_ns)
                if not core.drive.is_faulted:
                    core.log.seal_all()
                self._engine.wait(lambda: core.idle(), deadline_ns)
        if self._lister is not None:
            self._lister.close()
        self._engine.stop()

    def _check_open(self) -> None:
        self._engine.check()
        if self._closed:
            raise ConfigError("the store is closed; open it again with open_store")


def open_store(
    device: Device, config: StoreConfig, clock: Clock, random: Randomness
) -> Store:
    """Open the store on a device, formatting a blank one, and recover what it holds.

    Raises ConfigError, with cause and fix, for a device that is foreign, too small, of another
    format or another worker, and for sizes and quotas that do not fit. The device stays the
    caller's: close it after the store.
    """
    began_ns = clock.monotonic_ns()
    engine = Engine(device, config.queue_depth)
    try:
        traits = DriveTraits(config.discard and device.discard_bytes_max > 0, device.can_fill)
        opener = SuperblockOpener(device.size_bytes, config, random, traits.discards)
        drive(opener.steps(), engine.queue, engine.depth)
        assert opener.result is not None
        core = _new_core(config, opener.result, clock, random, traits)
        core.counters.discarded_bytes += opener.discarded_bytes
        recovery = Recovery(core)
        drive(recovery.steps(), engine.queue, engine.depth)
        core.quotas.join()
        if not opener.formatted:
            # Reclaim drops a tombstone once no older record is left here; what others may still
            # have to hear of is not all on flash.
            core.tombstones.complete_since = core.generation
    except BaseException:
        engine.queue.close()
        raise
    report = recovery.report
    report.formatted = opener.formatted
    report.duration_ms = (clock.monotonic_ns() - began_ns) // 1_000_000
    engine.start(core, config.threads)
    return Store(engine, core, report)


def _new_core(
    config: StoreConfig, superblock: Superblock, clock: Clock, random: Randomness,
    traits: DriveTraits,
) -> StoreCore:  # fmt: skip
    blocks = config.index_blocks_max
    if blocks is None:
        fit = superblock.segment_count * superblock.segment_bytes // RECORD_BYTES_MIN
        afford = int(config.memory_bytes * INDEX_MEMORY_FRACTION_MAX) // INDEX_BYTES_PER_BLOCK
        blocks = max(1, min(fit, afford))
    arena_bytes = config.memory_bytes - blocks * INDEX_BYTES_PER_BLOCK
    if config.huge_page_bytes:
        arena_bytes = whole_pages(config.memory_bytes, config.huge_page_bytes)
    record = record_sectors(min(config.block_bytes_max, superblock.segment_bytes)) * SECTOR_BYTES
    if arena_bytes < 3 * record:
        raise ConfigError(
            f"{config.memory_bytes} bytes of memory leave {max(0, arena_bytes)} for blocks beside"
            f" an index of {blocks} blocks; three blocks of {record} bytes are the least. Raise"
            " memory, or lower the longest block"
        )
    index = _hotpath.BlockIndex(
        blocks, tag_bits=config.index_tag_bits, check_tenant=config.index_check_tenant,
        hash_key=random.getrandbits(128).to_bytes(16, "little"),
    )  # fmt: skip
    return StoreCore(config, superblock, index, arena_bytes, clock, random, traits)
