"""Registered memory of one client: its devices, and every region as each of them has it.

    arena mode     a region is registered with remote rights once, and its key told to the nodes
    strict mode    a region is registered without; each request opens windows, closed after it

Devices are opened with the first region: a client that registers nothing pays for nothing. What a
device refuses goes over TCP, and `problems` says why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from memkv import limits
from memkv.rdma.discovery import choose
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
    """`devices`: names, all when empty; `gid_index`: an override that is checked, -1 for none."""

    mode: MemoryMode = MemoryMode.ARENA
    devices: tuple[str, ...] = ()
    gid_index: int = -1
    traffic_class: int = 0


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


class ClientMemory:
    """Thread-safe. Regions are named by the numbers of the client's table of them."""

    def __init__(self, verbs: Callable[[], Verbs], options: RdmaOptions) -> None:
        """Nothing is opened before the first `add`; `verbs` is called then."""
        self.options = options
        self.problems: dict[str, str] = {}
        """By device, port or region."""
        self._make_verbs = verbs
        self._lock = threading.Lock()
        self._is_open = False
        self._verbs: Verbs | None = None
        self._devices: list[Device] = []
        self._changes = 0
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
        access = self.access
        self._add(
            region, address, size_bytes,
            lambda device: device.register(address, size_bytes, access),
        )

    def add_dmabuf(self, region: int, fd: int, offset: int, size_bytes: int) -> None:
        """Register memory of another device with every device. Raises VerbsError where none can."""
        access = self.access
        self._add(
            region, offset, size_bytes,
            lambda device: device.register_dmabuf(fd, offset, size_bytes, access),
        )
        if region not in self._registered:
            why = self.problems.pop(f"region {region}", "")
            raise VerbsError(why or "; ".join(self.problems.values()) or "no RDMA device")

    def _add(
        self, region: int, address: int, size_bytes: int,
        register: Callable[[Device], MemoryRegion],
    ) -> None:
        found: list[Registered] = []
        with self._lock:
            self._open()
            try:
                for device in self._devices:
                    memory = register(device)
                    found.append(Registered(memory, address, size_bytes, memory.remote_key))
            except VerbsError as error:  # all or none: lanes of all devices serve a region
                self.problems[f"region {region}"] = str(error)
                _close([one.memory for one in found])
                return
            if found:
                self._registered[region] = found

    def remove(self, region: int) -> None:
        """Take memory back: from now on no node reaches it. Windows of it were closed before."""
        with self._lock:
            self.problems.pop(f"region {region}", None)
            found = self._registered.pop(region, [])
        _close([one.memory for one in found])

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
            devices, self._devices = self._devices, []
            self._is_open = True  # and stays without devices
        for found in registered:
            _close([one.memory for one in found])
        for device in devices:
            try:
                device.close()
            except VerbsError as error:
                log.warning("an RDMA device does not close: %s", error)

    def _open(self) -> None:
        if self._is_open:
            return
        self._is_open = True
        try:
            verbs = self._verbs = self._make_verbs()
            names = list(self.options.devices) or verbs.device_names()
        except VerbsError as error:
            self.problems["RDMA"] = str(error)
            return
        for name in names[: limits.RDMA_DEVICES_MAX]:
            try:
                self._devices.append(verbs.open(name))
            except VerbsError as error:
                self.problems[name] = str(error)


def _close(regions: list[MemoryRegion]) -> None:
    for region in regions:
        try:
            region.close()
        except VerbsError as error:
            log.warning("registered memory is not given back: %s", error)


