"""Listing the blocks of a slot, for a worker that takes the slot over.

The index knows tags, not ids: an id comes from the header in DRAM or from the record's first
sector on flash.
"""

import struct
import threading
from typing import NamedTuple

from memkv.io.device import DeviceQueue
from memkv.limits import SECTOR_BYTES
from memkv.store.core import StoreCore
from memkv.store.engine import Engine
from memkv.store.layout import Kind, RecordHeader, aligned_buffer
from memkv.store.records import Place, judge
from memkv.store.segments import Segment

READ_WAIT_MS = 1000


class ListedBlock(NamedTuple):
    """A block of a slot. `expiry_s` is wall time, 0: never."""

    tenant_tag: bytes
    block_id: bytes
    length: int
    expiry_s: int
    depth: int


class ListedTombstone(NamedTuple):
    """A delete of a slot."""

    tenant_tag: bytes
    block_id: bytes
    generation: int


class SlotLister:
    """Pages through slots; one caller at a time."""

    def __init__(self, engine: Engine, core: StoreCore, queue: DeviceQueue) -> None:
        self._engine = engine
        self._core = core
        self._queue = queue
        self._lock = threading.Lock()

    def list_slot(self, slot: int, cursor: int, limit: int) -> tuple[int, list[ListedBlock]]:
        """Return (next cursor or -1, blocks); see Store.list_slot."""
        with self._lock:
            packed = self._core.index.handles_of_slot(slot, cursor)
            handles = [handle for (handle,) in struct.iter_unpack("<I", packed)]
            listed: list[ListedBlock] = []
            for first in range(0, min(len(handles), limit), self._engine.depth):
                last = min(first + self._engine.depth, limit)
                listed += self._headers(slot, handles[first:last])
        return (handles[limit] if len(handles) > limit else -1), listed

    def _headers(self, slot: int, handles: list[int]) -> list[ListedBlock]:
        core = self._core
        listed: list[ListedBlock] = []
        reads: dict[int, tuple[Segment, Place, memoryview]] = {}
        with self._engine.lock:
            for handle in handles:
                try:
                    found, buffer = core.index.slot(handle), core.index.buffer(handle)
                except ValueError:
                    continue  # removed since it was listed
                if found != slot:
                    continue
                if buffer >= 0:
                    header = core.arena.get(buffer).header
                    assert header is not None
                    listed.append(_listed(header))
                    continue
                if not core.drive.is_readable:
                    continue
                sector = core.index.location(handle)[0]
                segment = core.table.at_sector(sector)
                segment.readers += 1
                page = aligned_buffer(SECTOR_BYTES)
                reads[handle] = (segment, core.place(segment, sector), page)
        for handle, (_, place, page) in reads.items():
            self._queue.read(handle, place.device_offset, [page])
        while reads:
            for handle, result in self._queue.wait(1, READ_WAIT_MS):
                segment, place, page = reads.pop(handle)
                with self._engine.lock:
                    segment.readers -= 1
                judged = judge(page, place, core.config.checks)
                whole = result == SECTOR_BYTES and isinstance(judged, RecordHeader)
                if whole and isinstance(judged, RecordHeader) and judged.kind == Kind.BLOCK:
                    listed.append(_listed(judged))
        return listed

    def close(self) -> None:
        """Close the queue."""
        self._queue.close()


def _listed(header: RecordHeader) -> ListedBlock:
    return ListedBlock(
        header.tenant_tag, header.block_id, header.length, header.expiry_s, header.depth
    )
