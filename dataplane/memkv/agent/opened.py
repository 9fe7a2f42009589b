"""An opened disk: that which was decided upon, or none. The only file that reads or writes one."""

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from memkv.agent.disks import BlockDevice
from memkv.agent.host import Number
from memkv.io.nvme_health import Health, read_health
from memkv.store.foreign import PROBE_BYTES

_BLKGETSIZE64 = 0x80081272
_BLKGETDISKSEQ = 0x80081280
_BLKZEROOUT = 0x127F
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO_BYTES = 232


class DiskChanged(Exception):
    """The disk is another one than was decided upon, or has other content. Look again."""


class DiskBusy(Exception):
    """Somebody has the disk open exclusively: a mount, an array, a pod."""


class Disk(Protocol):
    """An opened disk. OSError when the drive fails."""

    def read_ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last MiB, from the drive and not from memory."""

    def zero(self, offset: int, length: int) -> None:
        """Zero a range; on the drive when this returns."""


class OpenDisk(Protocol):
    """Opens disks."""

    def __call__(self, device: BlockDevice, *, exclusive: bool) -> AbstractContextManager[Disk]:
        """Open a disk: to be read, or `exclusive`, to be written. DiskChanged when it is another
        one than was looked at, DiskBusy when somebody has it, OSError."""


class HostDisks:
    """Opens the disks of a node."""

    def __init__(self, root: Path) -> None:
        """`root`: where the node's /dev is seen."""
        self._root = root

    @contextmanager
    def __call__(self, device: BlockDevice, *, exclusive: bool) -> Iterator[Disk]:
        """As OpenDisk."""
        flags = os.O_RDWR | os.O_EXCL if exclusive else os.O_RDONLY
        fd = _open(self._root / "dev" / device.name, flags | os.O_DIRECT)
        try:
            _check(fd, device)
            yield _HostDisk(fd, device.size_bytes)
        finally:
            os.close(fd)

    def is_held(self, device: BlockDevice) -> bool:
        """Return whether somebody has it open exclusively. DiskChanged, OSError."""
        try:
            fd = _open(self._root / "dev" / device.name, os.O_RDONLY | os.O_EXCL)
        except DiskBusy:
            return True
        try:
            _check(fd, device)
        finally:
            os.close(fd)
        return False

    def leads_to(self, device: BlockDevice) -> bool:
        """Return whether the path that is handed out leads to this disk now."""
        try:
            found = os.stat(self._root / device.path.lstrip("/"))
        except OSError:
            return False
        return stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(*device.number)

    def health(self, device: BlockDevice) -> Health | None:
        """Return what an NVMe drive says of itself; None where it or another drive says nothing."""
        if device.transport != "nvme":
            return None
        try:
            fd = _open(self._root / "dev" / device.name, os.O_RDONLY)
            try:
                _check(fd, device)
                return read_health(fd)
            finally:
                os.close(fd)
        except (OSError, DiskChanged, DiskBusy):
            return None

    def loop_file(self, name: str, number: Number) -> str:
        """Return what names the file behind a loop device, as host.LoopFile."""
        try:
            fd = os.open(self._root / "dev" / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            status = bytearray(_LOOP_INFO_BYTES)
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
        except OSError:
            return ""  # nothing is attached
        finally:
            os.close(fd)
        file_system, inode = struct.unpack_from("<QQ", status)
        return f"{file_system}:{inode}"


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DiskBusy(f"{path} is open exclusively in another process") from error
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise DiskChanged(f"{path} is gone") from error
        raise


def _check(fd: int, device: BlockDevice) -> None:
    """Raise DiskChanged unless an opened file is the device that was looked at."""
    found = os.fstat(fd)
    if not stat.S_ISBLK(found.st_mode) or found.st_rdev != os.makedev(*device.number):
        raise DiskChanged(f"/dev/{device.name} is another device now")
    size_bytes = _asked(fd, _BLKGETSIZE64)
    if size_bytes != device.size_bytes:
        raise DiskChanged(f"/dev/{device.name} has {size_bytes} bytes now")
    if device.sequence and _asked(fd, _BLKGETDISKSEQ) != device.sequence:
        raise DiskChanged(f"/dev/{device.name} is another disk now")


def _asked(fd: int, request: int) -> int:
    answer = bytearray(8)
    fcntl.ioctl(fd, request, answer)
    return int.from_bytes(answer, "little")


class _HostDisk:
    """As Disk, by direct I/O: the page cache may be older than what a worker wrote."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._tail = size_bytes - PROBE_BYTES

    def read_ends(self) -> tuple[bytes, bytes]:
        return self._read(0), self._read(self._tail)

    def zero(self, offset: int, length: int) -> None:
        fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("<QQ", offset, length))
        os.fdatasync(self._fd)

    def _read(self, offset: int) -> bytes:
        with mmap.mmap(-1, PROBE_BYTES) as buffer:
            view = memoryview(buffer)
            try:
                if os.preadv(self._fd, [view], offset) != PROBE_BYTES:
                    raise OSError(errno.EIO, "the drive gave less than it has")
                return bytes(view)
            finally:
                view.release()
