"""What long-running processes have in common: which version they are, and how they end."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, TypeVar


class Daemon(Protocol):
    """What runs in threads of its own between `start` and `stop`."""

    def start(self) -> None:
        """Begin. ConfigError when it cannot."""

    def stop(self) -> None:
        """End; called whether or not `start` did its work."""


AnyDaemon = TypeVar("AnyDaemon", bound=Daemon)


def software_version() -> str:
    """Return the version of this installation."""
    try:
        return version("memkv")
    except PackageNotFoundError:
        return "unknown"


class StopSignals:
    """Signals to stop, for the main thread to wait for; those since it was made count.

    A `threading.Event` that a handler sets is not enough. Python runs handlers in the main thread
    between two of its steps: a signal that comes just before the thread goes to sleep is not looked
    at until something else wakes it, and one that comes while it holds the lock of the event waits
    for that lock for ever. Python's C handler writes to the pipe of this class at once.
    """

    def __init__(self, numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Take over the signals and the wakeup fd of this process. Main thread only."""
        self._numbers = frozenset(numbers)
        self._stopping = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, lambda _number, _frame: None)

    def is_set(self) -> bool:
        """Return whether one came."""
        with contextlib.suppress(BlockingIOError):
            came = os.read(self._reader, select.PIPE_BUF)
            self._stopping = self._stopping or not self._numbers.isdisjoint(came)
        return self._stopping

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until one comes; False: none came in time. Other signals begin the time anew."""
        while not self.is_set():
            if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
                return self.is_set()
        return True


def run_until_signalled(
    make: Callable[[], AnyDaemon], started: Callable[[AnyDaemon], None]
) -> None:
    """Run a daemon until SIGTERM or SIGINT; `started` is told when it listens. ConfigError when it
    cannot start."""
    stopping = StopSignals()
    daemon = make()
    try:
        daemon.start()
        started(daemon)
        stopping.wait()
    finally:
        daemon.stop()
