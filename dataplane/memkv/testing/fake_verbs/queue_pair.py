"""Queue pairs: what is posted, in what state they are, and what has completed."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from errno import EBADF, EBUSY, EHOSTUNREACH, EINVAL, ENETUNREACH, ENOMEM
from typing import TYPE_CHECKING

from memkv.rdma.verbs import (
    REMOTE,
    Access,
    Completion,
    Event,
    EventKind,
    Gid,
    MemoryRegion,
    Peer,
    VerbsError,
    Window,
)  # fmt: skip
from memkv.testing.fake_verbs.adapter import MTUS
from memkv.testing.fake_verbs.memory import FLUSHED, Binding, FakeRegion, FakeWindow

if TYPE_CHECKING:
    from memkv.testing.fake_verbs.device import FakeDevice

MESSAGE_BYTES_MAX = 1 << 31


class State(Enum):
    """The states of a queue pair that are told apart."""

    NEW = "not connected"
    READY = "connected"
    ERROR = "in error"
    CLOSED = "closed"


@dataclass(slots=True)
class Transfer:
    """A posted WRITE or READ."""

    work: int
    is_write: bool
    local: int
    length: int
    local_key: int
    remote: int
    remote_key: int
    done: int = 0
    is_flipped: bool = False


@dataclass(frozen=True, slots=True)
class Bind:
    """A posted binding."""

    work: int
    window: FakeWindow
    binding: Binding

    def run(self, queue_pair: FakeQueuePair) -> None:
        """Do it, or refuse."""
        self.window.bind(self.binding)


@dataclass(frozen=True, slots=True)
class Invalidate:
    """A posted end of a binding."""

    work: int
    window: FakeWindow
    key: int

    def run(self, queue_pair: FakeQueuePair) -> None:
        """Do it, or refuse."""
        self.window.invalidate(queue_pair, self.key)


Request = Transfer | Bind | Invalidate


class FakeQueuePair:
    """Implements `memkv.rdma.verbs.QueuePair`."""

    def __init__(self, device: FakeDevice, port: int, gid: Gid, depth: int, access: Access) -> None:
        self.device = device
        self.fabric = device.adapter.fabric
        self.port = port
        self.gid = gid
        self.access = access
        self.state = State.NEW
        self.peer: Peer | None = None
        self.mtu_bytes = 0
        self.posted: deque[Request] = deque()
        self._depth = depth
        self._in_use = 0
        """Posted and not yet polled: dropped completions keep their place, as on a NIC."""
        self._complete: deque[Completion] = deque()
        self._is_armed = False
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._number = self.fabric.new_number()
        self._sequence = self.fabric.random.randrange(1 << 24)
        self.fabric.queue_pairs[self._number] = self

    @property
    def number(self) -> int:
        return self._number

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def event_fd(self) -> int:
        return self._event_fd

    def connect(self, peer: Peer) -> None:
        with self.fabric.lock:
            self._must_be_open()
            if self.state is not State.NEW:
                raise VerbsError(f"queue pair {self._number} is {self.state.value}", EINVAL)
            adapter = self.device.adapter
            if not 1 < peer.queue_pair < 1 << 24 or not 0 <= peer.sequence < 1 << 24:
                raise VerbsError("numbers of queue pairs and packets have 24 bits", EINVAL)
            if peer.mtu_bytes not in MTUS:
                raise VerbsError(f"no MTU is {peer.mtu_bytes} bytes", EINVAL)
            if len(peer.gid) != 16:
                raise VerbsError(f"a GID has 16 bytes, not {len(peer.gid)}", EINVAL)
            if adapter.gid(self.port, self.gid.index) != self.gid:
                raise VerbsError(f"GID {self.gid.index} is no longer in the table", EINVAL)
            if not adapter.is_active(self.port):
                raise VerbsError(f"{adapter.name}: port {self.port} is down", ENETUNREACH)
            if not self.fabric.find_ports(peer, self.gid.type):
                raise VerbsError(f"no way to the GID {peer.gid.hex()}", EHOSTUNREACH)
            self.mtu_bytes = min(peer.mtu_bytes, adapter.ports[self.port].mtu_bytes)
            self.peer = peer
            self.state = State.READY
            self.fabric.wake()

    # --- posting -----------------------------------------------------------------------------

    def write(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:  # fmt: skip
        self._transfer(Transfer(work, True, local, length, local_key, remote, remote_key))

    def read(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:  # fmt: skip
        self._transfer(Transfer(work, False, local, length, local_key, remote, remote_key))

    def _transfer(self, transfer: Transfer) -> None:
        if not 0 < transfer.length <= MESSAGE_BYTES_MAX:
            raise VerbsError(f"a message cannot have {transfer.length} bytes", EINVAL)
        if not 0 <= transfer.local < 1 << 64 or not 0 <= transfer.remote < 1 << 64:
            raise VerbsError("addresses have 64 bits", EINVAL)
        with self.fabric.lock:
            self._post(transfer)

    def bind(
        self, work: int, window: Window, region: MemoryRegion, address: int, length: int,
        access: Access,
    ) -> None:  # fmt: skip
        if not isinstance(window, FakeWindow) or not isinstance(region, FakeRegion):
            raise VerbsError("a window or region of other devices", EINVAL)
        if not access or access & ~REMOTE or length <= 0:
            raise VerbsError("a window opens a range to remote accesses", EINVAL)
        with self.fabric.lock:
            key = self.fabric.new_key()
            self._post(Bind(work, window, Binding(self, region, key, address, length, access)))
            window.key = key

    def invalidate(self, work: int, window: Window) -> None:
        if not isinstance(window, FakeWindow):
            raise VerbsError("a window of other devices", EINVAL)
        with self.fabric.lock:
            self._post(Invalidate(work, window, window.key))

    def _post(self, request: Request) -> None:
        self._must_be_open()
        if self.state is State.NEW:
            raise VerbsError(f"queue pair {self._number} is {self.state.value}", EINVAL)
        if self._in_use >= self._depth:
            raise VerbsError(f"{self._depth} requests are in flight already", ENOMEM)
        self._in_use += 1
        if self.state is State.ERROR:
            self._add(Completion(request.work, FLUSHED, True))
            return
        self.posted.append(request)
        self.fabric.schedule(self)

    # --- completing, with the fabric's lock held -----------------------------------------------

    def finish(self, error: str = "") -> None:
        """Complete the oldest request; after an error the others are flushed."""
        self._add(Completion(self.posted.popleft().work, error, False))
        if error:
            self.flush()

    def flush(self) -> None:
        """Go into error. A piece may still be on its way."""
        if self.state is not State.CLOSED:
            self.state = State.ERROR
        while self.posted:
            self._add(Completion(self.posted.popleft().work, FLUSHED, True))
        self.fabric.wake()

    def refuse_peer(self) -> None:
        """Go into error because of what the peer asked for."""
        self.flush()
        if self.fabric.knobs.tells_of_broken_queue_pairs:
            event = Event(EventKind.QUEUE_PAIR_BROKEN, 0, "QP access violation")
            self.device.add_event(event)

    def _add(self, completion: Completion) -> None:
        if self.fabric.knobs.drop_completions > 0:
            self.fabric.knobs.drop_completions -= 1
            return
        self._complete.append(completion)
        if self._is_armed:
            self._is_armed = False
            os.eventfd_write(self._event_fd, 1)

    # --- the rest ----------------------------------------------------------------------------

    def arm(self) -> None:
        with self.fabric.lock:
            self._must_be_open()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)
            self._is_armed = True

    def poll(self) -> Sequence[Completion]:
        with self.fabric.lock:
            self._must_be_open()
            count = min(len(self._complete), self._depth)
            self._in_use -= count
            return [self._complete.popleft() for _ in range(count)]

    def _must_be_open(self) -> None:
        if self.state is State.CLOSED:
            raise VerbsError(f"queue pair {self._number} is closed", EBADF)

    def fail(self) -> None:
        with self.fabric.lock:
            self._must_be_open()
            self.state = State.ERROR
            self.fabric.wait_for_piece()
            self.flush()

    def close(self) -> None:
        if self.state is not State.CLOSED:
            time.sleep(self.fabric.knobs.close_delay_s)
        with self.fabric.lock:
            if self.state is State.CLOSED:
                return
            refusals = self.fabric.knobs.refuse_closes
            if refusals.get(self.device.name, 0) > 0:
                refusals[self.device.name] -= 1
                raise VerbsError(f"queue pair {self._number} cannot be destroyed", EBUSY)
            self.destroy()

    def destroy(self) -> None:
        """Close it whatever tests have set, as the end of its device does."""
        with self.fabric.lock:
            if self.state is State.CLOSED:
                return
            self.state = State.CLOSED
            self.posted.clear()
            del self.fabric.queue_pairs[self._number]
            self.device.queue_pairs.discard(self)
            for window in self.device.windows:
                if window.binding is not None and window.binding.queue_pair is self:
                    window.shut()
            self.fabric.wake()
            self.fabric.wait_for_piece()
            os.close(self._event_fd)
