"""What libibverbs refuses, as one sentence with the cause and the fix."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from pyverbs.pyverbs_error import PyverbsError

from memkv.limits import MIB
from memkv.rdma.verbs import VerbsError

HINTS = {
    ("open", errno.EACCES): "this process may not read and write it (`ls -l /dev/infiniband`); in a"
    " pod ask for the RDMA resource of the device plugin",
    ("open", errno.EPERM): "the device cgroup forbids it: in a pod ask for the RDMA resource of the"
    " device plugin, in a container pass it by --device",
    ("open", errno.ENOENT): "load the module ib_uverbs",
    ("register", errno.EFAULT): "the memory is not mapped, or not writable although LOCAL_WRITE is"
    " asked for",
    ("register", errno.EOPNOTSUPP): "memory of this kind cannot be pinned (a file on a file system"
    " with DAX?)",
    ("dma-buf", errno.EOPNOTSUPP): "kernel, provider or device cannot: it takes Linux 5.12, a NIC"
    " with on-demand paging such as ConnectX-5 or later, and no soft-RoCE",
    ("dma-buf", errno.EBADF): "the descriptor is not a dma-buf",
    ("close region", errno.EINVAL): "windows are bound to it: close them first",
    ("close region", errno.EBUSY): "windows are bound to it: close them first",
    ("window", errno.EOPNOTSUPP): "the device has none; arena mode needs none",
    ("queue pair", errno.EOPNOTSUPP): "the device has no reliable connections",
    ("queue pair", errno.ENOMEM): "the device has no more queue pairs of this depth, or too little"
    " memory may be locked (see `ulimit -l`)",
    ("queue pair", errno.EINVAL): "the depth is more than the device has, or the port is wrong",
    ("connect", errno.EINVAL): "the GID index is of another port or no longer there, or the queue"
    " pair was connected before",
    ("connect", errno.ETIMEDOUT): "the peer's address does not answer: are both in one network?",
    ("connect", errno.EHOSTUNREACH): "the peer's address does not answer: are both in one network?",
    ("connect", errno.ENETUNREACH): "there is no route to the peer's address",
    ("post", errno.ENOMEM): "the queue is full: more requests in flight than the depth",
    ("post", errno.EINVAL): "the queue pair is not connected, or the request is not valid",
}  # fmt: skip


def refusal(kind: str, doing: str, error: Exception) -> VerbsError:
    """A pyverbs error as ours. pyverbs gives -1 where it knows no errno, and some are negative."""
    code = getattr(error, "error_code", -1)
    number = abs(code) if isinstance(code, int) and code != -1 else 0
    reason = os.strerror(number) if number else str(error)
    hint = _memory_hint() if (kind, number) in LOCKED else HINTS.get((kind, number), "")
    return VerbsError(f"{doing}: {reason}" + (f"; {hint}" if hint else ""), number)


LOCKED = {("register", errno.ENOMEM), ("register", errno.EPERM), ("dma-buf", errno.ENOMEM)}


def _memory_hint() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / MIB:g} MiB"
    return (
        f"this process may lock too little memory (RLIMIT_MEMLOCK is {limit}): give it"
        " CAP_IPC_LOCK, or `ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit; or too"
        " little memory is free"
    )


@contextmanager
def refusals(kind: str, doing: str) -> Iterator[None]:
    """Turn what pyverbs raises within into a `VerbsError`."""
    try:
        yield
    except PyverbsError as error:
        raise refusal(kind, doing, error) from error
    except OverflowError as error:  # a number that the C field cannot hold
        raise VerbsError(f"{doing}: {error}", errno.EINVAL) from error


def closed(what: str) -> VerbsError:
    """pyverbs would follow a null pointer."""
    return VerbsError(f"{what} is closed", errno.EBADF)
