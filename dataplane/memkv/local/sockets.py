"""The Unix socket of a worker: `<directory>/<worker uuid>.sock`.

A path in a socket address has at most 107 bytes; longer ones go through a descriptor of their
directory, so that the depth of a directory does not matter.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from memkv.errors import ConfigError

_ADDRESS_BYTES_MAX = 107
_BACKLOG = 128
_DIRECTORY_MODE = 0o700
_SOCKET_MODE = 0o660  # a directory that somebody else made decides who may reach it
_PROBE_TIMEOUT_S = 1.0


def socket_path(directory: Path, worker_uuid: bytes) -> Path:
    """Return where a worker listens for clients on its machine."""
    return directory / f"{worker_uuid.hex()}.sock"


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connected socket. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with _address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


class LocalListener:
    """Listens for clients of one worker. The directory is made, for its owner alone, if need be."""

    def __init__(self, directory: Path, worker_uuid: bytes) -> None:
        """Raises ConfigError. What a dead worker of this uuid left is replaced: whoever holds the
        lock of the drive is the worker."""
        self.path = socket_path(directory.absolute(), worker_uuid)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._bind()
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except ConfigError:
            self.socket.close()
            raise
        except OSError as error:
            self.socket.close()
            raise ConfigError(
                f"cannot listen on {self.path}: {error.strerror}; choose another --local-dir, one "
                "on a local file system that the node can write to"
            ) from error

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self.socket.close()
        with contextlib.suppress(OSError):  # somebody cleaned up already
            self.path.unlink()

    def _bind(self) -> None:
        with _address(self.path) as address:
            try:
                self.socket.bind(address)
            except OSError:
                self._remove_stale()
                self.socket.bind(address)
        self.path.chmod(_SOCKET_MODE)

    def _remove_stale(self) -> None:
        if not self.path.is_socket():
            raise ConfigError(
                f"{self.path} is in the way and is no socket; remove it, or choose another "
                "--local-dir"
            )
        try:
            connect(self.path, _PROBE_TIMEOUT_S).close()
        except OSError:
            self.path.unlink()
            return
        raise ConfigError(
            f"a process listens on {self.path} already; stop it, or choose another --local-dir"
        )


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield a name of `path` that fits a socket address."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
