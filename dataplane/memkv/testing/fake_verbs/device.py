"""What a process opens: devices with a protection domain each, and the machine they belong to."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from errno import EACCES, EBADF, EFAULT, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING

from memkv.rdma.verbs import REMOTE, Access, Event, Port, VerbsError
from memkv.testing.fake_verbs.adapter import Adapter
from memkv.testing.fake_verbs.fabric import FakeFabric
from memkv.testing.fake_verbs.knobs import Registration
from memkv.testing.fake_verbs.memory import FakeRegion, FakeWindow, is_mapped
from memkv.testing.fake_verbs.queue_pair import FakeQueuePair

if TYPE_CHECKING:
    from memkv.rdma.verbs import Verbs


class FakeDevice:
    """Implements `memkv.rdma.verbs.Device`."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.regions: set[FakeRegion] = set()
        self.windows: set[FakeWindow] = set()
        self.queue_pairs: set[FakeQueuePair] = set()
        self._events: list[Event] = []
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_open = True
        adapter.opened.append(self)

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def numa_node(self) -> int:
        return self.adapter.numa_node

    def ports(self) -> list[Port]:
        with self.adapter.fabric.lock:
            self._must_be_there()
            return list(self.adapter.ports.values())

    def _must_be_there(self, kind: str = "") -> None:
        if not self._is_open:
            raise VerbsError(f"{self.name} was closed", EBADF)
        if self.adapter.is_gone:
            raise VerbsError(f"{self.name} is gone", ENODEV)
        if kind and self.adapter.fabric.count_down(kind):
            raise VerbsError(f"{self.name}: no memory for a {kind}", ENOMEM)

    # --- memory ------------------------------------------------------------------------------

    def register(self, address: int, size_bytes: int, access: Access) -> FakeRegion:
        with self.adapter.fabric.lock:
            self._must_be_there("region")
            self._check(address, size_bytes, access)
            if not is_mapped(address, size_bytes, bool(access & Access.LOCAL_WRITE)):
                raise VerbsError(f"no such memory of this process: {address:#x}", EFAULT)
            return self._add(FakeRegion(self, address, size_bytes, access))

    def register_dmabuf(self, fd: int, offset: int, size_bytes: int, access: Access) -> FakeRegion:
        with self.adapter.fabric.lock:
            self._must_be_there("region")
            if not self.adapter.fabric.knobs.accepts_dmabuf:
                raise VerbsError(f"{self.name} cannot register a dma-buf", EOPNOTSUPP)
            self._check(offset, size_bytes, access)
            if offset + size_bytes > os.fstat(fd).st_size:
                raise VerbsError("beyond the end of the dma-buf", EINVAL)
            mapping = mmap.mmap(fd, offset + size_bytes)
            memory = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + offset
            return self._add(FakeRegion(self, offset, size_bytes, access, mapping, memory))

    def _check(self, address: int, size_bytes: int, access: Access) -> None:
        if size_bytes <= 0 or address < 0 or address + size_bytes > 1 << 64:
            raise VerbsError(f"no such range: {size_bytes} bytes from {address:#x}", EINVAL)
        if access & Access.REMOTE_WRITE and not access & Access.LOCAL_WRITE:
            raise VerbsError("REMOTE_WRITE needs LOCAL_WRITE", EINVAL)

    def _add(self, region: FakeRegion) -> FakeRegion:
        self.regions.add(region)
        self.adapter.fabric.registrations.append(
            Registration(self.name, region.address, region.size_bytes, region.access)
        )
        return region

    def allocate_window(self) -> FakeWindow:
        with self.adapter.fabric.lock:
            self._must_be_there("window")
            window = FakeWindow(self)
            self.windows.add(window)
            return window

    # --- the rest ----------------------------------------------------------------------------

    def open_queue_pair(
        self, port: int, gid_index: int, depth: int, access: Access, traffic_class: int = 0
    ) -> FakeQueuePair:
        with self.adapter.fabric.lock:
            self._must_be_there("queue pair")
            gid = self.adapter.gid(port, gid_index) if port in self.adapter.ports else None
            if gid is None:
                raise VerbsError(f"{self.name}: no GID {gid_index} at port {port}", EINVAL)
            if depth <= 0 or access & ~(REMOTE | Access.LOCAL_WRITE):
                raise VerbsError("no such depth or access of a queue pair", EINVAL)
            if not 0 <= traffic_class < 256:
                raise VerbsError("a traffic class has 8 bits", EINVAL)
            queue_pair = FakeQueuePair(self, port, gid, depth, access)
            self.queue_pairs.add(queue_pair)
            return queue_pair

    @property
    def event_fd(self) -> int:
        return self._event_fd

    def add_event(self, event: Event) -> None:
        """Have `events` return it."""
        self._events.append(event)
        os.eventfd_write(self._event_fd, 1)

    def events(self) -> list[Event]:
        with self.adapter.fabric.lock:
            if not self._is_open:
                raise VerbsError(f"{self.name} was closed", EBADF)
            taken, self._events = self._events, []
            if taken:
                os.eventfd_read(self._event_fd)
            return taken

    def close(self) -> None:
        with self.adapter.fabric.lock:
            if not self._is_open:
                return
            self._is_open = False
            for window in list(self.windows):
                window.revoke()
            for queue_pair in list(self.queue_pairs):
                queue_pair.destroy()
            for region in list(self.regions):
                region.close()
            self.adapter.opened.remove(self)
            os.close(self._event_fd)


class FakeVerbs:
    """Implements `memkv.rdma.verbs.Verbs`: a machine that has some of the fabric's adapters."""

    def __init__(self, fabric: FakeFabric, names: Iterable[str], missing: str = "") -> None:
        """Adapters that the fabric lacks are added to it. `missing`: what is not installed."""
        self.fabric = fabric
        self._names = sorted(names)
        self._missing = missing
        for name in self._names:
            if name not in fabric.adapters:
                fabric.add_device(name)

    def _must_be_installed(self) -> None:
        if self._missing:
            raise VerbsError(self._missing)

    def device_names(self) -> list[str]:
        self._must_be_installed()
        return [name for name in self._names if not self.fabric.adapters[name].is_gone]

    def interfaces(self) -> frozenset[int]:
        adapters = self.fabric.adapters.values()
        gids = [gid for one in adapters for port in one.ports.values() for gid in port.gids]
        return frozenset(gid.interface for gid in gids)

    def open(self, name: str) -> FakeDevice:
        self._must_be_installed()
        with self.fabric.lock:
            if name not in self.device_names():
                raise VerbsError(f"no such device: {name}", ENODEV)
            adapter = self.fabric.adapters[name]
            if adapter.is_forbidden:
                raise VerbsError(f"{name}: this process may not use it", EACCES)
            return FakeDevice(adapter)


if TYPE_CHECKING:

    def _implements(verbs: FakeVerbs) -> Verbs:
        return verbs
