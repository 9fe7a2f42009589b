"""A node's rails: the ports that it serves RDMA on, with its memory registered once a device.

    looked at      its state, by refresh(): at the start, at events of the device, and now and then
    usable         clients are connected; lanes on a rail that is not are cut
    chosen         for a client's port of the same kind: in the same network first, then the next in
                   turn from the rail that it asks for; rails near the drive come first

Memory is registered for local use only: no peer ever reads or writes it by itself.
"""

import errno
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from memkv import limits
from memkv._hotpath import address_of
from memkv.clock import Clock
from memkv.rdma.discovery import Fabric, choose
from memkv.rdma.verbs import (
    Access,
    Device,
    EventKind,
    Gid,
    LinkLayer,
    MemoryRegion,
    Peer,
    Port,
    QueuePair,
    Verbs,
    VerbsError,
)
from memkv.status import Status
from memkv.wire.rdma import ConnectRequest, End

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RailOptions:
    """`devices`: names, all when empty; `gid_index`: an override that is checked, -1 for none;
    `near_numa_node`: of the drive, -1 when unknown; `fabric`: whose ports alone are rails."""

    devices: tuple[str, ...] = ()
    gid_index: int = -1
    traffic_class: int = 0
    near_numa_node: int = -1
    fabric: Fabric = Fabric.AUTO


class Refused(Exception):
    """A client is not connected, and why."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class OtherFabric(VerbsError):
    """A device has no port of the fabric that is asked for."""


@dataclass(slots=True, eq=False)
class Rail:
    """One port of one device."""

    device: Device
    region: MemoryRegion
    number: int
    gid: Gid | None = None
    link_layer: LinkLayer = LinkLayer.OTHER
    mtu_bytes: int = 0
    lid: int = 0
    problem: str = "not looked at yet"
    """Why it is not usable; else empty."""
    cuts: set[Callable[[], None]] = field(default_factory=set)
    """Of the lanes on it."""

    @property
    def name(self) -> str:
        return f"{self.device.name}/{self.number}"

    def look(self, port: Port, interfaces: Collection[int], gid_index: int) -> None:
        """Take over what the port says now."""
        self.link_layer, self.mtu_bytes, self.lid = port.link_layer, port.mtu_bytes, port.lid
        choice = choose(port, interfaces, gid_index=gid_index)
        self.gid = choice.gid
        self.problem = "" if choice.gid is not None else choice.reason

    def end_of(self, pair: QueuePair) -> End:
        assert self.gid is not None
        return End(pair.number, pair.sequence, self.mtu_bytes, self.lid, self.gid.value)


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A queue pair that is connected to a client's, and what it needs."""

    pair: QueuePair
    rail: Rail
    local_key: int
    end: End


@dataclass(frozen=True, slots=True)
class RailStatistics:
    """What a worker's rails are like now."""

    usable: tuple[str, ...] = ()
    """Names of the rails that clients can use."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why a device or a rail is not usable, by its name."""
    queue_pairs: int = 0
    broken: int = 0
    """Queue pairs that broke."""


