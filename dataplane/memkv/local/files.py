"""What a node does with a file descriptor that a client passed: judge it, map it, read and write.

Rule: nothing a client can do with its file may stop or crash the node. A mapping of a file that
shrinks, or of huge pages that ran out, faults; so only memfds of ordinary pages that are sealed
against shrinking are mapped. A file of a file system that another process serves may never answer;
so only file systems of the kernel itself are taken at all.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat

from memkv.status import Status

_TMPFS = 0x01021994
_FILE_SYSTEMS = {
    _TMPFS: "tmpfs",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x794C7630: "overlayfs",
}
_O_PATH = os.O_PATH
_STATFS_BYTES = 256  # more than any struct statfs; the type is its first word
_OFFSET_MAX = (1 << 63) - 1


class Refused(Exception):
    """A descriptor that is not taken: `status` for programs, the text says cause and fix."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


def check(fd: int, offset: int, size_bytes: int, *, read: bool, write: bool) -> None:
    """Raise Refused unless `size_bytes` from `offset` on can be read or written as asked."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _invalid("the descriptor is of no regular file; pass a memfd or a file")
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    mode = flags & os.O_ACCMODE
    if flags & _O_PATH or (read and mode == os.O_WRONLY) or (write and mode == os.O_RDONLY):
        raise _invalid("the descriptor is not open for what is asked of it; open it O_RDWR")
    if write and flags & os.O_APPEND:
        raise _invalid("the file is open with O_APPEND, so it cannot be written in place")
    if not 0 < size_bytes <= _OFFSET_MAX - offset:
        raise _invalid(f"a region of {size_bytes} bytes at {offset} is empty or ends nowhere")
    if offset + size_bytes > status.st_size:
        raise _invalid(
            f"the file has {status.st_size} bytes and the region ends at {offset + size_bytes}; "
            "make the file as long as the memory before registering it"
        )
    kind = _file_system(fd)
    if kind not in _FILE_SYSTEMS:
        names = ", ".join(sorted(_FILE_SYSTEMS.values()))
        raise _invalid(
            f"the file lies on a file system of type {kind:#x}; memory can be shared from memfds "
            f"of ordinary pages and files on {names}"
        )


def may_map(fd: int) -> bool:
    """Return whether a mapping of the file can never fault: a memfd sealed against shrinking.

    Seals are never taken off, so it holds for good. Ask before the size is looked at.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return bool(seals & fcntl.F_SEAL_SHRINK) and _file_system(fd) == _TMPFS


def map_file(fd: int, offset: int, size_bytes: int, *, write: bool) -> tuple[mmap.mmap, int]:
    """Return a shared mapping that holds the range, and where the range begins in it."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    length = offset + size_bytes - start
    try:
        return mmap.mmap(fd, length, mmap.MAP_SHARED, prot, offset=start), offset - start
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise _invalid("the memfd is sealed against what is asked of it") from error
        text = f"the node cannot map {size_bytes} bytes: {error.strerror}"
        raise Refused(Status.BUSY, text) from error


def write_all(fd: int, offset: int, data: memoryview) -> None:
    """Write in place. Raises OSError. The GIL is released."""
    while data.nbytes:
        done = os.pwrite(fd, data, offset)
        offset += done
        data = data[done:]


def read_all(fd: int, offset: int, target: memoryview) -> None:
    """Fill `target`. Raises OSError, EIO when the file has become too short. No GIL."""
    while target.nbytes:
        done = os.preadv(fd, [target], offset)
        if not done:
            raise OSError(errno.EIO, "the file has become shorter than its region")
        offset += done
        target = target[done:]


def _file_system(fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.fstatfs(fd, buffer) != 0:
        return 0
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFF_FFFF


def _invalid(text: str) -> Refused:
    return Refused(Status.INVALID, text)
