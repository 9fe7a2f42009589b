"""Caller memory: registered regions and the scatter lists of batches.

Registration is what RDMA and the local transport need; TCP takes any address. The caller keeps
every buffer alive and mapped from the call until its result (`QUARANTINED`: until `completions()`
gives it back).
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import os
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from memkv.errors import CallerError
from memkv.limits import BLOCK_BYTES_MAX, LOCAL_PARTS_PER_ITEM_MAX
from memkv.wire.local import Access, Part

Segment = tuple[int, int]
"""(address, bytes) of one piece of a block in the caller's memory."""

Scatter = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory; `fd` is set when it is a mapping that the local transport may share.

    In the table `fd` is the table's own duplicate, and `number` names the region to workers.
    `is_foreign`: memory of another device, which this process cannot read.
    """

    address: int
    size_bytes: int
    fd: int | None
    fd_offset: int
    number: int = 0
    access: Access = Access.NONE
    """By its fd."""
    is_foreign: bool = False

    def contains(self, address: int, size_bytes: int) -> bool:
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes


class RegionTable:
    """Registered regions, found by address. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[Region] = []  # sorted by address, never overlapping
        self._numbers = itertools.count(1)
        self._shared_count = 0
        self.foreign_count = 0
        """How many regions are of another device."""
        self.version = 0
        """Grows with every change."""

    def add(self, region: Region) -> Region:
        """Register, and return it as it is in the table. Raises CallerError when it overlaps
        another region or is empty, or when its fd is closed."""
        if region.size_bytes <= 0 or region.address <= 0:
            raise CallerError("a registered buffer needs an address and a positive size")
        with self._lock:
            index = bisect.bisect_left(self._regions, region.address, key=_address)
            before = self._regions[index - 1] if index else None
            after = self._regions[index] if index < len(self._regions) else None
            if (before and before.address + before.size_bytes > region.address) or (
                after and region.address + region.size_bytes > after.address
            ):
                raise CallerError(
                    "the buffer overlaps a registered one; unregister_buffer() that one first"
                )
            region = replace(region, number=next(self._numbers))
            if region.fd is not None:
                region = _owned(region)
                self._shared_count += 1
            self.foreign_count += region.is_foreign
            self.version += 1
            self._regions.insert(index, region)
            return region

    def remove(self, address: int) -> Region:
        """Forget the region that starts at `address`; raises CallerError when there is none."""
        with self._lock:
            for index, region in enumerate(self._regions):
                if region.address == address:
                    self.version += 1
                    self.foreign_count -= region.is_foreign
                    if region.fd is not None:
                        os.close(region.fd)
                        self._shared_count -= 1
                    return self._regions.pop(index)
        raise CallerError(f"no registered buffer starts at address {address:#x}")

    def touch(self) -> None:
        """Have workers be told again: what devices have of the regions changed."""
        with self._lock:
            self.version += 1

    def find(self, address: int, size_bytes: int) -> Region | None:
        """Return the region that holds the whole range, or None."""
        with self._lock:
            index = bisect.bisect_right(self._regions, address, key=_address) - 1
            if index >= 0 and self._regions[index].contains(address, size_bytes):
                return self._regions[index]
        return None

    def locate(
        self, scatter: Scatter, access: Access, usable: Container[int]
    ) -> tuple[Part, ...] | bool:
        """Return where a block's pieces lie in regions with `usable` numbers, empty ones left out.

        True when they lie in regions that can be shared, but not in these; else False. `access`:
        what their descriptors must allow; NONE where it is not by descriptor that they are shared.
        """
        parts: list[Part] = []
        all_usable = True
        for address, size_bytes in scatter:
            if not size_bytes:
                continue
            region = self.find(address, size_bytes)
            if region is None or (access and not region.access & access):
                return False
            all_usable = all_usable and region.number in usable
            parts.append(Part(region.number, address - region.address, size_bytes))
        if not 0 < len(parts) <= LOCAL_PARTS_PER_ITEM_MAX:
            return False
        return tuple(parts) if all_usable else True

    def is_foreign(self, scatter: Scatter) -> bool:
        """Whether a piece lies in memory of another device."""
        if not self.foreign_count:
            return False
        found = [self.find(address, size_bytes) for address, size_bytes in scatter]
        return any(region is not None and region.is_foreign for region in found)

    @property
    def shared_count(self) -> int:
        """How many regions can be shared."""
        return self._shared_count

    def shared(self) -> tuple[int, dict[int, Region]]:
        """Return the version, and the regions that workers on this machine may be given."""
        with self._lock:
            return self.version, {r.number: r for r in self._regions if r.fd is not None}

    def duplicate_fd(self, region: Region) -> int | None:
        """Return another descriptor of a region's file, the caller's to close; None when it is not
        registered any more."""
        with self._lock:
            if region not in self._regions or region.fd is None:
                return None
            return os.dup(region.fd)

    def close(self) -> None:
        """Share nothing any more."""
        with self._lock:
            for region in self._regions:
                if region.fd is not None:
                    os.close(region.fd)
            self._regions = [replace(region, fd=None) for region in self._regions]
            self._shared_count = 0

    def __len__(self) -> int:
        return len(self._regions)


def _owned(region: Region) -> Region:
    assert region.fd is not None
    try:
        mode = fcntl.fcntl(region.fd, fcntl.F_GETFL) & os.O_ACCMODE
        fd = os.dup(region.fd)
    except OSError as error:
        raise CallerError(
            f"fd {region.fd} of a registered buffer: {error.strerror}; it must be open until "
            "register_buffer() returns"
        ) from error
    return replace(region, fd=fd, access=_ACCESS[mode])


_ACCESS = {
    os.O_RDONLY: Access.READ,
    os.O_WRONLY: Access.WRITE,
    os.O_RDWR: Access.READ | Access.WRITE,
}


def _address(region: Region) -> int:
    return region.address


def single_segments(ptrs: Sequence[int], sizes: Sequence[int]) -> list[Scatter]:
    """One contiguous buffer a key. Raises CallerError on lengths that differ or null pointers."""
    if len(ptrs) != len(sizes):
        raise CallerError(f"{len(ptrs)} pointers for {len(sizes)} sizes")
    return [((ptr, size),) for ptr, size in zip(ptrs, sizes, strict=True)]


def multi_segments(
    ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
) -> list[Scatter]:
    """Several pieces a key, in the order of the block's bytes."""
    if len(ptrs) != len(sizes):
        raise CallerError(f"{len(ptrs)} pointer lists for {len(sizes)} size lists")
    scatters = []
    for position, (pieces, lengths) in enumerate(zip(ptrs, sizes, strict=True)):
        if len(pieces) != len(lengths):
            raise CallerError(
                f"key {position}: {len(pieces)} pointers for {len(lengths)} sizes"
            )
        scatters.append(tuple(zip(pieces, lengths, strict=True)))
    return scatters


def check_scatters(scatters: Sequence[Scatter], key_count: int) -> None:
    """Raise CallerError unless there is one usable scatter list for each key."""
    if len(scatters) != key_count:
        raise CallerError(f"{len(scatters)} buffers for {key_count} keys")
    for position, scatter in enumerate(scatters):
        for address, size in scatter:
            if address <= 0 or size < 0:
                raise CallerError(
                    f"key {position}: address {address:#x} with {size} bytes is not a buffer"
                )


def scatter_bytes(scatter: Scatter) -> int:
    """Return the total length of one block's pieces."""
    if len(scatter) == 1:  # nearly always, and asked often
        return scatter[0][1]
    return sum(size for _, size in scatter)


assert BLOCK_BYTES_MAX < 2**32
