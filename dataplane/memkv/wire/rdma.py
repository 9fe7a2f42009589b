"""Bodies of the operations over RDMA: RDMA_CONNECT, RDMA_REGISTER, RDMA_UNREGISTER.

RDMA_GET and RDMA_PUT have the bodies of LOCAL_GET and LOCAL_PUT (`wire/local.py`): blocks travel as
parts of regions, and the node moves the payload. A region is registered for a device of the client,
since keys are a device's; a lane belongs to the device that RDMA_CONNECT names.
"""

import struct
from dataclasses import dataclass

from memkv import limits
from memkv.wire.items import malformed
from memkv.wire.local import ACCESS_KNOWN
from memkv.wire.opcodes import (
    RDMA_CONNECT_BYTES,
    RDMA_CONNECTED_BYTES,
    RDMA_REGISTER_BYTES,
    RDMA_UNREGISTER_BYTES,
)

_CONNECT = struct.Struct("<IIIIIHH16sQ")
_CONNECTED = struct.Struct("<IIII16sQ")
_REGISTER = struct.Struct("<IIIIQQ")
_UNREGISTER = struct.Struct("<II")
_MTU_BYTES = frozenset({256, 512, 1024, 2048, 4096})
_SEQUENCE_MAX = _QUEUE_PAIR_MAX = (1 << 24) - 1

assert _CONNECT.size == RDMA_CONNECT_BYTES
assert _CONNECTED.size == RDMA_CONNECTED_BYTES
assert _REGISTER.size == RDMA_REGISTER_BYTES
assert _UNREGISTER.size == RDMA_UNREGISTER_BYTES


@dataclass(frozen=True, slots=True)
class End:
    """One end of a reliable connection: number and first sequence number of its queue pair (24 bits
    each), its port's GID, LID and MTU."""

    queue_pair: int
    sequence: int
    mtu_bytes: int
    lid: int
    gid: bytes

    def check(self, operation: str) -> None:
        """Raise MalformedBody where a number is none of a queue pair."""
        if self.queue_pair > _QUEUE_PAIR_MAX or self.sequence > _SEQUENCE_MAX:
            raise malformed(operation, "queue pair and sequence number have 24 bits")
        if self.mtu_bytes not in _MTU_BYTES:
            raise malformed(operation, f"no port has an MTU of {self.mtu_bytes} bytes")
        if self.lid > 0xFFFF:
            raise malformed(operation, f"LID {self.lid} has more than 16 bits")


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Ties a lane to a queue pair. `device`: the client's number for its device; `rail`: the node's
    rail that the client would like, counted from 0 and wrapped around."""

    end: End
    device: int
    rail: int

    def encode(self) -> bytes:
        end = self.end
        return _CONNECT.pack(
            end.queue_pair, end.sequence, end.mtu_bytes, end.lid, self.device, self.rail, 0,
            end.gid, 0,
        )  # fmt: skip

    @classmethod
    def decode(cls, body: bytes) -> "ConnectRequest":
        """Raises MalformedBody."""
        operation = "RDMA_CONNECT"
        if len(body) != RDMA_CONNECT_BYTES:
            raise malformed(operation, f"{len(body)} bytes instead of {RDMA_CONNECT_BYTES}")
        queue_pair, sequence, mtu, lid, device, rail, _, gid, _ = _CONNECT.unpack(body)
        end = End(queue_pair, sequence, mtu, lid, gid)
        end.check(operation)
        if device >= limits.RDMA_DEVICES_MAX:
            raise malformed(operation, f"device {device}; they are numbered from 0 on")
        return cls(end, device, rail)


def encode_connected(end: End) -> bytes:
    """Return the body of an RDMA_CONNECT response: the node's end."""
    return _CONNECTED.pack(end.queue_pair, end.sequence, end.mtu_bytes, end.lid, end.gid, 0)


def decode_connected(body: bytes) -> End:
    """Raises MalformedBody."""
    operation = "RDMA_CONNECT response"
    if len(body) != RDMA_CONNECTED_BYTES:
        raise malformed(operation, f"{len(body)} bytes instead of {RDMA_CONNECTED_BYTES}")
    queue_pair, sequence, mtu, lid, gid, _ = _CONNECTED.unpack(body)
    end = End(queue_pair, sequence, mtu, lid, gid)
    end.check(operation)
    return end


@dataclass(frozen=True, slots=True)
class RdmaRegister:
    """Tells of `size_bytes` of the client's memory under a number of its choice.

    `key`: of the memory as `device` has it; 0: each request brings the key of a window.
    """

    region: int
    device: int
    access: int
    key: int
    address: int
    size_bytes: int

    def encode(self) -> bytes:
        return _REGISTER.pack(
            self.region, self.device, self.access, self.key, self.address, self.size_bytes
        )

    @classmethod
    def decode(cls, body: bytes) -> "RdmaRegister":
        """Raises MalformedBody."""
        operation = "RDMA_REGISTER"
        if len(body) != RDMA_REGISTER_BYTES:
            raise malformed(operation, f"{len(body)} bytes instead of {RDMA_REGISTER_BYTES}")
        region, device, access, key, address, size_bytes = _REGISTER.unpack(body)
        if not access or access & ~ACCESS_KNOWN:
            raise malformed(operation, f"access {access:#x} is not in protocol 1")
        if device >= limits.RDMA_DEVICES_MAX:
            raise malformed(operation, f"device {device}; they are numbered from 0 on")
        if not size_bytes or address + size_bytes > 1 << 64:
            raise malformed(operation, f"{size_bytes} bytes at {address:#x} are no memory")
        return cls(region, device, access, key, address, size_bytes)


def encode_rdma_unregister(region: int, device: int) -> bytes:
    """Return the body of an RDMA_UNREGISTER."""
    return _UNREGISTER.pack(region, device)


def decode_rdma_unregister(body: bytes) -> tuple[int, int]:
    """Return the numbers of region and device. Raises MalformedBody."""
    if len(body) != RDMA_UNREGISTER_BYTES:
        raise malformed("RDMA_UNREGISTER", f"{len(body)} bytes, not {RDMA_UNREGISTER_BYTES}")
    region, device = _UNREGISTER.unpack(body)
    return region, device
