"""FileDevice on real files: every way it can be unfit is an error with a cause and a fix."""

import errno
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from memkv import limits
from memkv._hotpath import IoRing
from memkv.errors import CallerError, ConfigError
from memkv.io import file_device
from memkv.io.device import Device, DeviceQueue
from memkv.io.file_device import FileDevice

SIZE = 1 << 20
HOLDER = """
import sys
from memkv.io.file_device import FileDevice
device = FileDevice.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=[True, False], ids=["io_uring", "pread"])
def use_io_uring(request: pytest.FixtureRequest) -> bool:
    """Both ways to move bytes; without io_uring on this machine the first is the second."""
    return bool(request.param)


def transfer(queue: DeviceQueue, memory: mmap.mmap) -> list[tuple[int, int]]:
    queue.write(1, 4096, [memory])
    return queue.wait(1, 5000)


def test_create_write_close_open_read(tmp_path: Path, use_io_uring: bool) -> None:
    path = str(tmp_path / "flash")
    device: Device = FileDevice.create(path, SIZE, use_io_uring=use_io_uring)
    assert device.size_bytes == SIZE
    queue = device.open_queue(4)
    memory = mmap.mmap(-1, 8192)
    memory[:] = b"k" * 8192
    assert transfer(queue, memory) == [(1, 8192)]
    queue.close()
    device.close()
    device.close()

    device = FileDevice.open(path, lock_wait_ms=0, use_io_uring=use_io_uring)
    queue = device.open_queue(4)
    assert isinstance(queue, IoRing)
    assert use_io_uring or queue.engine == "pread"
    back = mmap.mmap(-1, 8192)
    queue.read(2, 4096, [back])
    assert queue.wait(1, 5000) == [(2, 8192)]
    assert back[:] == memory[:]
    queue.close()
    device.close()
    with pytest.raises(CallerError, match="closed"):
        device.open_queue(1)


def test_the_space_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    FileDevice.create(str(path), SIZE).close()
    assert path.stat().st_blocks * 512 >= SIZE


def test_a_file_has_its_name_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unfinished = tmp_path / "flash", tmp_path / "flash.new"
    unfinished.write_bytes(b"of a process that was killed" * 1000)
    real_fsync = os.fsync
    seen: list[bool] = []

    def fsync(fd: int) -> None:
        seen.append(path.exists())
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    FileDevice.create(str(path), SIZE).close()
    assert seen == [False, True]  # the content, then the name
    assert path.read_bytes() == bytes(SIZE)
    assert not unfinished.exists()


def test_a_fallback_is_logged_once_with_cause_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(fd: int, depth: int, *, use_io_uring: bool) -> IoRing:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd, hard))
        try:
            return IoRing(fd, depth, use_io_uring=use_io_uring)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    device = FileDevice.create(str(tmp_path / "flash"), SIZE)
    monkeypatch.setattr(file_device, "IoRing", refused)
    for _ in range(2):
        device.open_queue(1).close()
    assert caplog.text.count("using pread and pwrite") == 1
    assert "fix: raise ulimit -n" in caplog.text
    device.close()


def test_a_read_only_file_system_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(SIZE))

    def read_only(name: str, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ConfigError, match="the file system is read-only; remount it read-write"):
        FileDevice.open(str(path))
    with pytest.raises(ConfigError, match="remount it read-write"):
        FileDevice.create(str(tmp_path / "new"), SIZE)


def test_a_second_owner_in_this_process_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "flash")
    device = FileDevice.create(path, SIZE)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        FileDevice.open(path)
    device.close()
    FileDevice.open(path, lock_wait_ms=0).close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "flash")
    FileDevice.create(path, SIZE).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}; stop it"):
        FileDevice.open(path)
    holder.kill()
    holder.communicate()
    FileDevice.open(path).close()


def test_a_lock_whose_holder_is_not_seen_is_waited_for_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "flash")
    device = FileDevice.create(path, SIZE)
    monkeypatch.setattr(file_device, "_holder_of", lambda fd: None)
    with pytest.raises(ConfigError, match=r"a process not seen here.*fuser"):
        FileDevice.open(path, lock_wait_ms=limits.DEVICE_LOCK_POLL_MS)
    device.close()


def test_create_refuses_an_existing_file_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already; open it, or remove it"):
        FileDevice.create(str(path), SIZE)
    assert path.read_bytes() == b"precious"


def test_no_space_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "flash"
    with pytest.raises(ConfigError, match=f"{SIZE} bytes are wanted and [0-9]+ are free; lower"):
        FileDevice.create(str(path), SIZE)
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_file_system_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    with pytest.raises(ConfigError, match=r"no space|larger than its file system"):
        FileDevice.create(str(path), 1 << 60)
    assert not path.exists()


@pytest.mark.parametrize("size_bytes", [0, -4096, 4097])
def test_a_size_that_is_no_sectors_is_the_callers_bug(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(CallerError, match="multiple of 4096"):
        FileDevice.create(str(tmp_path / "flash"), size_bytes)


def test_an_empty_file_is_too_small(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(b"x" * 4095)
    with pytest.raises(ConfigError, match="too small"):
        FileDevice.open(str(path))


def test_the_size_is_rounded_down_to_sectors(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(b"x" * 10_000)
    device = FileDevice.open(str(path))
    assert device.size_bytes == 8192
    device.close()


def test_unfit_paths_name_their_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; create it"):
        FileDevice.open(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="a directory"):
        FileDevice.open(str(tmp_path))
    with pytest.raises(ConfigError, match="neither a regular file nor a block device"):
        FileDevice.open("/dev/null")
    with pytest.raises(ConfigError, match="no such file"):
        FileDevice.create(str(tmp_path / "absent" / "flash"), SIZE)


def test_a_file_system_without_direct_io_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(SIZE))
    real_open = os.open

    def refuse_direct(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse_direct)
    with pytest.raises(ConfigError, match="refuses O_DIRECT; put the file on ext4"):
        FileDevice.open(str(path))
    FileDevice.open(str(path), direct=False).close()
