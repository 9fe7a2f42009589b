"""Two connected queue pairs with memory on either side, over any `memkv.rdma.verbs.Verbs`."""

import ctypes
import mmap
import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from memkv.rdma.verbs import (
    REMOTE,
    Access,
    Completion,
    Device,
    GidType,
    MemoryRegion,
    Peer,
    QueuePair,
    Verbs,
    Window,
)

OPEN = Access.LOCAL_WRITE | REMOTE | Access.WINDOWS
WAIT_S_MAX = 20.0


class Memory:
    """Page-aligned memory of this process."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.bytes = mmap.mmap(-1, size_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def fill(self, content: bytes) -> None:
        """Repeat the content until the end."""
        self.bytes[:] = (content * (self.size_bytes // len(content) + 1))[: self.size_bytes]

    def close(self) -> None:
        """Unmap it."""
        self.bytes.close()


class End:
    """One side. `close` closes all that it made, windows first, as drivers want it."""

    def __init__(
        self, device: Device, size_bytes: int, region: Access = OPEN,
        queue_pair: Access = Access.LOCAL_WRITE | REMOTE, depth: int = 16,
    ) -> None:  # fmt: skip
        self.device = device
        self.memory = Memory(size_bytes)
        self._windows: list[Window] = []
        self._regions: list[MemoryRegion] = []
        self.region = self.register(region)
        ports = [port for port in device.ports() if port.is_active and port.gids]
        self.port = ports[0]
        known = (GidType.ROCE_V2, GidType.INFINIBAND)
        self.gid = [gid for gid in self.port.gids if gid.type in known][-1]
        self.queue_pair = device.open_queue_pair(
            self.port.number, self.gid.index, depth, queue_pair
        )

    @property
    def address(self) -> int:
        """Where its memory starts."""
        return self.memory.address

    def register(self, access: Access, first: int = 0, size_bytes: int = 0) -> MemoryRegion:
        """Register its memory, or a part of it, once more."""
        size = size_bytes or self.memory.size_bytes - first
        region = self.device.register(self.memory.address + first, size, access)
        self._regions.append(region)
        return region

    def window(self) -> Window:
        """Return a new window."""
        window = self.device.allocate_window()
        self._windows.append(window)
        return window

    def peer(self) -> Peer:
        """Return what the other side has to be told of this one."""
        pair = self.queue_pair
        return Peer(pair.number, pair.sequence, self.gid.value, self.port.lid, self.port.mtu_bytes)

    def write(
        self, other: "End", length: int, *, work: int = 1, first: int = 0, key: int | None = None
    ) -> None:
        """Post a WRITE of the start of this memory into the other's, from byte `first` on."""
        self.queue_pair.write(work, *self._operands(other, length, first, key))

    def read(
        self, other: "End", length: int, *, work: int = 1, first: int = 0, key: int | None = None
    ) -> None:
        """Post a READ of the other's memory, from byte `first` on, into the start of this one."""
        self.queue_pair.read(work, *self._operands(other, length, first, key))

    def _operands(
        self, other: "End", length: int, first: int, key: int | None
    ) -> tuple[int, int, int, int, int]:
        remote_key = other.region.remote_key if key is None else key
        local_key = self.region.local_key
        return self.address, length, local_key, other.address + first, remote_key

    def wait(self, count: int = 1) -> list[Completion]:
        """Return so many completions; TimeoutError when they do not come."""
        return wait(self.queue_pair, count)

    def done(self) -> None:
        """Wait for one completion and require its success."""
        (completion,) = self.wait()
        if completion.error:
            raise AssertionError(f"request {completion.work}: {completion.error}")

    def bound(
        self, access: Access, first: int, length: int, region: MemoryRegion | None = None
    ) -> Window:
        """Return a window that is bound to a part of the memory."""
        window = self.window()
        region = region or self.region
        self.queue_pair.bind(1, window, region, self.address + first, length, access)
        self.done()
        return window

    def close(self) -> None:
        """Close all."""
        for window in self._windows:
            window.close()
        self.queue_pair.close()
        for region in self._regions:
            region.close()
        self.memory.close()


def wait(queue_pair: QueuePair, count: int, seconds_max: float = WAIT_S_MAX) -> list[Completion]:
    """Return so many completions, waiting by `event_fd`; TimeoutError when they do not come."""
    deadline = time.monotonic() + seconds_max
    poll = select.poll()
    poll.register(queue_pair.event_fd, select.POLLIN)
    found = list(queue_pair.poll())
    while len(found) < count:
        queue_pair.arm()
        found += queue_pair.poll()
        if len(found) < count:
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0 or not poll.poll(left_ms):
                raise TimeoutError(f"{len(found)} of {count} completions came: {found}")
            found += queue_pair.poll()
    return found


class Ends:
    """A client and a server, connected."""

    def __init__(
        self, verbs: tuple[Verbs, str], other: tuple[Verbs, str], size_bytes: int = 1 << 20
    ) -> None:
        self.client_device = verbs[0].open(verbs[1])
        self.server_device = other[0].open(other[1])
        self.size_bytes = size_bytes
        self._ends: list[End] = []
        self.client, self.server = self.make()

    def make(
        self, client: Callable[[Device, int], End] = End, server: Callable[[Device, int], End] = End
    ) -> tuple[End, End]:
        """Make and connect one more pair."""
        ends = (
            client(self.client_device, self.size_bytes),
            server(self.server_device, self.size_bytes),
        )
        self._ends += ends
        ends[0].queue_pair.connect(ends[1].peer())
        ends[1].queue_pair.connect(ends[0].peer())
        return ends

    def close(self) -> None:
        """Close all."""
        for end in self._ends:
            end.close()
        self.client_device.close()
        self.server_device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()
