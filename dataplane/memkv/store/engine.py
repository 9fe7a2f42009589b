"""The engine: brings the core's requests to a device queue, in a writer thread or step by step.

One lock, never held over I/O. With `threads=False` nothing runs by itself: whoever waits drives the
core, one operation after another, so that a test decides every order.
"""

import threading
from collections.abc import Callable, Generator
from typing import Protocol

from memkv.errors import InternalBug
from memkv.io.device import Device, DeviceQueue
from memkv.limits import DEVICE_QUEUE_DEPTH, SECTOR_BYTES
from memkv.store.arena import Extent
from memkv.store.core import StoreCore
from memkv.store.requests import IoKind, IoRequest

IO_WAIT_MS = 1  # while I/O is under way, new puts are noticed after so long at the latest
IDLE_WAIT_S = 0.1  # without I/O; callers wake the writer, this only lets time-outs be noticed
REST_S = 1.0  # with nothing to do at all: each look costs a processor that others could use


def submit(queue: DeviceQueue, token: int, request: IoRequest) -> None:
    """Hand one request to a queue."""
    if request.kind is IoKind.READ:
        queue.read(token, request.offset, request.buffers)
    elif request.kind is IoKind.WRITE:
        queue.write(token, request.offset, request.buffers)
    elif request.kind is IoKind.DISCARD:
        queue.discard(token, request.offset, request.size_bytes)
    else:
        queue.flush(token)


def drive(steps: Generator[list[IoRequest], None, None], queue: DeviceQueue, depth: int) -> None:
    """Run a generator of request lists; each list is complete before the next is asked for."""
    for requests in steps:
        flying: dict[int, IoRequest] = {}
        started = 0
        while started < len(requests) or flying:
            while started < len(requests) and len(flying) < depth:
                flying[started] = requests[started]
                submit(queue, started, requests[started])
                started += 1
            for token, result in queue.wait(1, 1000):
                flying.pop(token).complete(result)


class IdleReader(Protocol):
    """What the writer and prefetch want of a reader."""

    @property
    def is_reading(self) -> bool:
        """Whether a read of flash is under way."""

    def reap_if_idle(self) -> bool:
        """Take back reads that a dropped call left in flight; True if any came back."""


