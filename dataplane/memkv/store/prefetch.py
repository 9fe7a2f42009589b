"""Prefetch: blocks that somebody will ask for soon are brought from flash into DRAM.

Best effort, and never at the cost of gets: what waits is bounded in blocks and in bytes, one tenant
gets half of that, a read gives way to gets that read flash and then goes alone, and no read begins
that would leave gets less than half of DRAM to use. What it does not do it says and
counts. Its thread and its queue to the device come with the first block that is asked for.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from memkv.limits import (
    BLOCK_ID_BYTES,
    PREFETCH_AGE_MS,
    PREFETCH_MEMORY_FRACTION,
    PREFETCH_QUEUE_MAX,
    PREFETCH_READS_MAX,
    PREFETCH_ROOM_FRACTION_MIN,
    PREFETCH_YIELD_MS,
)
from memkv.status import Status
from memkv.store.core import StoreCore
from memkv.store.engine import Engine
from memkv.store.reader import StoreReader
from memkv.store.tenants import TenantState
from memkv.tenant import TaggedTenant, TenantScope

NS_PER_MS = 1_000_000
READ_TIMEOUT_NS = 1_000 * NS_PER_MS
TENANT_SHARE = 0.5  # of the queue


class Prefetched(IntEnum):
    """What became of a block that is wanted."""

    ABSENT = 0
    """Not stored."""
    QUEUED = 1
    """On its way."""
    IN_DRAM = 2


class Wanted(NamedTuple):
    """A block on flash."""

    owner: TenantState
    block_id: bytes
    sectors: int
    asked_ns: int


class Prefetcher:
    """The queue, and the thread that reads. Thread-safe."""

    def __init__(
        self, engine: Engine, core: StoreCore, new_reader: Callable[[], StoreReader], *,
        threads: bool,
    ) -> None:  # fmt: skip
        """Without `threads`, `step` reads."""
        self._engine = engine
        self._core = core
        self._new_reader = new_reader
        self._threads = threads
        self._changed = threading.Condition(engine.lock)
        self._queue: deque[Wanted] = deque()
        self._queued: set[tuple[int, bytes]] = set()
        self._by_tenant: Counter[int] = Counter()
        self._sectors = 0
        self._reader: StoreReader | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    # --- asking ------------------------------------------------------------------------------

    def ask(self, tenant: TenantScope, ids: bytes) -> list[int]:
        """Return a `Prefetched` for each id, or BUSY."""
        with self._engine.lock:
            owner = self._core.tenants.find(tenant.tag)
            answers: list[int] = [
                Prefetched.ABSENT if owner is None
                else self._ask_one(owner, ids[first : first + BLOCK_ID_BYTES])
                for first in range(0, len(ids), BLOCK_ID_BYTES)
            ]
            if self._queue:
                self._begin()
                self._changed.notify()
        return answers

    def _ask_one(self, owner: TenantState, block_id: bytes) -> int:
        core = self._core
        handle = core.valid_handle(owner, block_id)
        if handle < 0 or (core.index.buffer(handle) < 0 and not core.drive.is_readable):
            return Prefetched.ABSENT
        if core.index.buffer(handle) >= 0:
            core.index.touch(handle, core.access_clock)
            return Prefetched.IN_DRAM
        if (owner.number, block_id) in self._queued:
            return Prefetched.QUEUED
        sectors = core.index.location(handle)[1]
        if self._stopping or not self._room_for(owner, sectors):
            core.counters.prefetches_refused += 1
            return Status.BUSY
        self._queue.append(Wanted(owner, block_id, sectors, core.now_ns()))
        self._queued.add((owner.number, block_id))
        self._by_tenant[owner.number] += 1
        self._sectors += sectors
        return Prefetched.QUEUED

    def _room_for(self, owner: TenantState, sectors: int) -> bool:
        return (
            len(self._queue) < PREFETCH_QUEUE_MAX
            and self._by_tenant[owner.number] < PREFETCH_QUEUE_MAX * TENANT_SHARE
            and self._sectors + sectors <= self._core.arena.sectors * PREFETCH_MEMORY_FRACTION
        )

    # --- reading -----------------------------------------------------------------------------

    def step(self) -> bool:
        """Read the next few blocks; False when nothing waits."""
        with self._engine.lock:
            if not self._queue or self._stopping:
                return False
            if self._reader is None:
                self._reader = self._new_reader()
            owner, ids = self._take(1 if self._gets_read() else PREFETCH_READS_MAX)
            deadline_ns = self._core.now_ns() + READ_TIMEOUT_NS
        scope = TaggedTenant(owner.tag)
        for _, result in self._reader.read(scope, ids, None, deadline_ns, ahead=True):
            result.release()
        return True

    def _take(self, count: int) -> tuple[TenantState, bytes]:
        """Take at most `count` blocks of one tenant that are still worth reading."""
        core, owner = self._core, self._queue[0].owner
        oldest_ns = core.now_ns() - PREFETCH_AGE_MS * NS_PER_MS
        least = int(core.arena.sectors * PREFETCH_ROOM_FRACTION_MIN)
        picked: list[bytes] = []
        while self._queue and self._queue[0].owner is owner and len(picked) < count:
            wanted = self._queue.popleft()
            self._queued.discard((owner.number, wanted.block_id))
            self._by_tenant[owner.number] -= 1
            self._sectors -= wanted.sectors
            least += wanted.sectors
            if wanted.asked_ns < oldest_ns or core.arena.room_sectors(owner.number) < least:
                core.counters.prefetches_refused += 1
            else:
                picked.append(wanted.block_id)
        return owner, b"".join(picked)

    def _gets_read(self) -> bool:
        return any(reader.is_reading for reader in self._engine.readers)

    # --- life --------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._threads and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="memkv-prefetch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._engine.lock:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                for _ in range(PREFETCH_YIELD_MS):
                    if not self._gets_read() or self._stopping:
                        break
                    self._changed.wait(0.001)
            self.step()

    def close(self) -> None:
        """End what is in flight and forget the rest."""
        with self._engine.lock:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
