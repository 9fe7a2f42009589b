"""What clients have told of their memory: the regions of one session, by region and device.

The node checks every part against them before it posts anything, so that a forged or stale handle,
or a length beyond its end, costs an answer and not a queue pair.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from memkv import limits
from memkv.status import Status
from memkv.wire.local import Access, Part
from memkv.wire.rdma import RdmaRegister


class Piece(NamedTuple):
    """Memory of the client as the device reaches it."""

    address: int
    key: int
    length: int


class ClientRegions:
    """The regions of one session. Thread-safe."""

    def __init__(self, regions_max: int = limits.RDMA_REGIONS_PER_SESSION_MAX) -> None:
        self._regions_max = regions_max
        self._lock = threading.Lock()
        self._regions: dict[tuple[int, int], RdmaRegister] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def register(self, request: RdmaRegister) -> Status:
        """Take note of a region. INVALID: it is registered already; BUSY: there are too many."""
        place = (request.region, request.device)
        with self._lock:
            if place in self._regions:
                return Status.INVALID
            if len(self._regions) >= self._regions_max:
                return Status.BUSY
            self._regions[place] = request
        return Status.OK

    def unregister(self, region: int, device: int) -> Status:
        """Forget a region; MISS when there is none. What is posted already goes on: the client
        ends it by taking the memory's registration away."""
        with self._lock:
            found = self._regions.pop((region, device), None)
        return Status.MISS if found is None else Status.OK

    def locate(self, parts: Sequence[Part], device: int, access: Access) -> list[Piece] | None:
        """Return where the parts lie; None when one is of no region of this device, is not for this
        access, ends after its region does, or has no key."""
        pieces: list[Piece] = []
        for number, offset, length, key in parts:
            region = self._regions.get((number, device))
            if (
                region is None
                or not region.access & access
                or offset > region.size_bytes
                or length > region.size_bytes - offset
            ):
                return None
            key = region.key or key
            if not key:
                return None
            pieces.append(Piece(region.address + offset, key, length))
        return pieces
