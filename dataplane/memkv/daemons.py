"""What long-running processes have in common: which version they are, and how they end."""

import signal
import threading
from collections.abc import Callable
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


def run_until_signalled(
    make: Callable[[], AnyDaemon], started: Callable[[AnyDaemon], None]
) -> None:
    """Run a daemon until SIGTERM or SIGINT; `started` is told when it listens. ConfigError when it
    cannot start."""
    stopping = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: stopping.set())
    daemon = make()
    try:
        daemon.start()
        started(daemon)
        stopping.wait()
    finally:
        daemon.stop()
