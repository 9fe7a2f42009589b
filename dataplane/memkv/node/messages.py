"""What a supervisor and its workers say to each other over a socketpair.

Each message is a u32 length (little-endian) and that many bytes of JSON, an object whose "kind"
names the message. Both sides run the same version, so an unknown message is a bug. The end of the
stream means that the other process is gone: a worker then stops, a supervisor restarts the worker.
"""

import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from memkv.errors import ProtocolError

MESSAGE_BYTES_MAX = 16 << 20  # a map of 4 MiB in base64, or the metrics of many tenants

_LENGTH = struct.Struct("<I")
Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant is guaranteed on a worker."""

    tenant: str
    flash_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """First message to a worker: everything it needs to open its drive and listen."""

    pool: str
    node: str
    position: int
    drive: str
    capacity_bytes: int
    memory_bytes: int
    host: str
    port: int
    slots: int
    lane_threads: int
    state_dir: str
    needs_map: bool
    """Serve no key before the first map comes."""
    quotas: tuple[Quota, ...] = ()
    trusting: bool = False
    """Unsigned tickets pass while no ticket key is known."""
    local_dir: str = ""
    """Directory of the Unix socket; empty: none."""
    tls_certificate: str = ""
    """File that encrypts data connections; empty: they are plain."""
    tls_key: str = ""
    tls_authority: str = ""
    """File by which other workers are believed."""
    huge_page_bytes: int = 0
    """Of the huge pages that hold blocks in DRAM; 0: ordinary pages."""
    rdma: bool = False
    """Whether to look for RDMA devices."""
    rdma_devices: tuple[str, ...] = ()
    rdma_gid_index: int = -1
    rdma_traffic_class: int = 0
    rdma_fabric: str = "auto"
    discard: bool = True
    """Tell the drive which of its blocks are unused."""


@dataclass(frozen=True, slots=True)
class MapMessage:
    """A newer map for a worker: `memkv.shardmap.encode_map`, in base64."""

    data: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker judges tickets by from now on. Holds a ticket, so it is never logged."""

    keys: tuple[tuple[str, int | None], ...] = ()
    """(public key in hex, end of its use in seconds since 1970) of accepted tickets."""
    has_metadata: bool = False
    """Whether clients can renew their tickets; else expired ones have a time of grace."""
    peer_ticket: str = field(default="", repr=False)
    """For sessions with other workers, in hex; empty: there is none."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What tenants are guaranteed from now on; all others share."""

    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """Tells a worker to close its store cleanly and end."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric."""

    name: str
    help: str
    labels: Mapping[str, str]
    value: float
    buckets: tuple[tuple[float, int], ...] = ()
    """Of a histogram: (upper bound, values at or below it); `value` is then the sum."""
    counter: bool = False
    """Whether it only grows while the worker runs."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """A tenant's room on a worker: what its blocks take, and what is guaranteed and in force."""

    tenant: str
    flash_bytes: int = 0
    flash_guaranteed_bytes: int = 0
    memory_bytes: int = 0
    memory_guaranteed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker knows of itself, several times a second."""

    uuid: str
    incarnation: int
    port: int
    """0 while it does not serve."""
    capacity_bytes: int = 0
    used_bytes: int = 0
    lineage: str = ""
    applied_epoch: int = 0
    finished: tuple[tuple[int, int], ...] = ()
    """(slot, since_epoch) of ended moves."""
    flash_guaranteed_bytes_max: int = 0
    """What can be guaranteed to all tenants together."""
    memory_guaranteed_bytes_max: int = 0
    tenants: tuple[TenantUsage, ...] = ()
    drive_state: str = ""
    """healthy, suspect or faulted."""
    drive_problem: str = ""
    samples: tuple[Sample, ...] = ()
    rdma_rails: tuple[str, ...] = ()
    """Ports that serve RDMA now."""
    rdma_problem: str = ""
    """Why there are none, or not all; empty also where none is wanted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Last message of a worker that cannot run as it is configured."""

    message: str


Message = Start | MapMessage | Identity | Quotas | Stop | Report | Failed
_KINDS: dict[str, type[Message]] = {
    "start": Start,
    "map": MapMessage,
    "identity": Identity,
    "quotas": Quotas,
    "stop": Stop,
    "report": Report,
    "failed": Failed,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
T = TypeVar("T")


def encode_message(message: Message) -> bytes:
    """Return a message as it goes through the socket."""
    document = {"kind": _NAMES[type(message)], **asdict(message)}
    data = json.dumps(document, separators=(",", ":")).encode("utf-8")
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes")
    return _LENGTH.pack(len(data)) + data


def decode_message(data: bytes) -> Message:
    """Return the message. ProtocolError for anything else."""
    try:
        document = json.loads(data)
        kind = _KINDS[document.pop("kind")]
        names = {item.name for item in fields(kind)}
        if set(document) - names:
            raise ValueError(f"unknown fields {set(document) - names}")
        if kind is Report:
            document["finished"] = tuple((int(a), int(b)) for a, b in document["finished"])
            document["samples"] = tuple(_sample(item) for item in document["samples"])
            document["tenants"] = tuple(TenantUsage(**item) for item in document["tenants"])
            document["rdma_rails"] = tuple(str(name) for name in document["rdma_rails"])
        if kind is Start:
            document["rdma_devices"] = tuple(str(name) for name in document["rdma_devices"])
        if kind in (Start, Quotas):
            document["quotas"] = tuple(Quota(**item) for item in document["quotas"])
        if kind is Identity:
            document["keys"] = tuple(
                (str(key), None if end is None else int(end)) for key, end in document["keys"]
            )
        return kind(**document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a message of this version: {error}") from error


def _sample(document: Json) -> Sample:
    buckets = document.get("buckets", ())
    if not isinstance(buckets, list):
        raise TypeError("buckets")
    changed = {**document, "buckets": tuple((float(a), int(b)) for a, b in buckets)}
    return Sample(**changed)  # type: ignore[arg-type]  # fields were written by encode_message


def map_message(encoded_map: bytes) -> MapMessage:
    """Return the message that carries a map."""
    return MapMessage(base64.b64encode(encoded_map).decode("ascii"))


def map_bytes(message: MapMessage) -> bytes:
    """Return the encoded map of a message."""
    return base64.b64decode(message.data)


class MessageChannel:
    """Messages over a connected stream socket, which it owns. Any thread may send, one receives."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()

    def send(self, message: Message) -> bool:
        """Send, waiting while the other side is slow; False when it is gone."""
        data = encode_message(message)
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                return False
        return True

    def receive(self) -> Message | None:
        """Wait for the next message; None when the other side is gone. ProtocolError."""
        length = self._exactly(_LENGTH.size)
        if length is None:
            return None
        (size,) = _LENGTH.unpack(length)
        if size > MESSAGE_BYTES_MAX:
            raise ProtocolError(f"a message of {size} bytes")
        data = self._exactly(size)
        return None if data is None else decode_message(data)

    def close(self) -> None:
        """End the conversation; a blocked `receive` returns None."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                received = self._socket.recv_into(view)
            except OSError:
                return None
            if not received:
                return None
            view = view[received:]
        return bytes(data)
