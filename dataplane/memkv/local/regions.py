"""Memory that clients share with a worker: regions of a session, their limits and their lives.

A region lives while its session has it registered or a request uses it, whichever ends last; then
its mapping and its descriptor are gone. `SessionRegions.use` gives a request the regions it names,
all checked, for as long as it runs.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Sequence

from memkv import limits
from memkv._hotpath import copy_memory
from memkv.local import files
from memkv.local.files import Refused
from memkv.status import Status
from memkv.wire.local import Access, Part, RegisterRequest


class RegionBudget:
    """What all sessions of a worker share of it. Thread-safe."""

    def __init__(
        self,
        regions_max: int = limits.LOCAL_REGIONS_MAX,
        mapped_bytes_max: int = limits.LOCAL_MAPPED_BYTES_MAX,
    ) -> None:
        self._regions_max = regions_max
        self._mapped_bytes_max = mapped_bytes_max
        self._lock = threading.Lock()
        self.regions = 0
        self.mapped_bytes = 0

    def take(self, mapped_bytes: int) -> None:
        """Account for a region. Raises Refused when there are too many."""
        with self._lock:
            if self.regions >= self._regions_max:
                raise busy(f"the worker holds {self.regions} regions of all clients")
            if self.mapped_bytes + mapped_bytes > self._mapped_bytes_max:
                raise busy(f"the worker maps {self.mapped_bytes} bytes of all clients")
            self.regions += 1
            self.mapped_bytes += mapped_bytes

    def give_back(self, mapped_bytes: int) -> None:
        """Undo `take`."""
        with self._lock:
            self.regions -= 1
            self.mapped_bytes -= mapped_bytes


def busy(text: str) -> Refused:
    """Return the refusal of what is over a limit."""
    return Refused(Status.BUSY, f"{text}; unregister some, or share larger pieces of memory")


class Region:
    """A range of a client's file; mapped, or read and written through its descriptor."""

    def __init__(self, fd: int, request: RegisterRequest) -> None:
        """Take over `fd`, also when this raises Refused."""
        self.number = request.region
        self.access = request.access
        self.size_bytes = request.size_bytes
        self.references = 1  # under the lock of its SessionRegions
        self._fd = fd
        self._offset = request.fd_offset
        self._mapping: mmap.mmap | None = None
        self.memory: memoryview | None = None
        """The whole region, when it is mapped."""
        write = bool(request.access & Access.WRITE)
        try:
            maps = files.may_map(fd)
            files.check(
                fd, request.fd_offset, request.size_bytes, read=bool(request.access & Access.READ),
                write=write,
            )  # fmt: skip
            if maps:
                self._mapping, start = files.map_file(
                    fd, request.fd_offset, request.size_bytes, write=write
                )
                self.memory = memoryview(self._mapping)[start : start + request.size_bytes]
        except BaseException:
            os.close(fd)
            raise

    @property
    def mapped_bytes(self) -> int:
        return self.size_bytes if self._mapping is not None else 0

    def write(self, offset: int, data: memoryview) -> None:
        """Copy `data` into the region. Raises OSError."""
        if self.memory is None:
            files.write_all(self._fd, self._offset + offset, data)
        else:
            copy_memory(self.memory[offset : offset + data.nbytes], data)

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target` from the region. Raises OSError."""
        if self.memory is None:
            files.read_all(self._fd, self._offset + offset, target)
        else:
            copy_memory(target, self.memory[offset : offset + target.nbytes])

    def close(self) -> None:
        """Unmap and close. Nobody uses it any more."""
        self.memory = None
        if self._mapping is not None:
            with contextlib.suppress(BufferError):  # a view of it is about to go; then it goes too
                self._mapping.close()
        os.close(self._fd)


class SessionRegions:
    """The regions of one session. Thread-safe."""

    def __init__(
        self,
        budget: RegionBudget,
        regions_max: int = limits.LOCAL_REGIONS_PER_SESSION_MAX,
        mapped_bytes_max: int = limits.LOCAL_MAPPED_BYTES_PER_SESSION_MAX,
    ) -> None:
        self._budget = budget
        self._regions_max = regions_max
        self._mapped_bytes_max = mapped_bytes_max
        self._lock = threading.Lock()
        self._regions: dict[int, Region] = {}
        self._closed = False

    def register(self, request: RegisterRequest, fds: Sequence[int]) -> bool:
        """Take over what was passed; return whether the memory is mapped. Raises Refused."""
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise Refused(
                Status.INVALID,
                f"REGISTER came with {len(fds)} file descriptors instead of 1: the client has a "
                "bug, or the node is out of descriptors (ulimit -n)",
            )
        region = Region(fds[0], request)
        try:
            self._budget.take(region.mapped_bytes)
        except Refused:
            region.close()
            raise
        try:
            with self._lock:
                self._admit(region)
                self._regions[region.number] = region
        except Refused:
            self._forget(region)
            raise
        return region.memory is not None

    def unregister(self, number: int) -> Status:
        """Let go of a region; requests that use it go on. MISS when there is none."""
        with self._lock:
            region = self._regions.pop(number, None)
        if region is None:
            return Status.MISS
        self.release([region])
        return Status.OK

    def use(self, parts: Sequence[Part], access: Access) -> list[Region] | None:
        """Return the region of each part, referenced until `release`; None when one does not exist,
        is not for this access, or ends before the part does."""
        with self._lock:
            found: list[Region] = []
            for number, offset, length, _ in parts:
                region = self._regions.get(number)
                if (
                    region is None
                    or not region.access & access
                    or offset > region.size_bytes
                    or length > region.size_bytes - offset
                ):
                    return None
                found.append(region)
            for region in found:
                region.references += 1
            return found

    def release(self, regions: Sequence[Region]) -> None:
        """Give back what `use` returned."""
        for region in regions:
            with self._lock:
                region.references -= 1
                is_last = region.references == 0
            if is_last:
                self._forget(region)

    def close(self) -> None:
        """The session is over: nothing more is registered, and what is not used goes."""
        with self._lock:
            self._closed = True
            regions = list(self._regions.values())
            self._regions.clear()
        self.release(regions)

    def _admit(self, region: Region) -> None:
        if self._closed:
            raise Refused(Status.CLOSED, "the session is over")
        if region.number in self._regions:
            raise Refused(Status.INVALID, f"region {region.number} is registered already")
        if len(self._regions) >= self._regions_max:
            raise busy(f"the session has {len(self._regions)} regions")
        mapped = sum(other.mapped_bytes for other in self._regions.values())
        if mapped + region.mapped_bytes > self._mapped_bytes_max:
            raise busy(f"the session has {mapped} bytes mapped")

    def _forget(self, region: Region) -> None:
        self._budget.give_back(region.mapped_bytes)
        region.close()
