"""Registered memory of a client in tests."""

import mmap
from weakref import WeakKeyDictionary

from memkv._hotpath import address_of
from memkv.client.rdma_side import RdmaSide
from memkv.client.sync import Client
from memkv.limits import MIB
from memkv.pattern import block, seed_of
from memkv.testing.waiting import eventually

_KEPT: "WeakKeyDictionary[Client, list[Arena]]" = WeakKeyDictionary()
"""Registered memory stays mapped as long as its client."""


def content(key: str, size: int) -> bytes:
    """Return the bytes of a key's block."""
    return bytes(block(seed_of(key), size))


class Arena:
    """Memory that is registered with one client."""

    def __init__(self, client: Client, size_bytes: int = 64 * MIB) -> None:
        self.memory = mmap.mmap(-1, size_bytes)
        self.view = memoryview(self.memory)
        self.address = address_of(self.memory)
        _KEPT.setdefault(client, []).append(self)
        client.register_buffer(self.address, size_bytes)

    def fill(self, offset: int, data: bytes) -> int:
        """Write there, and return the address."""
        self.view[offset : offset + len(data)] = data
        return self.address + offset

    def holds(self, offset: int, data: bytes) -> bool:
        """Whether exactly this lies there. (Bytes: memoryviews compare one element at a time.)"""
        return self.memory[offset : offset + len(data)] == data


def sides(client: Client) -> list[RdmaSide]:
    """Return the client's RDMA sides, one a worker."""
    return [session.rdma for session in client.attachment.core.sessions()]


def lanes_open(client: Client) -> list[int]:
    """Return how many lanes calls may use, by worker."""
    found = [side.lanes for side in sides(client)]
    return [lanes.open_count if lanes is not None else 0 for lanes in found]


def wait_for_lanes(client: Client, count: int = 1) -> None:
    """Wait until each worker is reached over RDMA, by so many lanes."""
    eventually(lambda: min(lanes_open(client), default=0) >= count, "lanes over RDMA")
