"""Memory of an integration that is registered with a client, and the header pages in it."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Protocol

from memkv import _hotpath
from memkv.errors import CallerError, RetryLater
from memkv.integrations.blocks import BlockFormat
from memkv.limits import BLOCK_HEADER_BYTES, HEADER_FORMATS_MAX


class Registrar(Protocol):
    """What of a client an arena needs; the blocking and the asyncio client have it."""

    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int: ...

    def unregister_buffer(self, ptr: int) -> int: ...


class Arena:
    """Zeroed memory that begins on a page, registered with its descriptor: workers on this machine
    read and write it directly, NICs too. Close it before the client, when no call uses it."""

    def __init__(self, client: Registrar, size_bytes: int) -> None:
        self._client = client
        self.size_bytes = size_bytes
        fd = os.memfd_create("memkv-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            # A node maps only what cannot shrink under it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            self._mapping = mmap.mmap(fd, size_bytes)
            self.view = memoryview(self._mapping)
            self.address = _hotpath.address_of(self.view)
            client.register_buffer(self.address, size_bytes, fd=fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the memory back. Views that somebody still has keep it mapped."""
        self._client.unregister_buffer(self.address)
        self.view.release()


class HeaderPages:
    """Header pages for the puts and gets of one client. Thread-safe.

    Puts of one format share one page, which nobody writes again. A get takes a page a block: in a
    shared one, the header of a right block could hide that of a wrong one.
    """

    def __init__(self, client: Registrar, count: int) -> None:
        """`count`: pages that gets may hold at one time."""
        if count < 1:
            raise CallerError(f"{count} pages; a get needs at least one")
        self._arena = Arena(client, (HEADER_FORMATS_MAX + count) * BLOCK_HEADER_BYTES)
        self._lock = threading.Lock()
        self._formats: dict[bytes, int] = {}
        self._free = [
            self._arena.address + (HEADER_FORMATS_MAX + index) * BLOCK_HEADER_BYTES
            for index in reversed(range(count))
        ]

    def of_put(self, block_format: BlockFormat) -> int:
        """Return the address of this format's header. RetryLater after HEADER_FORMATS_MAX formats:
        then the caller puts from a page of its own."""
        header = block_format.header
        with self._lock:
            address = self._formats.get(header)
            if address is None:
                if len(self._formats) == HEADER_FORMATS_MAX:
                    raise RetryLater(f"over {HEADER_FORMATS_MAX} formats of blocks in one process")
                address = self._arena.address + len(self._formats) * BLOCK_HEADER_BYTES
                self.view(address)[:] = header
                self._formats[header] = address
            return address

    def take(self, count: int) -> list[int] | None:
        """Return addresses of pages for a get, or None while so many are not free."""
        with self._lock:
            if count > len(self._free):
                return None
            taken = self._free[len(self._free) - count :]
            del self._free[len(self._free) - count :]
            return taken

    def give_back(self, addresses: Sequence[int]) -> None:
        """Return pages of a get that is over; not of a QUARANTINED one, before it is."""
        with self._lock:
            self._free.extend(addresses)

    def view(self, address: int) -> memoryview:
        """Return the page at `address`."""
        offset = address - self._arena.address
        return self._arena.view[offset : offset + BLOCK_HEADER_BYTES]

    def close(self) -> None:
        self._arena.close()