class Rails:
    """All rails of one worker. Thread-safe."""

    def __init__(
        self, verbs: Verbs, memory: memoryview, options: RailOptions, clock: Clock
    ) -> None:
        """Open the devices and register `memory`, which outlives this. A device that refuses is
        left out, with its reason in `problems`. VerbsError: the libraries are missing."""
        self._options = options
        self._clock = clock
        self._verbs = verbs
        self._memory = memory
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._rails: list[Rail] = []
        self._devices: dict[int, Device] = {}  # by event fd
        self._regions: list[MemoryRegion] = []
        self._broken: dict[str, str] = {}
        self._foreign: dict[str, str] = {}
        self._pairs = 0
        self._look_ns = 0
        self._unreachable: dict[bytes, int] = {}
        self.broken = 0
        """Queue pairs that broke."""
        for name in options.devices or verbs.device_names():
            try:
                self._add(*self._opened(name))
            except OtherFabric as error:
                self._foreign[name] = str(error)
            except VerbsError as error:
                self._broken[name] = str(error)
        near = options.near_numa_node
        self._rails.sort(key=lambda rail: (near >= 0 and rail.device.numa_node != near, rail.name))
        self.refresh()

    def _opened(self, name: str) -> tuple[Device, MemoryRegion, list[int]]:
        """Open a device and register the memory with it; the numbers are its ports' of the fabric.
        VerbsError; OtherFabric where there are none."""
        device, fabric = self._verbs.open(name), self._options.fabric
        try:
            memory = self._memory
            numbers = [port.number for port in device.ports() if fabric.takes(port.link_layer)]
            if not numbers and fabric is not Fabric.AUTO:
                raise OtherFabric(f"it has no port of {fabric.value}, which is asked for")
            region = device.register(address_of(memory), memory.nbytes, Access.LOCAL_WRITE)
            return device, region, numbers
        except VerbsError:
            device.close()
            raise

    def _add(self, device: Device, region: MemoryRegion, numbers: Sequence[int]) -> None:
        self._devices[device.event_fd] = device
        self._regions.append(region)
        self._rails += [Rail(device, region, number) for number in numbers]

    def _replace_if_back(self, old: Device) -> bool:
        """Open a device anew that was removed and came back, once no lane is on it any more."""
        rails = [rail for rail in self._rails if rail.device is old]
        if any(rail.cuts for rail in rails) or old.name not in self._verbs.device_names():
            return False
        try:
            device, region, _ = self._opened(old.name)
        except VerbsError as error:
            self._broken[old.name] = str(error)
            return False
        self._broken.pop(old.name, None)
        self._devices = {
            fd: one for fd, one in self._devices.items() if one is not old
        } | {device.event_fd: device}
        gone = {rail.region for rail in rails}
        self._regions = [one for one in self._regions if one not in gone] + [region]
        for rail in rails:
            rail.device, rail.region = device, region
        log.info("RDMA device %s is back", device.name)
        try:
            for one in gone:
                one.close()
            old.close()
        except VerbsError as error:
            log.warning("RDMA device %s does not close: %s", old.name, error)
        return True

    # --- looking ------------------------------------------------------------------------------
    @property
    def event_fds(self) -> list[int]:
        """Of the devices: readable when `take_events` has something to do."""
        return list(self._devices)

    def __len__(self) -> int:
        return len(self._rails)

    @property
    def usable(self) -> list[str]:
        """Names of the rails that clients can use now."""
        return [rail.name for rail in self._rails if not rail.problem]

    @property
    def problems(self) -> dict[str, str]:
        """Why a device or a rail is not usable, by its name. That devices are of another fabric
        than is asked for is a problem only where there is no other."""
        down = {rail.name: rail.problem for rail in self._rails if rail.problem}
        return {**({} if self._rails else self._foreign), **self._broken, **down}

    @property
    def queue_pairs(self) -> int:
        return self._pairs

    def statistics(self) -> RailStatistics:
        return RailStatistics(tuple(self.usable), self.problems, self._pairs, self.broken)

    def regions(self) -> Sequence[MemoryRegion]:
        """Return every registration of the node's memory."""
        return tuple(self._regions)

    def take_events(self, fd: int) -> None:
        """Take the events of the device behind `fd`, and look at its rails."""
        device = self._devices.get(fd)
        if device is None:  # it was replaced
            return
        for event in device.events():
            log.log(
                logging.INFO if event.kind is EventKind.OTHER else logging.WARNING,
                "RDMA device %s, port %d: %s (%s)", device.name, event.port, event.kind.value,
                event.name,
            )  # fmt: skip
            if event.kind is EventKind.DEVICE_GONE:
                self._broken[device.name] = "the device was removed"
        self.refresh()

    def refresh_at_times(self) -> None:
        """Look again where no event told of a change; not at every call."""
        if self._clock.monotonic_ns() >= self._look_ns:
            self.refresh()

    def refresh(self) -> None:
        """Look at every port; lanes on a rail that is not usable any more are cut. A device that is
        opened anew has another event fd."""
        with self._refreshing:
            self._look_ns = self._clock.monotonic_ns() + limits.RDMA_REFRESH_MS * 1_000_000
            self._refresh()

    def _refresh(self) -> None:
        interfaces = self._verbs.interfaces()
        for device in list(self._devices.values()):
            try:
                ports = {port.number: port for port in device.ports()}
            except VerbsError as error:
                ports = {}
                log.debug("device %s: %s", device.name, error)
                if self._replace_if_back(device):
                    self._look_ns = 0  # and look at it soon
            for rail in self._rails:
                if rail.device is device:
                    self._look(rail, ports.get(rail.number), interfaces)

    def _look(self, rail: Rail, port: Port | None, interfaces: Collection[int]) -> None:
        before, gid = rail.problem, rail.gid
        if port is None:
            rail.problem = self._broken.get(rail.device.name, "the device does not answer")
        else:
            rail.look(port, interfaces, self._options.gid_index)
        if rail.problem != before:
            log.info("RDMA rail %s: %s", rail.name, rail.problem or "usable")
        if rail.problem or rail.gid != gid:
            with self._lock:
                cuts = list(rail.cuts)
            for cut in cuts:
                cut()

    # --- clients ------------------------------------------------------------------------------
    def connect(self, request: ConnectRequest, cut: Callable[[], None]) -> Opened:
        """Make the node's end of a connection. Raises Refused. `cut` ends the lane when its rail
        goes down, until `forget`."""
        rail = self._choose(request)
        self._refuse_unreachable(request.end.gid)
        with self._lock:
            if self._pairs >= limits.RDMA_QUEUE_PAIRS_MAX:
                raise Refused(Status.BUSY, f"the worker has {self._pairs} queue pairs")
            self._pairs += 1
            rail.cuts.add(cut)
        started_ns = self._clock.monotonic_ns()
        try:
            return self._connected(rail, request.end)
        except VerbsError as error:
            self.forget(rail, cut)
            if error.number != errno.EINVAL:  # which is said of an attribute, before any address
                self._remember_if_slow(request.end.gid, started_ns)
            raise Refused(Status.UNAVAILABLE, f"{rail.name}: {error}") from error

    def _connected(self, rail: Rail, client: End) -> Opened:
        gid = rail.gid
        if gid is None:
            raise VerbsError(rail.problem)
        pair = rail.device.open_queue_pair(
            rail.number, gid.index, limits.RDMA_DEPTH, Access.NONE, self._options.traffic_class
        )
        try:
            end = rail.end_of(pair)
            pair.connect(
                Peer(
                    client.queue_pair, client.sequence, client.gid, client.lid,
                    min(client.mtu_bytes, rail.mtu_bytes),
                )
            )  # fmt: skip
        except BaseException:
            pair.close()
            raise
        return Opened(pair, rail, rail.region.local_key, end)

    def _refuse_unreachable(self, gid: bytes) -> None:
        """Connecting looks for the way to an address, and for so long no Python runs: up to a
        second where nobody has that address. So it is not looked for again soon."""
        with self._lock:
            until_ns = self._unreachable.get(gid, 0)
        if self._clock.monotonic_ns() < until_ns:
            raise Refused(Status.BUSY, "this GID could not be reached a moment ago; try later")

    def _remember_if_slow(self, gid: bytes, started_ns: int) -> None:
        """What was refused at once cost nobody anything, and may have been the fault of whoever
        named the address of another client."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - started_ns < limits.RDMA_SLOW_CONNECT_MS * 1_000_000:
            return
        with self._lock:
            if len(self._unreachable) >= limits.RDMA_QUEUE_PAIRS_MAX:
                self._unreachable.clear()
            self._unreachable[gid] = now_ns + limits.RDMA_UNREACHABLE_MS * 1_000_000

    def forget(self, rail: Rail, cut: Callable[[], None], *, broken: bool = False) -> None:
        """Undo `connect`, after the queue pair was closed."""
        with self._lock:
            self.broken += broken
            rail.cuts.discard(cut)
            self._pairs -= 1

    def _choose(self, request: ConnectRequest) -> Rail:
        wanted = LinkLayer.INFINIBAND if request.end.lid else LinkLayer.ETHERNET
        usable = [rail for rail in self._rails if not rail.problem and rail.link_layer is wanted]
        if not usable:
            why = "; ".join(f"{name}: {problem}" for name, problem in self.problems.items())
            raise Refused(Status.UNAVAILABLE, why or f"the node has no {wanted.value} port")
        near = [rail for rail in usable if rail.gid and _same_network(rail.gid, request.end.gid)]
        found = near or usable
        return found[request.rail % len(found)]

    def close(self) -> None:
        """Close the devices. Every queue pair was closed before."""
        for region in self._regions:
            region.close()
        for device in self._devices.values():
            device.close()


def _same_network(gid: Gid, other: bytes) -> bool:
    """Whether two addresses look like one network: 24 bits of IPv4 or 64 of IPv6 are alike. Only a
    preference; routed networks work as well."""
    prefix = 15 if gid.value.startswith(bytes(10) + b"\xff\xff") else 8
    return gid.value[:prefix] == other[:prefix]