class Engine:
    """Lock, conditions and the writer of one store."""

    def __init__(self, device: Device, depth: int = DEVICE_QUEUE_DEPTH) -> None:
        self.device = device
        self.depth = depth
        self.queue = device.open_queue(depth)
        self.lock = threading.RLock()
        self._work = threading.Condition(self.lock)
        self._done = threading.Condition(self.lock)
        self._waiters = 0
        self._flying: dict[int, IoRequest] = {}
        self._token = 0
        self._core: StoreCore | None = None
        self._thread: threading.Thread | None = None
        self._discards = threading.Condition(self.lock)
        self._discarder: threading.Thread | None = None
        self._stop = False
        self._woken = False
        self.failure: BaseException | None = None
        self.readers: list[IdleReader] = []
        """All open readers; under the lock."""

    def start(self, core: StoreCore, threads: bool) -> None:
        """Take over a recovered core."""
        self._core = core
        self.queue.register_arena(core.arena.memory)
        if threads:
            self._thread = threading.Thread(target=self._run, name="memkv-store", daemon=True)
            self._discarder = threading.Thread(
                target=self._run_discards, name="memkv-discard", daemon=True
            )
            self._thread.start()
            self._discarder.start()

    def wake(self) -> None:
        """Tell the writer that there is work. The lock is held."""
        self._woken = True  # it may just be on its way to sleep, where a notice alone is lost
        self._work.notify()

    def progress(self) -> None:
        """Tell waiting callers that something was finished or released. The lock is held."""
        if self._waiters:
            self._done.notify_all()

    def release(self, extent: Extent) -> None:
        """Give back a reference to an extent."""
        with self.lock:
            assert self._core is not None
            self._core.arena.release(extent)
            self.progress()

    def wait(self, ready: Callable[[], bool], deadline_ns: int) -> bool:
        """Wait with the lock held until `ready()` or the deadline; return `ready()`."""
        core = self._core
        assert core is not None
        if self._thread is None:
            while not ready() and self.pump_once():
                pass
            return ready()
        self.wake()
        self._waiters += 1
        try:
            while not ready():
                left_ns = deadline_ns - core.now_ns()
                if left_ns <= 0 or self._stop or self.failure is not None:
                    return ready()
                self._done.wait(left_ns / 1e9)
        finally:
            self._waiters -= 1
        return True

    def pump_once(self) -> bool:
        """Start what can start and take what is done; False when nothing moved."""
        reaped = self._reap_readers()
        started = self._start_requests()
        if not started and not self._flying:
            return reaped
        self._collect(IO_WAIT_MS)
        return True

    def pump(self) -> None:
        """Run until nothing is left to do (only without threads)."""
        while self.pump_once():
            pass

    def _reap_readers(self) -> bool:
        """Take back the reads that idle readers left behind, when reclaim waits for one of them."""
        assert self._core is not None
        with self.lock:
            readers = list(self.readers) if self._core.reclaim.waits_for_readers else []
        return sum(reader.reap_if_idle() for reader in readers) > 0

    def _start_requests(self) -> int:
        assert self._core is not None
        with self.lock:
            self._woken = False
            requests = self._core.poll(self.depth - len(self._flying))
            if self._core.drive.refuses():
                self.progress()  # puts that waited were failed, and nothing completes for them
            if self._thread is None and len(requests) + len(self._flying) < self.depth:
                discard = self._core.discards.begin()
                requests += [discard] if discard is not None else []
            elif self._thread is not None and self._core.discards.rest_ns() is not None:
                self._discards.notify()
            for request in requests:
                self._token += 1
                self._flying[self._token] = request
        for token in range(self._token - len(requests) + 1, self._token + 1):
            submit(self.queue, token, self._flying[token])
        return len(requests)

    def _collect(self, timeout_ms: int) -> None:
        results = self.queue.wait(1, timeout_ms)
        if not results:
            return
        with self.lock:
            for token, result in results:
                request = self._flying.pop(token)
                self._judge_drive(request, result)
                request.complete(result)
            self.progress()

    def _judge_drive(self, request: IoRequest, result: int) -> None:
        core = self._core
        assert core is not None
        ok, error = request.succeeded(result), -min(result, 0)
        if request.kind is IoKind.READ:
            segment = core.table.at_sector(request.offset // SECTOR_BYTES)
            if not ok:
                core.drive.unread(segment.number, error)
        elif request.kind is not IoKind.DISCARD:
            if ok:
                core.drive.done(request.kind)
            else:
                core.drive.failed(request.kind, error)

    def _run(self) -> None:
        assert self._core is not None
        try:
            while True:
                self._reap_readers()
                started = self._start_requests()
                if self._flying:
                    self._collect(IO_WAIT_MS)
                elif not started:
                    with self.lock:
                        if self._stop:
                            return
                        if not self._woken:
                            self._work.wait(REST_S if self._core.idle() else IDLE_WAIT_S)
        except BaseException as error:  # callers must not wait for a writer that is gone
            with self.lock:
                self.failure = error
                self._done.notify_all()
            raise

    def _run_discards(self) -> None:
        """Discards in a thread and a queue of their own: a drive may take long over one, and the
        system call for block devices waits for it."""
        core = self._core
        assert core is not None
        queue = self.device.open_queue(1)
        try:
            while (request := self._next_discard(core)) is not None:
                submit(queue, 0, request)
                while not (results := queue.wait(1, 1000)):
                    pass
                with self.lock:
                    request.complete(results[0][1])
                    self.wake()
        except BaseException as error:  # a segment would wait for its end for ever
            with self.lock:
                self.failure = error
                self._done.notify_all()
            raise
        finally:
            queue.close()

    def _next_discard(self, core: StoreCore) -> IoRequest | None:
        """Wait for something to discard; None: no more will come."""
        with self.lock:
            while not self._stop:
                request = core.discards.begin()
                if request is not None:
                    return request
                rest_ns = core.discards.rest_ns()
                self._discards.wait(None if rest_ns is None else rest_ns / 1e9)
        return None

    def stop(self) -> None:
        """End the writer after what is in flight, and close its queue."""
        with self.lock:
            self._stop = True
            self._work.notify_all()
            self._done.notify_all()
            self._discards.notify_all()
        for thread in (self._thread, self._discarder):
            if thread is not None:
                thread.join()
        self.queue.close()

    def check(self) -> None:
        """Raise InternalBug when the writer died."""
        if self.failure is not None:
            raise InternalBug(f"the store's writer stopped: {self.failure!r}") from self.failure
