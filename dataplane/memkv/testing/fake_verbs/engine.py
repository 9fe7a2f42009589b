"""The thread that moves payload in pieces, and how tests hold it."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memkv.rdma.verbs import Access
from memkv.testing.fake_verbs.knobs import Knobs, Piece
from memkv.testing.fake_verbs.memory import (
    REMOTE_REQUEST,
    RefusedError,
    local_memory,
    remote_memory,
)
from memkv.testing.fake_verbs.queue_pair import State, Transfer

if TYPE_CHECKING:
    from memkv.testing.fake_verbs.queue_pair import FakeQueuePair

SETTLE_S_MAX = 30.0


class Engine:
    """Runs what is posted: one piece at a time, queue pairs in turn.

    The lock is not held while a piece is on its way: whoever must know that memory is no longer
    touched shuts the way first and then waits for the piece, with `wait_for_piece`.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Condition()
        self.knobs = Knobs()
        self.complaints: list[str] = []
        """What was done that no device refuses but none forgives."""
        self.moved_bytes = {"write": 0, "read": 0}
        self._busy: deque[FakeQueuePair] = deque()
        self._pieces_allowed: int | None = None
        self._is_moving = False
        self._pieces_done = 0
        self._is_idle = True
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def complain(self, text: str) -> None:
        """Note a misuse."""
        self.complaints.append(text)

    def route(self, queue_pair: FakeQueuePair) -> FakeQueuePair | None:
        """Return the queue pair that answers this one's packets; None: they are lost."""
        raise NotImplementedError

    # --- holding transfers ---------------------------------------------------------------------

    def hold(self, after_pieces: int = 0) -> None:
        """Let so many more pieces pass, and then none. Bindings are not held."""
        with self.lock:
            self._pieces_allowed = after_pieces
            self.wake()

    def release(self) -> None:
        """Let everything pass again."""
        with self.lock:
            self._pieces_allowed = None
            self.wake()

    def settle(self) -> None:
        """Wait until nothing more can happen by itself: all is done, held, or has lost its peer."""
        with self.lock:
            if not self.lock.wait_for(lambda: self._is_idle, SETTLE_S_MAX):
                raise TimeoutError("the fabric is still moving payload")

    # --- for what belongs to the fabric, with its lock held --------------------------------------

    def schedule(self, queue_pair: FakeQueuePair) -> None:
        """Have the thread look at what a queue pair has posted."""
        if queue_pair not in self._busy:
            self._busy.append(queue_pair)
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="fake-fabric", daemon=True)
            self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Have the thread look again at everything."""
        self._is_idle = not self._busy
        self.lock.notify_all()

    def wait_for_piece(self) -> None:
        """Wait until the piece is done that is on its way now, if there is one."""
        if self._is_moving:
            assert threading.current_thread() is not self._thread, "called from inside a piece"
            done = self._pieces_done
            self.lock.wait_for(lambda: self._pieces_done != done)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self.lock:
                while (found := self._next()) is None:
                    if self._is_closed:
                        return
                    self._is_idle = True
                    self.lock.notify_all()
                    self.lock.wait()
                queue_pair, transfer, piece = found
                flip = self._flip(transfer, piece.size_bytes)
                self._is_moving = True
            self._move(piece, flip)
            with self.lock:
                self._is_moving = False
                self._pieces_done += 1
                self._account(queue_pair, transfer, piece)
                self.lock.notify_all()
            self._call(self.knobs.between, piece)
            if self.knobs.delay_s:
                time.sleep(self.knobs.delay_s)

    def _next(self) -> tuple[FakeQueuePair, Transfer, Piece] | None:
        """Run what takes no time; return the next piece. Queue pairs take turns."""
        for _ in range(len(self._busy)):
            queue_pair = self._busy.popleft()
            found = self._next_of(queue_pair)
            if queue_pair.posted:
                self._busy.append(queue_pair)
            if found is not None:
                return queue_pair, *found
        return None

    def _next_of(self, queue_pair: FakeQueuePair) -> tuple[Transfer, Piece] | None:
        while queue_pair.posted and queue_pair.state is State.READY:
            request = queue_pair.posted[0]
            try:
                if isinstance(request, Transfer):
                    piece = self._piece(queue_pair, request)
                    return None if piece is None else (request, piece)
                request.run(queue_pair)
                queue_pair.finish()
            except RefusedError as refused:
                queue_pair.finish(refused.text)
        return None

    def _piece(self, queue_pair: FakeQueuePair, transfer: Transfer) -> Piece | None:
        """Return the next piece, None while it has to wait; it is checked as if it came alone."""
        peer = self.route(queue_pair)
        if self._pieces_allowed == 0 or peer is None:
            return None
        done = transfer.done
        size = min(self.knobs.piece_bytes, transfer.length - done)
        writes = transfer.is_write
        local = local_memory(
            queue_pair, transfer.local_key, transfer.local, transfer.length, not writes
        )
        try:
            if queue_pair.mtu_bytes > peer.mtu_bytes:
                raise RefusedError(REMOTE_REQUEST)
            wanted = Access.REMOTE_WRITE if writes else Access.REMOTE_READ
            remote = remote_memory(
                peer, transfer.remote_key, transfer.remote, transfer.length, wanted
            )
        except RefusedError:
            peer.refuse_peer()
            raise
        if self._pieces_allowed is not None:
            self._pieces_allowed -= 1
        source, destination = (local, remote) if writes else (remote, local)
        return Piece(
            queue_pair.number, transfer.work, writes, source + done, destination + done, size,
            done, transfer.length,
        )  # fmt: skip

    def _flip(self, transfer: Transfer, size_bytes: int) -> tuple[int, int] | None:
        """Return which byte of this piece is to be changed, and by what."""
        knobs = self.knobs
        if transfer.done or not (knobs.flip_writes if transfer.is_write else knobs.flip_reads):
            return None
        if transfer.is_write:
            knobs.flip_writes -= 1
        else:
            knobs.flip_reads -= 1
        return self.random.randrange(size_bytes), 1 << self.random.randrange(8)

    def _move(self, piece: Piece, flip: tuple[int, int] | None) -> None:
        self._call(self.knobs.inside, piece)
        source = piece.source
        if flip is not None:
            changed = ctypes.create_string_buffer(ctypes.string_at(source, piece.size_bytes))
            position, bit = flip
            changed[position] = bytes([changed[position][0] ^ bit])
            source = ctypes.addressof(changed)
        ctypes.memmove(piece.destination, source, piece.size_bytes)

    def _account(self, queue_pair: FakeQueuePair, transfer: Transfer, piece: Piece) -> None:
        self.moved_bytes["write" if piece.is_write else "read"] += piece.size_bytes
        transfer.done += piece.size_bytes
        is_current = queue_pair.posted and queue_pair.posted[0] is transfer
        if is_current and queue_pair.state is State.READY and transfer.done == transfer.length:
            queue_pair.finish()

    def _call(self, hook: Callable[[Piece], None] | None, piece: Piece) -> None:
        if hook is not None:
            try:
                hook(piece)
            except Exception as error:  # the thread goes on; tests look at complaints
                self.complain(f"a hook raised {error!r}")

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the thread; nothing is moved any more."""
        with self.lock:
            self._is_closed = True
            self._busy.clear()
            self.lock.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()
