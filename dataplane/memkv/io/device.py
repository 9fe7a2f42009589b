"""What the store sees of its drive: a `Device` with a size, and one `DeviceQueue` for each thread.

Offsets and lengths are multiples of `limits.SECTOR_BYTES`, and buffers are aligned to it: O_DIRECT
takes nothing else. The real one is `file_device.FileDevice`; crash tests bring their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a name for types only; not needed at run time
    from typing_extensions import Buffer


class DeviceQueue(Protocol):
    """One thread's queue of reads and writes. Not thread-safe; a thread opens its own.

    Buffers are held, and must not change (write) or be read (read), until their token returns from
    `wait`. Operations in flight together are not ordered. Results are bytes, or -errno; a short
    count is reported as it is.
    """

    @property
    def in_flight(self) -> int:
        """Operations given whose tokens have not yet returned from `wait`; at most the depth."""

    def register_arena(self, arena: Buffer) -> bool:
        """Register memory to make I/O inside it cheaper; False when refused, which is harmless."""

    def guard(self, fd: int) -> bool:
        """Hold the file of `fd` open until the next call (-1: none). When the process is killed it
        stays open until what is in flight has ended: the peer of a socket sees its end only when
        nothing writes any more. False: not possible here."""

    def read(self, token: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """Queue a read into writable buffers. Raises ValueError when the depth is used up."""

    def write(self, token: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """Queue a write. Raises ValueError when the depth is used up."""

    def flush(self, token: int) -> None:
        """Make durable every write whose token returned before this call, and no others."""

    def discard(self, token: int, offset: int, length: int) -> None:
        """Tell the device that the range is unused: until it is written again it may read as
        zeros, as ones or as it was. A refusal (-EOPNOTSUPP) is harmless. Not ordered with what is
        in flight beside it, and may take long: give it a queue of its own."""

    def wait(self, min_complete: int, timeout_ms: int) -> list[tuple[int, int]]:
        """Start what is queued and return (token, result) of what is done.

        Waits for `min_complete` results (0: none) at most `timeout_ms`; may return fewer.
        """

    def close(self) -> None:
        """Wait for what is in flight, then free the queue. Its results are dropped."""


class Device(Protocol):
    """A drive or file of fixed size. Thread-safe."""

    @property
    def size_bytes(self) -> int:
        """Usable size; a multiple of `limits.SECTOR_BYTES`."""

    @property
    def discard_bytes_max(self) -> int:
        """The longest range that a discard may name; 0: it takes none."""

    @property
    def can_fill(self) -> bool:
        """Whether ENOSPC says that a file system is full. A block device cannot be: one that was
        removed says so, for it has no size any more."""

    def open_queue(self, depth: int) -> DeviceQueue:
        """Return a queue of at most `depth` operations for the calling thread."""

    def close(self) -> None:
        """Release the device. Every queue must be closed before."""
