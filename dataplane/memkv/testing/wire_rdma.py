"""RDMA by hand for tests of nodes: lanes of `wire_client`, and a queue pair that the test owns."""

import mmap
import os
from collections.abc import Sequence
from dataclasses import replace

from memkv._hotpath import address_of
from memkv.checksum import seal
from memkv.clock import SystemClock
from memkv.rdma.verbs import REMOTE, Access, Device, MemoryRegion, Peer, QueuePair
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.wire_client import DEADLINE_MS, Got, Lane, WireClient
from memkv.wire.frame import Frame, encode_frame
from memkv.wire.items import PutItem
from memkv.wire.local import Access as Rights
from memkv.wire.local import LocalGetItem, Part, encode_local_get, encode_local_put
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.rdma import (
    ConnectRequest,
    End,
    RdmaRegister,
    decode_connected,
    encode_rdma_unregister,
)

BOTH = Rights.READ | Rights.WRITE


class RdmaPeer:
    """A device of the test's own with registered memory; queue pairs on demand."""

    def __init__(self, fabric: FakeFabric, name: str, size_bytes: int = 4 << 20) -> None:
        self.device: Device = FakeVerbs(fabric, [name]).open(name)
        self.memory = mmap.mmap(-1, size_bytes)
        self.size_bytes = size_bytes
        self.address = address_of(self.memory)
        access = Access.LOCAL_WRITE | Access.WINDOWS | REMOTE
        self.region: MemoryRegion = self.device.register(self.address, size_bytes, access)

    def pair(self) -> tuple[QueuePair, End]:
        """Return a queue pair, and what a node must be told of it."""
        [port] = self.device.ports()
        gid = port.gids[-1]
        pair = self.device.open_queue_pair(port.number, gid.index, 16, REMOTE)
        return pair, End(pair.number, pair.sequence, port.mtu_bytes, port.lid, gid.value)

    def register(self, number: int = 1, device: int = 0, **changes: int) -> RdmaRegister:
        """Return the request that tells a node of the memory, with some fields as given."""
        honest = RdmaRegister(
            number, device, BOTH, self.region.remote_key, self.address, self.size_bytes
        )
        return replace(honest, **changes)

    def close(self) -> None:
        self.device.close()


def request(lane: Lane, opcode: int, body: bytes, count: int = 0, flags: int = 0,
            deadline_ms: int = DEADLINE_MS) -> Frame:  # fmt: skip
    """Send one request and return its answer. Raises RequestFailed."""
    send(lane, opcode, body, count, flags, deadline_ms)
    return lane.answer()


def send(lane: Lane, opcode: int, body: bytes, count: int = 0, flags: int = 0,
         deadline_ms: int = DEADLINE_MS) -> None:  # fmt: skip
    """Send one request."""
    lane.send(
        encode_frame(
            opcode, flags, lane.new_id(), body, count=count, deadline_ms=deadline_ms
        )
    )


def connect(lane: Lane, peer: RdmaPeer, device: int = 0) -> QueuePair:
    """Tie a lane to a new queue pair. Raises RequestFailed."""
    pair, end = peer.pair()
    try:
        node = decode_connected(
            request(lane, Opcode.RDMA_CONNECT, ConnectRequest(end, device, 0).encode()).body
        )
    except BaseException:
        pair.close()
        raise
    pair.connect(
        Peer(
            node.queue_pair, node.sequence, node.gid, node.lid, min(node.mtu_bytes, end.mtu_bytes)
        )
    )
    return pair


def register(lane: Lane, told: RdmaRegister) -> None:
    """Raises RequestFailed."""
    request(lane, Opcode.RDMA_REGISTER, told.encode())


def unregister(lane: Lane, region: int, device: int = 0) -> None:
    """Raises RequestFailed."""
    request(lane, Opcode.RDMA_UNREGISTER, encode_rdma_unregister(region, device))


def get(
    lane: Lane, items: Sequence[LocalGetItem], deadline_ms: int = DEADLINE_MS
) -> dict[int, Got]:
    """Have blocks written; return what the node says of each. Raises RequestFailed."""
    send(lane, Opcode.RDMA_GET, encode_local_get(items), len(items), deadline_ms=deadline_ms)
    return lane.receive_items()


def put_frame(lane: Lane, block_id: bytes, data: bytes, parts: Sequence[Part]) -> bytes:
    """Return the body of one RDMA_PUT of a block that lies in `parts` and should be `data`."""
    made = seal(data, block_id, lane.tenant.tag)
    return encode_local_put(PutItem(block_id, made.length, made.root, made.sums), parts)


def put(lane: Lane, block_id: bytes, data: bytes, parts: Sequence[Part]) -> list[Status]:
    """Put a block. Raises RequestFailed."""
    send(lane, Opcode.RDMA_PUT, put_frame(lane, block_id, data, parts), 1, Flag.LAST)
    return lane.receive_statuses()


def new_id() -> bytes:
    """Return a block id that was never used."""
    return os.urandom(32)


def session(address: tuple[str, int], pool: str) -> WireClient:
    """Open a session with workers that go by the clock."""
    return WireClient(address, pool, now_s=SystemClock().wall_s())


class RdmaClient:
    """A session with one connected lane and registered memory."""

    def __init__(
        self, fabric: FakeFabric, name: str, address: tuple[str, int], pool: str
    ) -> None:
        self.peer = RdmaPeer(fabric, name)
        self.wire = session(address, pool)
        self.lane = self.wire.lane()
        self.pair = connect(self.lane, self.peer)
        register(self.lane, self.peer.register())

    def close(self) -> None:
        """End everything, the queue pair first."""
        self.pair.close()
        self.wire.close()
        self.peer.close()
