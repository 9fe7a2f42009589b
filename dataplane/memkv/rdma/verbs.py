"""What MemKV needs of RDMA devices, as Protocols: `driver.py` is the real one.

Every object belongs to the process that opened it. Addresses are virtual addresses of this process;
whoever registers memory keeps it mapped until the region is closed. `close` may be called again;
only the first call does something. Whatever the device refuses is a `VerbsError`, and so is the use
of what is closed (EBADF).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import NamedTuple, Protocol

from memkv.errors import MemKVError


class VerbsError(MemKVError):
    """A device refused. `number` is an errno, 0 when there is none."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


class LinkLayer(Enum):
    ETHERNET = "ethernet"
    INFINIBAND = "infiniband"
    OTHER = "other"


class GidType(Enum):
    INFINIBAND = "IB"
    ROCE_V1 = "RoCE v1"
    ROCE_V2 = "RoCE v2"


@dataclass(frozen=True, slots=True)
class Gid:
    """One entry of a port's GID table."""

    index: int
    value: bytes
    """16 bytes, network order: an IPv6 address, or `::ffff:a.b.c.d`."""
    type: GidType
    interface: int
    """Index of its network interface; 0: none, as on InfiniBand."""


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a device as it is now."""

    device: str
    number: int
    is_active: bool
    state: str
    """For people: "active", "down", ..."""
    link_layer: LinkLayer
    mtu_bytes: int
    """Payload of one packet: 256 to 4096."""
    lid: int
    """Address on InfiniBand; 0 elsewhere."""
    gids: tuple[Gid, ...]


class Access(IntFlag):
    """What a region or a window is open to. Local reading always is."""

    NONE = 0
    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    WINDOWS = 8
    """Memory windows may be bound to it."""


REMOTE = Access.REMOTE_WRITE | Access.REMOTE_READ


@dataclass(frozen=True, slots=True)
class Peer:
    """The other queue pair, as it was told."""

    queue_pair: int
    sequence: int
    """24 bits: number of its first packet."""
    gid: bytes
    lid: int
    mtu_bytes: int


class Completion(NamedTuple):
    """How a work request ended. `error` is empty on success; after any other the queue pair is of
    no use, and what is still posted is flushed."""

    work: int
    """The number that it was posted with."""
    error: str
    is_flushed: bool


class EventKind(Enum):
    """Asynchronous events, by what they mean here."""

    PORT_UP = "port up"
    PORT_DOWN = "port down"
    GIDS_CHANGED = "GID table changed"
    DEVICE_GONE = "device removed"
    QUEUE_PAIR_BROKEN = "queue pair broken"
    OTHER = "other"


class Event(NamedTuple):
    """What to look at again. `port` 0: of the device as a whole, or of a port that the event does
    not name (`ports` tells). Which queue pair broke its completions tell."""

    kind: EventKind
    port: int
    name: str


class MemoryRegion(Protocol):
    """Registered memory."""

    @property
    def local_key(self) -> int: ...
    @property
    def remote_key(self) -> int:
        """0 for a region without remote rights."""

    @property
    def address(self) -> int:
        """What work requests, the peer's too, call its first byte."""

    @property
    def access(self) -> Access: ...
    def close(self) -> None:
        """Deregister: no peer reaches it afterwards. Raises VerbsError while windows are bound."""


class Window(Protocol):
    """A memory window of type 2: bound by a queue pair, for that queue pair only."""

    @property
    def remote_key(self) -> int:
        """Of the last binding; 0 before any."""

    def close(self) -> None:
        """Revoke it, in whatever state the queue pair is, and free it."""


class QueuePair(Protocol):
    """A reliable connection with a completion queue of its own. Not thread-safe."""

    @property
    def number(self) -> int: ...
    @property
    def sequence(self) -> int:
        """24 random bits: number of the first packet that it sends."""

    @property
    def event_fd(self) -> int:
        """Readable after `arm` when completions may be there. Non-blocking; never read it."""

    def connect(self, peer: Peer) -> None:
        """Make it ready to send and to be written to. Once. On Ethernet the kernel may ask for the
        peer's link address and wait seconds for it, in which no thread of Python runs: see that
        the peer is there first."""

    def write(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:
        """Post an RDMA WRITE of `length` bytes from `local` to `remote`; it completes in order."""

    def read(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:
        """Post an RDMA READ of `length` bytes from `remote` into `local`."""

    def bind(
        self, work: int, window: Window, region: MemoryRegion, address: int, length: int,
        access: Access,
    ) -> None:
        """Post the binding of a window that is not bound; `window.remote_key` is its key then,
        another one each time. `access`: REMOTE_WRITE, REMOTE_READ or both."""

    def invalidate(self, work: int, window: Window) -> None:
        """Post that a bound window of this queue pair ends. Revoked only when this completes
        without an error; else `window.close()`."""

    def arm(self) -> None:
        """Have `event_fd` become readable at the next completion. Poll once more after this."""

    def poll(self) -> Sequence[Completion]:
        """Take what is complete, at most the depth."""

    def fail(self) -> None:
        """Refuse what comes from the peer and flush what is posted; completions tell of it."""

    def close(self) -> None:
        """Destroy it. Afterwards no hardware touches memory for it, on either behalf. Windows that
        it has bound are revoked first: a device may wait a minute for one that still is bound."""


class Device(Protocol):
    """An open device with one protection domain. Thread-safe."""

    @property
    def name(self) -> str: ...
    @property
    def numa_node(self) -> int:
        """-1: unknown."""

    def ports(self) -> list[Port]:
        """Look at its ports now. VerbsError when the device is gone."""

    def register(self, address: int, size_bytes: int, access: Access) -> MemoryRegion:
        """Register memory; pins it, and no thread of Python runs meanwhile (tenths of a second a
        GiB). REMOTE_WRITE needs LOCAL_WRITE beside it. VerbsError, of ENOMEM where too little may
        be locked."""

    def register_dmabuf(
        self, fd: int, offset: int, size_bytes: int, access: Access
    ) -> MemoryRegion:
        """Register memory of another device, exported as a dma-buf. Its `address` is `offset`:
        pyverbs offers no other. VerbsError of EOPNOTSUPP where kernel or device cannot."""

    def allocate_window(self) -> Window: ...
    def open_queue_pair(
        self, port: int, gid_index: int, depth: int, access: Access, traffic_class: int = 0
    ) -> QueuePair:
        """Return a queue pair for at most `depth` requests in flight, not connected yet. `access`:
        what its peer may do."""

    @property
    def event_fd(self) -> int:
        """Readable when `events` has something. Non-blocking; never read it."""

    def events(self) -> list[Event]:
        """Take the events that have come."""

    def close(self) -> None:
        """Close what was opened of it: windows, queue pairs, regions, then the device. No other
        thread may be using one of those."""


class Verbs(Protocol):
    """The devices of this machine, as this process may use them."""

    def device_names(self) -> list[str]:
        """Sorted. Empty where there are none. VerbsError: there are some, but the libraries are
        missing; it says how to install them."""

    def interfaces(self) -> Collection[int]:
        """Indexes of the network interfaces that this process's network namespace has."""

    def open(self, name: str) -> Device:
        """Raises VerbsError: no such device, or this process may not use it."""
