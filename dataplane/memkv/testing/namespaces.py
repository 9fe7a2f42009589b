"""Processes in network namespaces, within the virtual machine of deploy/dev/vm.

A program takes long to start under emulation. So one that has imported what it needs forks, and
the child enters another namespace: a node in one, its client in the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

NODE_ADDRESS = "10.99.0.1"
CLIENT_ADDRESS = "10.99.0.2"
CLONE_NEWNET = 0x4000_0000
READY = b"ready"
OWN = "/proc/thread-self/ns/net"


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {path}")


def enter(name: str) -> None:
    """Move the calling thread, and threads that it starts, into the namespace `name`."""
    _enter(f"/run/netns/{name}")


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Enter the namespace, and leave it at the end. Sockets stay where they were made."""
    before = os.open(OWN, os.O_RDONLY)
    try:
        enter(name)
        yield
    finally:
        _enter(f"/proc/self/fd/{before}")
        os.close(before)


class Forked:
    """A function in a child of this process, in a namespace. Fork it while there is one thread.

    The function gets `ready` and `stopped`: it calls `ready()` when it serves, and then waits in
    `stopped()` until the parent says stop, or is gone.
    """

    def __init__(
        self, namespace: str, body: Callable[[Callable[[], None], Callable[[], None]], None]
    ) -> None:
        told, tell = os.pipe()
        hear, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(told)
            os.close(say)
            _run_to_its_end(
                namespace,
                lambda: body(lambda: _tell(tell, READY), lambda: _wait_for_word(hear)),
                tell,
            )
        os.close(tell)
        os.close(hear)
        self._told = told
        self._say = say
        self._ended = False

    def wait_ready(self) -> None:
        """Wait until the child serves. ChildProcessError with its reason when it ends."""
        told = os.read(self._told, select.PIPE_BUF)
        if told != READY:
            self.wait()
            raise ChildProcessError(told.decode(errors="replace") or "it ended without a word")

    def stop(self) -> int:
        """Say stop, wait, and return the exit status."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._say, b"s")
        return self.wait()

    def kill(self) -> None:
        """End it at once."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """Wait for its end. Returns the exit status, negative for a signal."""
        if self._ended:
            return 0
        _, status = os.waitpid(self.pid, 0)
        self._ended = True
        os.close(self._told)
        os.close(self._say)
        return os.waitstatus_to_exitcode(status)


def _tell(fd: int, what: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, what)


def _wait_for_word(fd: int) -> None:
    os.read(fd, 1)


def _run_to_its_end(namespace: str, body: Callable[[], None], tell: int) -> NoReturn:
    status = 1
    try:
        enter(namespace)
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
        _tell(tell, traceback.format_exc().encode()[-select.PIPE_BUF :])
    finally:
        os._exit(status)  # nothing of the parent is tidied up by the child
