"""Caller memory: registered regions and the scatter lists of batches.

Registration is what RDMA and the local transport need; TCP takes any address. The caller keeps
every buffer alive and mapped from the call until its result (`QUARANTINED`: until `completions()`
gives it back).
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from memkv.errors import CallerError
from memkv.limits import BLOCK_BYTES_MAX

Segment = tuple[int, int]
"""(address, bytes) of one piece of a block in the caller's memory."""

Scatter = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory; `fd` is set when it is a mapping that the local transport may share."""

    address: int
    size_bytes: int
    fd: int | None
    fd_offset: int

    def contains(self, address: int, size_bytes: int) -> bool:
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes


class RegionTable:
    """Registered regions, found by address. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[Region] = []  # sorted by address, never overlapping

    def add(self, region: Region) -> None:
        """Register; raises CallerError when it overlaps another region or is empty."""
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
            self._regions.insert(index, region)

    def remove(self, address: int) -> Region:
        """Forget the region that starts at `address`; raises CallerError when there is none."""
        with self._lock:
            for index, region in enumerate(self._regions):
                if region.address == address:
                    return self._regions.pop(index)
        raise CallerError(f"no registered buffer starts at address {address:#x}")

    def find(self, address: int, size_bytes: int) -> Region | None:
        """Return the region that holds the whole range, or None."""
        with self._lock:
            index = bisect.bisect_right(self._regions, address, key=_address) - 1
            if index >= 0 and self._regions[index].contains(address, size_bytes):
                return self._regions[index]
        return None

    def __len__(self) -> int:
        return len(self._regions)


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
    return sum(size for _, size in scatter)


assert BLOCK_BYTES_MAX < 2**32
