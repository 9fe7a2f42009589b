"""Transfers under way on one queue pair: posting pieces, awaiting completions, giving up in time.

    posted -> complete                    the device is done with both memories
    posted -> broken                      an error, the deadline, or the peer is gone

Broken is final and for all of them: the queue pair is closed, and only then `Broken` is raised. So
whoever gets it may reuse every buffer. A write to a queue pair that is gone may never complete by
itself (seen for 40 s on soft-RoCE), which is why time is kept here.

A completion that is near is awaited awake: falling asleep and waking up takes as long as 2 MiB take
on a fast link. Then the thread sleeps in epoll, without the GIL.
"""

import logging
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, NoReturn, Protocol, TypeVar

from memkv import limits
from memkv.clock import Clock, remaining_ms
from memkv.errors import PeerGone
from memkv.rdma.regions import Piece
from memkv.rdma.verbs import Completion, QueuePair, VerbsError

TransferT = TypeVar("TransferT")

log = logging.getLogger(__name__)

_CLOSE_PAUSE_S = 0.01
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class _Post(Protocol):
    def __call__(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None: ...


class Broken(PeerGone):
    """The queue pair is closed; nothing touches memory for it any more."""


class Transfers(Generic[TransferT]):
    """Work of one thread at a time on one queue pair, which this owns."""

    def __init__(
        self, pair: QueuePair, local_key: int, peer_fd: int, clock: Clock,
        depth: int = limits.RDMA_DEPTH,
    ) -> None:
        """`local_key`: of the node's memory; `peer_fd`: of the connection that ends with the peer;
        it stays the caller's and outlives this."""
        self._pair = pair
        self._local_key = local_key
        self._clock = clock
        self._depth = depth
        self._posted: deque[int] = deque()
        """Numbers of the pieces in flight, in their order."""
        self._ends: dict[int, TransferT] = {}
        """Transfers by the number of their last piece."""
        self._complete: deque[TransferT] = deque()
        self._numbers = 0
        self._is_closed = False
        self._epoll = select.epoll()
        self._epoll.register(pair.event_fd, select.EPOLLIN)
        self._epoll.register(peer_fd, select.EPOLLRDHUP)

    @property
    def number(self) -> int:
        """Of the queue pair."""
        return self._pair.number

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def __len__(self) -> int:
        """How many transfers were begun and not taken from `completed`."""
        return len(self._ends) + len(self._complete)

    def write(
        self, transfer: TransferT, address: int, pieces: Sequence[Piece], deadline_ns: int
    ) -> None:
        """Begin to write what lies at `address` into the pieces, one after another. Raises Broken.

        Waits where more pieces are in flight than the queue pair takes.
        """
        self._begin(transfer, address, pieces, deadline_ns, self._pair.write)

    def read(
        self, transfer: TransferT, address: int, pieces: Sequence[Piece], deadline_ns: int
    ) -> None:
        """Begin to read the pieces to `address`. Raises Broken."""
        self._begin(transfer, address, pieces, deadline_ns, self._pair.read)

    def completed(self, deadline_ns: int, *, wait: bool) -> list[TransferT]:
        """Take the transfers that are complete; with `wait` at least one, if any was begun. Raises
        Broken."""
        self._collect(self._pair.poll() if self._posted else ())
        while wait and not self._complete and self._ends:
            self._await(deadline_ns)
        found = list(self._complete)
        self._complete.clear()
        return found

    def close(self) -> None:
        """Close the queue pair: from now on no buffer of any transfer is touched.

        A device that refuses is asked until it does not: whoever returned before could lend memory
        that is still written or read. With nothing in flight that may be left to the device's end.
        """
        if self._is_closed:
            return
        while True:
            try:
                self._pair.close()
                break
            except VerbsError as error:
                log.error("queue pair %d does not close: %s", self._pair.number, error)
                if not self._posted:
                    break
                time.sleep(_CLOSE_PAUSE_S)
        self._is_closed = True
        self._epoll.close()
        self._posted.clear()

    # --- inside -------------------------------------------------------------------------------
    def _begin(
        self, transfer: TransferT, address: int, pieces: Sequence[Piece], deadline_ns: int,
        post: _Post,
    ) -> None:  # fmt: skip
        last = self._numbers + len(pieces)
        self._ends[last] = transfer
        for remote, key, length in pieces:
            while len(self._posted) >= self._depth:
                self._await(deadline_ns)
            self._numbers += 1
            try:
                post(self._numbers, address, length, self._local_key, remote, key)
            except VerbsError as error:
                self._break(str(error))
            self._posted.append(self._numbers)
            address += length

    def _await(self, deadline_ns: int) -> None:
        """Wait until at least one more piece is complete."""
        awake_until_ns = min(deadline_ns, self._clock.monotonic_ns() + limits.RDMA_POLL_NS)
        while self._clock.monotonic_ns() < awake_until_ns:
            if self._collect(self._pair.poll()):
                return
        while True:
            self._pair.arm()
            if self._collect(self._pair.poll()):
                return
            left_ms = remaining_ms(self._clock, deadline_ns)
            if left_ms <= 0:
                self._break("the device did not complete a transfer in time: is the peer gone?")
            for _, events in self._epoll.poll(left_ms / 1000):
                if events & _GONE:
                    self._break("the client is gone")

    def _collect(self, completions: Sequence[Completion]) -> int:
        for work, error, _ in completions:
            if error:
                self._break(error)
            if self._posted and self._posted[0] == work:
                self._posted.popleft()
            if work in self._ends:
                self._complete.append(self._ends.pop(work))
        return len(completions)

    def _break(self, why: str) -> NoReturn:
        self.close()
        raise Broken(f"queue pair {self._pair.number}: {why}")
