"""A preallocated file or a raw block device as a `Device`.

The owner lock is `flock` on the same open file that carries the I/O. The kernel drops it only when
the last operation in flight has let go of that file, so that the successor of a killed process
cannot open the device while its predecessor's writes may still land.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from memkv import limits
from memkv._hotpath import IoRing
from memkv.errors import CallerError, ConfigError
from memkv.io.block_device import BlockDevice

if TYPE_CHECKING:
    from memkv.io.device import DeviceQueue

log = logging.getLogger(__name__)

_CAUSES: Final[dict[int, str]] = {
    errno.ENOENT: "there is no such file; create it first, or check the path",
    errno.EACCES: "permission denied; run as its owner or change its mode",
    errno.EPERM: "not permitted; check the immutable flag and the container's device rules",
    errno.EROFS: "the file system is read-only; remount it read-write",
    errno.EISDIR: "this is a directory; name a file in it",
    errno.ENOTDIR: "a part of the path is not a directory; check the path",
    errno.EMFILE: "no file descriptors are left; raise ulimit -n",
    errno.EBUSY: "the device is mounted or in use by another part of the system or by another "
    "container; find out by whom (lsblk, dmsetup ls, fuser -v) and unmount or stop it",
    errno.ENXIO: "no device is behind this name; check that the drive is present (lsblk)",
}


class FileDevice:
    """Exclusively owned storage of fixed size. Thread-safe; each thread opens its own queue."""

    def __init__(
        self, fd: int, path: str, size_bytes: int, *, use_io_uring: bool = True
    ) -> None:
        """Take over `fd`, which must hold the owner lock. Use `create` or `open`."""
        self._fd = fd
        self._path = path
        self._size_bytes = size_bytes
        self._use_io_uring = use_io_uring
        self._fallback_told = False
        self._block = BlockDevice.of(os.fstat(fd))

    @classmethod
    def create(
        cls, path: str, size_bytes: int, *, direct: bool = True, use_io_uring: bool = True
    ) -> FileDevice:
        """Make a new file with all its space allocated, and own it.

        It gets its name when it is whole: what a process killed meanwhile leaves behind, PATH.new,
        is used again and never taken for a drive. Raises ConfigError when the file exists, or the
        space or the rights are missing; then nothing is left behind.
        """
        refuse_device_name(path)
        if size_bytes < limits.SECTOR_BYTES or size_bytes % limits.SECTOR_BYTES:
            raise CallerError(
                f"size {size_bytes} of {path} is not a positive multiple of {limits.SECTOR_BYTES}"
            )
        unfinished = f"{path}.new"
        try:
            fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refusal("create", path, error) from error
        try:
            _lock(fd, unfinished, 0)  # whoever else makes it is refused
            try:
                _refuse_existing(path)
                _allocate(fd, path, size_bytes)
                os.rename(unfinished, path)
                _sync_folder(path)
            except BaseException:
                _unlink(unfinished)
                raise
        finally:
            os.close(fd)
        try:
            return cls.open(path, direct=direct, lock_wait_ms=0, use_io_uring=use_io_uring)
        except BaseException:
            _unlink(path)
            raise

    @classmethod
    def open(
        cls,
        path: str,
        *,
        direct: bool = True,
        lock_wait_ms: int = limits.DEVICE_LOCK_WAIT_MS,
        use_io_uring: bool = True,
    ) -> FileDevice:
        """Own an existing file or block device.

        `lock_wait_ms` bounds the wait for a killed predecessor's last I/O; a holder that is alive
        is refused at once. `direct=False` goes through the page cache, for file systems without
        O_DIRECT; `use_io_uring=False` does without io_uring. Raises ConfigError with the cause and
        the fix.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        try:
            status = os.stat(path)
            block = BlockDevice.of(status)
            if block is not None:
                fd = _open_block(path, flags, block, lock_wait_ms)
            elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                fd = os.open(path, flags)
            else:
                raise ConfigError(f"{path} is neither a regular file nor a block device")
        except OSError as error:
            if error.errno == errno.EINVAL and direct:
                raise ConfigError(
                    f"cannot open {path}: its file system refuses O_DIRECT; put the file on ext4 "
                    "or xfs, name a block device, or allow buffered I/O (direct=False)"
                ) from error
            raise _refusal("open", path, error) from error
        try:
            _lock(fd, path, lock_wait_ms)
            size_bytes = os.lseek(fd, 0, os.SEEK_END) // limits.SECTOR_BYTES * limits.SECTOR_BYTES
            if size_bytes == 0:
                raise ConfigError(
                    f"{path} is too small: it must hold at least {limits.SECTOR_BYTES} bytes; "
                    "remove it and create it anew, or name another device"
                )
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path, size_bytes, use_io_uring=use_io_uring)

    @property
    def path(self) -> str:
        return self._path

    @property
    def discard_bytes_max(self) -> int:
        """See `Device`. 0 for files: a hole in a file gives away the space that was reserved for
        it, and a later write could find the file system full."""
        return self._block.discard_bytes_max if self._block is not None else 0

    @property
    def block(self) -> BlockDevice | None:
        """The block device that it is; None: a file."""
        return self._block

    @property
    def can_fill(self) -> bool:
        """See `Device`."""
        return self._block is None

    @property
    def size_bytes(self) -> int:
        """Whole sectors of the file or device, in bytes."""
        return self._size_bytes

    def open_queue(self, depth: int) -> DeviceQueue:
        """Return a queue of at most `depth` operations for one thread.

        Where io_uring is refused it works by pread and pwrite; the cause and the fix are logged,
        once for a device.
        """
        if self._fd < 0:
            raise CallerError(f"{self._path} is closed")
        ring = IoRing(self._fd, depth, use_io_uring=self._use_io_uring)
        if self._use_io_uring and ring.fallback_reason and not self._fallback_told:
            self._fallback_told = True
            log.warning("%s: %s", self._path, ring.fallback_reason)
        return ring

    def close(self) -> None:
        """Release the lock and the file. Every queue must be closed before."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        # A closed ring lets go of the file a moment later; its I/O is done, so unlock by hand.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def refuse_device_name(path: str) -> None:
    """Raise ConfigError for a name of a device that is not there: a file made in its place would
    lie in the memory of /dev, and be taken for the drive."""
    where = os.path.abspath(path)
    if where.startswith("/dev/") and not where.startswith("/dev/shm/"):
        raise ConfigError(
            f"no device is behind {path}: check that the drive is present and its name is right"
            " (lsblk, ls -l /dev/disk/by-id). No file is made below /dev"
        )


def _open_block(path: str, flags: int, block: BlockDevice, wait_ms: int) -> int:
    """Open a device exclusively: the kernel refuses one that is mounted, part of an array, or open
    exclusively elsewhere, also in another container. Waits as `_lock` does."""
    if block.is_read_only:
        raise ConfigError(
            f"{path} ({block.name}) is read-only: a drive at the end of its life is; else see"
            " blockdev --getro, a lock of its own, or how it was attached"
        )
    if block.sector_bytes > limits.SECTOR_BYTES:
        raise ConfigError(
            f"{path} ({block.name}) has sectors of {block.sector_bytes} bytes, and"
            f" {limits.SECTOR_BYTES} are the most that is supported: format the namespace with"
            " another LBA format (nvme format), or use another drive"
        )
    deadline_ns = time.monotonic_ns() + wait_ms * 1_000_000
    while True:
        try:
            return os.open(path, flags | os.O_EXCL)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if block.use:
                raise ConfigError(
                    f"{path} ({block.name}) is {block.use}: nothing on it was touched; unmount or"
                    " detach it if nobody wants what is on it, or name another drive"
                ) from error
            holder = _holder_of_device(path)
            if (holder is not None and _is_alive(holder)) or time.monotonic_ns() >= deadline_ns:
                refusal = _in_use(path, holder) if holder else _refusal("open", path, error)
                raise refusal from error
            time.sleep(limits.DEVICE_LOCK_POLL_MS / 1000)


def _holder_of_device(path: str) -> int | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _holder_of(fd)
    finally:
        os.close(fd)


def _in_use(path: str, holder: int) -> ConfigError:
    if _is_alive(holder):
        return ConfigError(
            f"{path} is in use by process {holder}; stop it, or give each worker a file or device"
            " of its own"
        )
    return ConfigError(
        f"{path} is still held by process {holder}, which is gone: I/O that never ended? See"
        " dmesg"
    )


def _refusal(verb: str, path: str, error: OSError) -> ConfigError:
    cause = _CAUSES.get(error.errno or 0, error.strerror or "unknown error")
    return ConfigError(f"cannot {verb} {path}: {cause}")


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        raise ConfigError(
            f"{path} exists already; open it, or remove it if its blocks are not wanted"
        )


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _allocate(fd: int, path: str, size_bytes: int) -> None:
    """Reserve the space now, so that a write can never find the file system full."""
    try:
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size_bytes)
        os.fsync(fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = os.statvfs(os.path.dirname(path) or ".")
            free_bytes = there.f_bavail * there.f_frsize
            raise ConfigError(
                f"no space for {path}: {size_bytes} bytes are wanted and {free_bytes} are free; "
                "lower the capacity or free space there"
            ) from error
        if error.errno == errno.EFBIG:
            raise ConfigError(
                f"{path} would be larger than its file system or ulimit -f allows; lower the "
                "capacity"
            ) from error
        raise _refusal("allocate", path, error) from error


def _lock(fd: int, path: str, wait_ms: int) -> None:
    deadline_ns = time.monotonic_ns() + wait_ms * 1_000_000
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            holder = _holder_of(fd)
            if holder is not None and _is_alive(holder):
                raise _in_use(path, holder) from error
            if time.monotonic_ns() >= deadline_ns:
                who = f"process {holder}, which is gone" if holder else "a process not seen here"
                raise ConfigError(
                    f"{path} is locked by {who} (another container, or I/O that never ended); "
                    f"find it with: fuser -v {path}"
                ) from error
            time.sleep(limits.DEVICE_LOCK_POLL_MS / 1000)


def _holder_of(fd: int) -> int | None:
    """Return the pid that took the flock on this file, or None when it cannot be seen from here."""
    status = os.fstat(fd)
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                fields = line.split()
                if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == name:
                    return int(fields[4]) if int(fields[4]) > 0 else None
    except OSError:
        return None
    return None


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
