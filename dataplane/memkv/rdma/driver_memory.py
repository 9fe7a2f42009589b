"""Registered memory and memory windows over pyverbs."""

import errno
import threading
from typing import Any

from pyverbs.mr import MR, MW, DmaBufMR

from memkv.rdma import driver_constants as constants
from memkv.rdma.driver_errors import closed, refusals
from memkv.rdma.driver_event_fd import Closable
from memkv.rdma.verbs import REMOTE, Access, VerbsError


class Domain:
    """A protection domain, and what was opened in it and must be closed before it.

    Strong references: an object that its owner forgot must not be destroyed by the garbage
    collector, in an order of its own.
    """

    def __init__(self, protection: Any) -> None:
        self.protection = protection
        self.lock = threading.RLock()
        """Held while an object ends. It may wait until its events are acknowledged, with the GIL
        held, so taking an event and acknowledging it must not be interrupted by that."""
        self.regions: set[PyVerbsRegion] = set()
        self.windows: set[PyVerbsWindow] = set()
        self.pairs: set[Closable] = set()


class PyVerbsRegion:
    """Implements `MemoryRegion`."""

    def __init__(self, domain: Domain, region: Any, address: int, access: Access) -> None:
        self._domain = domain
        self._region = region
        self.address = address
        self.access = access
        self.local_key = int(region.lkey)
        # Some devices give the local key here too, though no peer may use it.
        self.remote_key = int(region.rkey) if access & REMOTE else 0
        with domain.lock:
            domain.regions.add(self)

    def opened(self) -> Any:
        """The object of pyverbs."""
        if self._region is None:
            raise closed("the memory region")
        return self._region

    def close(self) -> None:
        with self._domain.lock:
            if self._region is None:
                return
            with refusals("close region", "cannot deregister memory"):
                self._region.close()
            self._region = None
            self._domain.regions.discard(self)


def register(domain: Domain, address: int, size_bytes: int, access: Access) -> PyVerbsRegion:
    """Register memory of this process."""
    _check(size_bytes, access)
    if address <= 0:  # pyverbs would allocate memory of its own
        raise VerbsError(f"cannot register memory at address {address}", errno.EINVAL)
    with refusals("register", f"cannot register {size_bytes} bytes"):
        region = MR(domain.protection, size_bytes, constants.access_bits(access), address=address)
    return PyVerbsRegion(domain, region, address, access)


def register_dmabuf(
    domain: Domain, fd: int, offset: int, size_bytes: int, access: Access
) -> PyVerbsRegion:
    """Register memory of another device. pyverbs has the region start at address `offset`."""
    _check(size_bytes, access)
    with refusals("dma-buf", f"cannot register {size_bytes} bytes of dma-buf {fd}"):
        region = DmaBufMR(
            domain.protection, size_bytes, constants.access_bits(access), dmabuf=fd, offset=offset
        )
    return PyVerbsRegion(domain, region, offset, access)


def _check(size_bytes: int, access: Access) -> None:
    if size_bytes <= 0:
        raise VerbsError(f"cannot register {size_bytes} bytes", errno.EINVAL)
    if Access.REMOTE_WRITE in access and Access.LOCAL_WRITE not in access:
        raise VerbsError(f"{access!r} of a region needs LOCAL_WRITE beside it", errno.EINVAL)


class PyVerbsWindow:
    """Implements `Window`, by a new window of the device for each binding: pyverbs does not tell
    the provider the key that a binding made, and so cannot bind a window twice."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._window: Any = None
        self._is_used = False
        self._is_closed = False
        self._bound_by: set[PyVerbsWindow] = set()
        self.remote_key = 0
        self._allocate()
        with domain.lock:
            domain.windows.add(self)

    def fresh(self, bound_by: "set[PyVerbsWindow]") -> Any:
        """A window of the device that was never bound, for a queue pair with these windows."""
        if self._is_closed:
            raise closed("the memory window")
        if self._is_used:
            self.revoke()
            self._allocate()
        self._is_used = True
        self._bound_by = bound_by
        bound_by.add(self)
        return self._window

    def revoke(self) -> None:
        """Free the device's window: no peer gets through it afterwards."""
        with self._domain.lock:
            self._bound_by.discard(self)
            if self._window is None:
                return
            with refusals("window", "cannot free a memory window"):
                self._window.close()
            self._window = None
            self._is_used = True

    def close(self) -> None:
        self.revoke()
        self._is_closed = True
        with self._domain.lock:
            self._domain.windows.discard(self)

    def _allocate(self) -> None:
        with refusals("window", "cannot allocate a memory window of type 2"):
            self._window = MW(self._domain.protection, constants.WINDOW_TYPE_2)
