"""Tombstones: deletes on their way to flash, and the recent ones for workers that regain a slot.

Deletes that wait together share a record of up to 60 ids. A delete is acknowledged when its
tombstone is durable. A lost tombstone (failed write or flush) is written again elsewhere, a few
times; it is never assumed.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from memkv.limits import SECTOR_BYTES
from memkv.store.layout import (
    ENTRY,
    TOMBSTONE,
    TOMBSTONES_PER_RECORD_MAX,
    Kind,
    RecordHeader,
    aligned_buffer,
    write_record_header,
)
from memkv.store.log import Append
from memkv.store.segments import Segment
from memkv.store.tenants import TenantState

if TYPE_CHECKING:
    from memkv.store.core import StoreCore

ATTEMPTS_MAX = 3
TOMBSTONES_KEPT_MAX = 100_000  # for list_tombstones: 30 MiB at most; older ones need a full pull
TOMBSTONES_WAITING_MAX = 65_536  # on their way to flash: a drive that hangs fills memory no further

Done = Callable[[bool], None]


class TombstoneAppend(Append):
    """One record of tombstones. More ids may join it until it gets its place."""

    __slots__ = ("_attempts", "_core", "_done", "_generation", "_ids", "_sealed")

    def __init__(self, core: "StoreCore", tenant: TenantState, urgent: bool = False) -> None:
        super().__init__(tenant, 1, entry_count=0, urgent=urgent)
        self._core = core
        self._ids: list[tuple[bytes, int]] = []
        self._done: list[Done] = []
        self._attempts = 0
        self._sealed = False

    def join(self, ids: list[tuple[bytes, int]], done: Done) -> bool:
        """Take (id, generation) pairs if there is room and the record has no place yet."""
        if self._sealed or len(self._ids) + len(ids) > TOMBSTONES_PER_RECORD_MAX:
            return False
        self._ids += ids
        if not self.urgent:  # what reclaim carries is bounded by what a segment holds
            self._core.tombstones.waiting += len(ids)
        self.entry_count = len(self._ids)
        self._done.append(done)
        return True

    def encode(self, segment: Segment, sector: int) -> tuple[memoryview, bytes]:
        """Build the record."""
        self._sealed = True
        tenant = self.tenant
        page = aligned_buffer(SECTOR_BYTES)
        header = RecordHeader(
            Kind.TOMBSTONES, bytes(32), tenant.tag, 0, 0, max(g for _, g in self._ids),
            segment.sequence, segment.nonce, sector * SECTOR_BYTES, 0, 0, len(self._ids),
            bytes(8), bytes(8), bytes(16), b"".join(TOMBSTONE.pack(*item) for item in self._ids),
        )  # fmt: skip
        write_record_header(page, header)
        place = sector - segment.base_sector
        entries = b"".join(
            ENTRY.pack(block_id, tenant.tag, generation, place, 0, 0, 0, 0, Kind.TOMBSTONES)
            for block_id, generation in self._ids
        )
        return page, entries

    def written(self, ok: bool, error: int) -> None:
        """Try again elsewhere when the write failed."""
        if ok:
            self._core.log.flush_wanted = True
        else:
            self._again()

    def durable(self, ok: bool) -> None:
        """Acknowledge, or try again."""
        if ok:
            self._end(True)
        else:
            self._again()

    def _again(self) -> None:
        self._attempts += 1
        if self._attempts < ATTEMPTS_MAX and not self._core.drive.refuses():
            self._core.log.add(self)
            return
        self._end(False)

    def _end(self, ok: bool) -> None:
        if not self.urgent:
            self._core.tombstones.waiting -= len(self._ids)
        for done in self._done:
            done(ok)


class Tombstones:
    """Deletes under way and deletes remembered."""

    def __init__(self, core: "StoreCore") -> None:
        self._core = core
        self._joinable: dict[int, TombstoneAppend] = {}
        self.carrying = 0
        self.waiting = 0
        self.recent: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()
        self.complete_since = 0  # generations before this one may have been forgotten
        self.forgotten_to = 0  # the youngest one that fell out of `recent`

    def __len__(self) -> int:
        return len(self.recent)

    def full(self) -> bool:
        """Say whether so many are on their way that no delete is taken."""
        return self.waiting >= TOMBSTONES_WAITING_MAX

    def add(self, tenant: TenantState, ids: list[bytes], done: Done) -> int:
        """Write tombstones; `done(ok)` is called once for each record used. Returns how many."""
        records = 0
        for first in range(0, len(ids), TOMBSTONES_PER_RECORD_MAX):
            part = []
            for block_id in ids[first : first + TOMBSTONES_PER_RECORD_MAX]:
                generation = self._core.next_generation()
                part.append((block_id, generation))
                self.remember(tenant.tag, block_id, generation)
            self._append(tenant, part, done)
            records += 1
        return records

    def _append(self, tenant: TenantState, part: list[tuple[bytes, int]], done: Done) -> None:
        append = self._joinable.get(tenant.number)
        pending = self._core.log.pending[tenant.queue]
        # Only the last record in line grows: a tombstone stays behind the puts accepted before it.
        if not pending or pending[-1] is not append:
            append = None
        if append is None or not append.join(part, done):
            append = TombstoneAppend(self._core, tenant)
            append.join(part, done)
            self._joinable[tenant.number] = append
            self._core.log.add(append)

    def carry(self, tenant: TenantState, tombstones: list[tuple[bytes, int]]) -> None:
        """Write tombstones of the segment being reclaimed again, with their old generations.

        Recovery compares generations, so a put accepted after the delete is not hit by its copy.
        """
        for first in range(0, len(tombstones), TOMBSTONES_PER_RECORD_MAX):
            self.carrying += 1
            append = TombstoneAppend(self._core, tenant, urgent=True)
            append.join(tombstones[first : first + TOMBSTONES_PER_RECORD_MAX], self._carried)
            self._core.log.add(append)

    def _carried(self, ok: bool) -> None:
        self.carrying -= 1
        if not ok:
            self._core.reclaim.copy_lost()

    def remember(self, tenant_tag: bytes, block_id: bytes, generation: int) -> None:
        """Keep a tombstone for `list_tombstones`."""
        self.recent[tenant_tag, block_id] = generation
        self.recent.move_to_end((tenant_tag, block_id))
        if len(self.recent) > TOMBSTONES_KEPT_MAX:
            _, forgotten = self.recent.popitem(last=False)
            self._fell_out(forgotten)

    def recovered(self, tenant_tag: bytes, block_id: bytes, generation: int) -> None:
        """Keep a tombstone found on flash; recovery meets the youngest first."""
        if len(self.recent) >= TOMBSTONES_KEPT_MAX:
            self._fell_out(generation)
            return
        self.recent[tenant_tag, block_id] = generation
        self.recent.move_to_end((tenant_tag, block_id), last=False)

    def _fell_out(self, generation: int) -> None:
        self.forgotten_to = max(self.forgotten_to, generation)
        self.complete_since = max(self.complete_since, generation + 1)

    def deleted_since(self, tenant_tag: bytes, block_id: bytes, generation: int) -> bool:
        """Say whether a key was, or may have been, deleted after `generation`."""
        return (
            self.recent.get((tenant_tag, block_id), 0) > generation
            or self.forgotten_to > generation
        )

    def forget(self, tenant_tag: bytes, block_id: bytes) -> None:
        """A new put of the key supersedes its tombstone."""
        self.recent.pop((tenant_tag, block_id), None)
