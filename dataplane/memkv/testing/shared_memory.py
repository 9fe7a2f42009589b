"""Memory that a test shares with a node by file descriptor, of every kind there is."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType

from memkv import _hotpath

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SharedMemory:
    """A file and its mapping here. Close it after the client that has it registered."""

    def __init__(
        self, size_bytes: int, *, path: Path | None = None, sealed: bool = True, fd_offset: int = 0
    ) -> None:
        """A memfd, sealed against shrinking or not, or a file at `path`."""
        self.size_bytes = size_bytes
        self.fd_offset = fd_offset
        if path is not None:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        else:
            self.fd = os.memfd_create("memkv-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, fd_offset + size_bytes)
        if path is None and sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.mapping = mmap.mmap(self.fd, size_bytes, offset=fd_offset)
        self.address = _hotpath.address_of(self.mapping)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self.mapping[offset : offset + size_bytes]

    def write(self, offset: int, data: bytes) -> None:
        self.mapping[offset : offset + len(data)] = data

    def close(self) -> None:
        self.mapping.close()
        os.close(self.fd)

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
