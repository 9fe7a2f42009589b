"""What the pure parts ask of the outside: I/O requests, and what callers ask of the store."""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple


class IoKind(IntEnum):
    """What a request does."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3


class IoRequest:
    """One operation for a device queue; `done` takes its result under the store's lock.

    `done` is told whether exactly `size_bytes` were moved, and the errno (0: none, or short).
    """

    __slots__ = ("buffers", "done", "kind", "offset", "size_bytes")

    def __init__(
        self, kind: IoKind, offset: int, buffers: list[memoryview],
        done: Callable[[bool, int], None], size_bytes: int = 0,
    ) -> None:  # fmt: skip
        """`size_bytes`: of a discard, which has no buffers."""
        self.kind = kind
        self.offset = offset
        self.buffers = buffers
        self.size_bytes = size_bytes or sum(map(len, buffers))
        self.done = done

    def complete(self, result: int) -> None:
        """Take the device's result: bytes, or -errno."""
        self.done(self.succeeded(result), -min(result, 0))

    def succeeded(self, result: int) -> bool:
        """Say whether a result of the device is a success."""
        if self.kind in (IoKind.FLUSH, IoKind.DISCARD):
            return result >= 0
        return result == self.size_bytes


class PutRequest(NamedTuple):
    """A block to store. `root` and `sums` were made by the producer before the first copy."""

    block_id: bytes
    length: int
    root: bytes
    sums: bytes
    ttl_s: int = 0
    depth: int = 0
    prefix_id: bytes = bytes(8)
    session_id: bytes = bytes(8)
    durable: bool = False
    expiry_s: int = 0
    """Wall time, instead of `ttl_s`: for a block that already lived elsewhere."""
    unless_deleted_since: int | None = None
    """A generation: the block is a copy of what another worker has, and is refused with MISS when
    this store deleted its key, or all of its slot or tenant, after that."""
