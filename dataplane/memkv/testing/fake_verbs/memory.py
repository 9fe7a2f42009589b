"""Regions and windows, and whether a key opens them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from errno import EBUSY, EINVAL
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.rdma.verbs import Access, VerbsError

if TYPE_CHECKING:
    from memkv.testing.fake_verbs.device import FakeDevice
    from memkv.testing.fake_verbs.queue_pair import FakeQueuePair

LOCAL_PROTECTION = "local protection error"
REMOTE_ACCESS = "remote access error"
REMOTE_REQUEST = "remote invalid request error"
WINDOW_BIND = "memory window bind error"
RETRIES = "retry exceeded error"
FLUSHED = "WR flush error"


class RefusedError(Exception):
    """How a request ends that was refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def is_mapped(address: int, size_bytes: int, to_write: bool) -> bool:
    """Whether this process could read (and write) all of it."""
    end = address + size_bytes
    with Path("/proc/self/maps").open("rb") as maps:
        for line in maps:
            where, rights = line.split(b" ", 2)[:2]
            first, last = where.split(b"-")
            if int(last, 16) <= address:
                continue
            if (
                int(first, 16) > address
                or rights[0:1] != b"r"
                or (to_write and rights[1:2] != b"w")
            ):
                return False
            address = int(last, 16)
            if address >= end:
                return True
    return False


class FakeRegion:
    """Implements `memkv.rdma.verbs.MemoryRegion`."""

    def __init__(
        self, device: FakeDevice, address: int, size_bytes: int, access: Access,
        mapping: mmap.mmap | None = None, memory: int = 0,
    ) -> None:  # fmt: skip
        """`memory`: where it really is, when peers name it by another address."""
        self.device = device
        self.address = address
        self.size_bytes = size_bytes
        self.windows: set[FakeWindow] = set()
        self._access = access
        self._mapping = mapping
        self._memory = memory or address
        self._is_open = True
        self._local_key = device.adapter.fabric.new_key()
        self._remote_key = 0
        device.adapter.local_keys[self._local_key] = self
        if access & (Access.REMOTE_WRITE | Access.REMOTE_READ):
            self._remote_key = device.adapter.fabric.new_key()
            device.adapter.remote_keys[self._remote_key] = self

    @property
    def local_key(self) -> int:
        return self._local_key

    @property
    def remote_key(self) -> int:
        return self._remote_key

    @property
    def access(self) -> Access:
        return self._access

    def holds(self, address: int, size_bytes: int) -> bool:
        """Whether all of a range lies in it."""
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes

    def real(self, address: int) -> int:
        """Where an address of it really is."""
        return self._memory + address - self.address

    def close(self) -> None:
        adapter = self.device.adapter
        with adapter.fabric.lock:
            if not self._is_open:
                return
            if self.windows:
                text = f"{adapter.name}: {len(self.windows)} windows are bound to the region"
                raise VerbsError(text, EINVAL)
            self._is_open = False
            del adapter.local_keys[self._local_key]
            adapter.remote_keys.pop(self._remote_key, None)
            self.device.regions.discard(self)
            adapter.fabric.wait_for_piece()
            if not is_mapped(self._memory, self.size_bytes, False):
                adapter.fabric.complain(f"{adapter.name}: registered memory was unmapped")
            if self._mapping is not None:
                self._mapping.close()


@dataclass(frozen=True, slots=True)
class Binding:
    """What a window is open to."""

    queue_pair: FakeQueuePair
    region: FakeRegion
    key: int
    address: int
    size_bytes: int
    access: Access

    def holds(self, address: int, size_bytes: int) -> bool:
        """Whether all of a range lies in it."""
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes


class FakeWindow:
    """Implements `memkv.rdma.verbs.Window`: of type 2B, for one queue pair."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.binding: Binding | None = None
        self.is_open = True
        self.key = 0

    @property
    def remote_key(self) -> int:
        return self.key

    def bind(self, wanted: Binding) -> None:
        """Open it, as the queue pair's next request."""
        region = wanted.region
        writes = bool(wanted.access & Access.REMOTE_WRITE)
        domains = {self.device, region.device, wanted.queue_pair.device}
        is_fit = (
            self.is_open
            and self.binding is None
            and len(domains) == 1
            and self.device.adapter.local_keys.get(region.local_key) is region
            and region.access & Access.WINDOWS
            and (region.access & Access.LOCAL_WRITE or not writes)
            and region.holds(wanted.address, wanted.size_bytes)
        )
        if not is_fit:
            raise RefusedError(WINDOW_BIND)
        self.binding = wanted
        region.windows.add(self)
        self.device.adapter.remote_keys[wanted.key] = self

    def invalidate(self, queue_pair: FakeQueuePair, key: int) -> None:
        """Shut it, as the queue pair's next request."""
        binding = self.binding
        if binding is None or binding.queue_pair is not queue_pair or binding.key != key:
            raise RefusedError(WINDOW_BIND)
        self.shut()

    def shut(self) -> None:
        """End its binding, if it has one."""
        binding, self.binding = self.binding, None
        if binding is None:
            return
        binding.region.windows.discard(self)
        del self.device.adapter.remote_keys[binding.key]

    def close(self) -> None:
        knobs = self.device.adapter.fabric.knobs
        if self.is_open and knobs.refuse_window_closes > 0:
            knobs.refuse_window_closes -= 1
            raise VerbsError("the window cannot be freed", EBUSY)
        self.revoke()

    def revoke(self) -> None:
        """Close it whatever tests have set."""
        fabric = self.device.adapter.fabric
        with fabric.lock:
            if not self.is_open:
                return
            self.is_open = False
            self.device.windows.discard(self)
            self.shut()
            fabric.wait_for_piece()


def local_memory(
    queue_pair: FakeQueuePair, key: int, address: int, size_bytes: int, to_write: bool
) -> int:
    """Return where a request's own memory really is, or refuse."""
    region = queue_pair.device.adapter.local_keys.get(key)
    if (
        region is None
        or region.device is not queue_pair.device
        or not region.holds(address, size_bytes)
        or (to_write and not region.access & Access.LOCAL_WRITE)
    ):
        raise RefusedError(LOCAL_PROTECTION)
    return region.real(address)


def remote_memory(
    queue_pair: FakeQueuePair, key: int, address: int, size_bytes: int, wanted: Access
) -> int:
    """Return where memory really is that the peer of `queue_pair` asks for, or refuse."""
    if not queue_pair.access & wanted:
        raise RefusedError(REMOTE_REQUEST)
    opened = queue_pair.device.adapter.remote_keys.get(key)
    if opened is None or opened.device is not queue_pair.device:
        raise RefusedError(REMOTE_ACCESS)
    if isinstance(opened, FakeRegion):
        region, part, access = opened, opened.holds(address, size_bytes), opened.access
    else:
        binding = opened.binding
        if binding is None or binding.queue_pair is not queue_pair:
            raise RefusedError(REMOTE_ACCESS)
        region, part, access = binding.region, binding.holds(address, size_bytes), binding.access
    if not part or not access & wanted:
        raise RefusedError(REMOTE_ACCESS)
    return region.real(address)
