"""Registered memory of one client: its devices, and every region as each of them has it.

    arena mode     a region is registered with remote rights once, and its key told to the nodes
    strict mode    a region is registered without; each request opens windows, closed after it

Devices are opened with the first region: a client that registers nothing pays for nothing. What a
device refuses goes over TCP, and `problems` says why; `mend` asks again, and opens devices anew
that were removed and came back.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from memkv import limits
from memkv.rdma.discovery import Fabric, choose
from memkv.rdma.verbs import (
    REMOTE,
    Access,
    Device,
    Gid,
    MemoryRegion,
    QueuePair,
    Verbs,
    VerbsError,
)
from memkv.wire.rdma import End

log = logging.getLogger("memkv.client")


class MemoryMode(Enum):
    """How far a client trusts the nodes of its pool."""

    ARENA = "arena"
    """They may write into registered memory as long as they are connected."""
    STRICT = "strict"
    """They may write where a request says, as long as it runs."""


@dataclass(frozen=True, slots=True)
class RdmaOptions:
    """`devices`: names, all when empty; `gid_index`: an override that is checked, -1 for none;
    `fabric`: whose ports alone are used."""

    mode: MemoryMode = MemoryMode.ARENA
    devices: tuple[str, ...] = ()
    gid_index: int = -1
    traffic_class: int = 0
    fabric: Fabric = Fabric.AUTO


@dataclass(frozen=True, slots=True)
class ClientPort:
    """A port that can be used now."""

    device_number: int
    device: Device
    number: int
    gid: Gid
    mtu_bytes: int
    lid: int

    @property
    def name(self) -> str:
        return f"{self.device.name}/{self.number}"

    def end_of(self, pair: QueuePair) -> End:
        return End(pair.number, pair.sequence, self.mtu_bytes, self.lid, self.gid.value)


@dataclass(frozen=True, slots=True)
class Registered:
    """A region as one device has it. `key` 0: windows are opened for it."""

    memory: MemoryRegion
    address: int
    size_bytes: int
    key: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A region that was added."""

    address: int
    size_bytes: int
    fd: int = -1
    """Of a dma-buf, a duplicate."""

    def register(self, device: Device, access: Access) -> Registered:
        if self.fd < 0:
            memory = device.register(self.address, self.size_bytes, access)
        else:
            memory = device.register_dmabuf(self.fd, self.address, self.size_bytes, access)
        return Registered(memory, self.address, self.size_bytes, memory.remote_key)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class ClientMemory:
    """Thread-safe. Regions are named by the numbers of the client's table of them."""

    def __init__(self, verbs: Callable[[], Verbs], options: RdmaOptions) -> None:
        """Nothing is opened before the first `add`; `verbs` is called then."""
        self.options = options
        self.problems: dict[str, str] = {}
        """By device, port or region."""
        self._make_verbs = verbs
        self._lock = threading.Lock()
        self._is_closed = False
        self._verbs: Verbs | None = None
        self._devices: list[Device] = []
        self._changes = 0
        self._wanted: dict[int, _Wanted] = {}
        self._registered: dict[int, list[Registered]] = {}
        """By region; one a device, in the order of devices."""

    @property
    def access(self) -> Access:
        """What regions are registered with."""
        if self.options.mode is MemoryMode.STRICT:
            return Access.LOCAL_WRITE | Access.WINDOWS
        return Access.LOCAL_WRITE | REMOTE

    # --- regions ------------------------------------------------------------------------------
    def add(self, region: int, address: int, size_bytes: int) -> None:
        """Register memory with every device. What is refused is a problem, never an error."""
        self._add(region, _Wanted(address, size_bytes))

    def add_dmabuf(self, region: int, fd: int, offset: int, size_bytes: int) -> None:
        """Register memory of another device with every device. Raises VerbsError where none can."""
        self._add(region, _Wanted(offset, size_bytes, os.dup(fd)))
        if region not in self._registered:
            why = self.problems.get(f"region {region}", "")
            self.remove(region)
            raise VerbsError(why or "; ".join(self.problems.values()) or "no RDMA device")

    def _add(self, region: int, wanted: _Wanted) -> None:
        with self._lock:
            self._wanted[region] = wanted
            self._open_missing()
            self._register(region)

    def _register(self, region: int) -> None:
        found: list[Registered] = []
        wanted = self._wanted[region]
        try:
            # One after another: those before the one that is refused are taken back.
            found.extend(wanted.register(device, self.access) for device in self._devices)
        except VerbsError as error:  # all or none: lanes of all devices serve a region
            self.problems[f"region {region}"] = str(error)
            _close([one.memory for one in found])
            return
        self.problems.pop(f"region {region}", None)
        if found:
            self._registered[region] = found

    def remove(self, region: int) -> None:
        """Take memory back: from now on no node reaches it. Windows of it were closed before."""
        with self._lock:
            self.problems.pop(f"region {region}", None)
            found = self._registered.pop(region, [])
            wanted = self._wanted.pop(region, None)
        _close([one.memory for one in found])
        if wanted is not None:
            wanted.close()

    # --- what was refused, or went --------------------------------------------------------------
    @property
    def is_incomplete(self) -> bool:
        """Whether `mend` has something to do."""
        return len(self._registered) < len(self._wanted) or any(
            device.name in self.problems for device in self._devices
        )

    @property
    def refused(self) -> list[str]:
        """Why regions are not registered."""
        return [why for name, why in list(self.problems.items()) if name.startswith("region ")]

    def mend(self) -> None:
        """Open devices anew that were removed and came back, and register what was refused."""
        with self._lock:
            if not self._wanted or self._is_closed:
                return
            self._open_missing()
            for number in range(len(self._devices)):
                self._replace_if_gone(number)
            for region in self._wanted.keys() - self._registered.keys():
                self._register(region)

    def _replace_if_gone(self, number: int) -> None:
        old = self._devices[number]
        try:
            old.ports()
            return
        except VerbsError as error:
            self.problems[old.name] = str(error)
        try:
            assert self._verbs is not None
            new = self._verbs.open(old.name)
        except VerbsError:
            return
        try:
            anew = {
                region: self._wanted[region].register(new, self.access)
                for region in self._registered
            }
        except VerbsError as error:
            self.problems[old.name] = str(error)
            _close_device(new)
            return
        self._devices[number] = new
        for region, registered in anew.items():
            self._registered[region][number] = registered
        self.problems.pop(old.name, None)
        log.info("RDMA device %s is back", new.name)
        _close_device(old)  # with its regions, and the queue pairs of lanes that end just now

    def regions(self, device_number: int) -> dict[int, Registered]:
        """Return what a device has registered, by region."""
        with self._lock:
            return {number: found[device_number] for number, found in self._registered.items()}

    def find(self, region: int, device_number: int) -> Registered | None:
        with self._lock:
            found = self._registered.get(region)
        return found[device_number] if found else None

    def __len__(self) -> int:
        return len(self._registered)

    # --- ports --------------------------------------------------------------------------------
    def ports(self) -> list[ClientPort]:
        """Look at all ports, and return those that can be used now."""
        found: list[ClientPort] = []
        with self._lock:
            devices, verbs = list(enumerate(self._devices)), self._verbs
        interfaces = verbs.interfaces() if verbs is not None else ()
        for number, device in devices:
            try:
                ports = device.ports()
            except VerbsError as error:
                self.problems[device.name] = str(error)
                continue
            self.problems.pop(device.name, None)
            for port in ports:
                if not self.options.fabric.takes(port.link_layer):
                    continue
                name = f"{port.device}/{port.number}"
                choice = choose(port, interfaces, gid_index=self.options.gid_index)
                if choice.gid is None:
                    self.problems[name] = choice.reason
                    continue
                self.problems.pop(name, None)
                found.append(
                    ClientPort(
                        number, device, port.number, choice.gid, port.mtu_bytes, port.lid
                    )
                )
        return found

    def take_events(self) -> int:
        """Take what devices say; return how often something was said so far."""
        with self._lock:
            for device in self._devices:
                try:
                    events = device.events()
                except VerbsError:  # it is gone: so are its ports
                    self._changes += 1
                    continue
                for event in events:
                    log.info("RDMA device %s: %s", device.name, event.name)
                self._changes += len(events)
            return self._changes

    def open_pair(self, port: ClientPort) -> QueuePair:
        """Return a queue pair that nodes write and read by. VerbsError."""
        return port.device.open_queue_pair(
            port.number, port.gid.index, limits.RDMA_DEPTH, REMOTE, self.options.traffic_class
        )

    def close(self) -> None:
        """Take all memory back and close the devices; every queue pair was closed before."""
        with self._lock:
            registered, self._registered = list(self._registered.values()), {}
            wanted, self._wanted = list(self._wanted.values()), {}
            devices, self._devices = self._devices, []
            self._is_closed = True
        for found in registered:
            _close([one.memory for one in found])
        for device in devices:
            _close_device(device)
        for one in wanted:
            one.close()

    def _open_missing(self) -> None:
        """Open the devices, all or some of which may have been refused before."""
        if self._devices or self._is_closed:
            return
        try:
            verbs = self._verbs = self._make_verbs()
            names = list(self.options.devices) or verbs.device_names()
        except VerbsError as error:
            self.problems["RDMA"] = str(error)
            return
        self.problems.pop("RDMA", None)
        if not names:
            self.problems["RDMA"] = "this machine has no RDMA device; `memkv doctor` says more"
        for name in names[: limits.RDMA_DEVICES_MAX]:
            try:
                self._add_device(name, verbs.open(name))
            except VerbsError as error:
                self.problems[name] = str(error)

    def _add_device(self, name: str, device: Device) -> None:
        """Keep a device with ports of the fabric; memory is not registered with others."""
        fabric = self.options.fabric
        try:
            if fabric is Fabric.AUTO or any(fabric.takes(p.link_layer) for p in device.ports()):
                self._devices.append(device)
                self.problems.pop(name, None)
                return
            self.problems[name] = f"it has no port of {fabric.value}, which is asked for"
        except VerbsError as error:
            self.problems[name] = str(error)
        _close_device(device)


def _close_device(device: Device) -> None:
    try:
        device.close()
    except VerbsError as error:
        log.warning("RDMA device %s does not close: %s", device.name, error)


def _close(regions: list[MemoryRegion]) -> None:
    for region in regions:
        try:
            region.close()
        except VerbsError as error:
            log.warning("registered memory is not given back: %s", error)


