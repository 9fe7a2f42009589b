"""Block devices: what the kernel says of them, and what is refused before anything is written."""

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from memkv.errors import ConfigError
from memkv.io.block_device import BlockDevice
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.testing.loop_device import NoLoopDevices, loop_device

SIZE = 16 * MIB
HOLDER = """
import sys
from memkv.io.file_device import FileDevice
device = FileDevice.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


class Attach(Protocol):
    """Attaches a loop device for the time of a test; returns its path."""

    def __call__(
        self, name: str = "disk", size_bytes: int = SIZE, *, sector_bytes: int = 512,
        read_only: bool = False,
    ) -> str: ...  # fmt: skip


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    with ExitStack() as stack:

        def attached(
            name: str = "disk", size_bytes: int = SIZE, *, sector_bytes: int = 512,
            read_only: bool = False,
        ) -> str:  # fmt: skip
            try:
                return stack.enter_context(
                    loop_device(
                        tmp_path / name, size_bytes, sector_bytes=sector_bytes,
                        read_only=read_only,
                    )
                )  # fmt: skip
            except NoLoopDevices as error:
                pytest.skip(f"no block device to try: {error}")

        yield attached


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def disk(tmp_path: Path) -> BlockDevice:
    """259:3, an NVMe drive with one partition, 259:4."""
    folder = tmp_path / "sys/devices/pci0000:00/nvme/nvme3/nvme3n1"
    for name, text in {
        "dev": "259:3", "ro": "0", "queue/discard_max_bytes": "2199023255040",
        "queue/logical_block_size": "4096", "nvme3n1p1/dev": "259:4", "nvme3n1p1/partition": "1",
        "nvme3n1p1/ro": "0",
    }.items():  # fmt: skip
        write(folder / name, text)
    links = tmp_path / "sys/dev/block"
    links.mkdir(parents=True)
    (links / "259:3").symlink_to(folder)
    (links / "259:4").symlink_to(folder / "nvme3n1p1")
    write(tmp_path / "proc/swaps", "Filename\tType\tSize\tUsed\tPriority")
    write(tmp_path / "proc/self/mountinfo", "30 1 8:1 / / rw - ext4 /dev/sda1 rw")
    return BlockDevice((259, 3), tmp_path)


def test_facts_of_a_disk_and_its_partition(disk: BlockDevice) -> None:
    partition = BlockDevice((259, 4), disk.root)
    assert (disk.name, partition.name) == ("nvme3n1", "nvme3n1p1")
    for one in (disk, partition):
        assert one.discard_bytes_max == 2199023255040
        assert one.sector_bytes == 4096
        assert not one.is_read_only
        assert one.use == ""
    assert BlockDevice((9, 9), disk.root).discard_bytes_max == 0


def test_a_disk_is_in_use_when_its_partition_is(disk: BlockDevice) -> None:
    folder = disk.root / "sys/dev/block/259:3"
    write(folder / "nvme3n1p1/holders/dm-0/x", "")
    assert disk.use == "in use by dm-0 (LVM, LUKS, RAID or multipath)"
    write(disk.root / "proc/swaps", "Filename\tType\n/dev/nvme3n1p1 partition 1 0 -2")
    assert disk.use == "used as swap"
    write(disk.root / "proc/self/mountinfo", "36 30 259:4 / /srv rw - xfs /dev/nvme3n1p1 rw")
    assert disk.use == "mounted at /srv"
    write(folder / "ro", "1")
    assert disk.is_read_only


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_drive_of_either_sector_size_serves(attach: Attach, sector_bytes: int) -> None:
    path = attach(sector_bytes=sector_bytes)
    device = FileDevice.open(path)
    block = BlockDevice.of(os.stat(path))
    assert block is not None
    assert block.sector_bytes == sector_bytes
    assert device.size_bytes == SIZE
    assert device.discard_bytes_max == block.discard_bytes_max > 0
    queue = device.open_queue(2)
    memory = mmap.mmap(-1, 8192)
    memory[:] = b"m" * 8192
    queue.write(1, 4096, [memory])
    assert queue.wait(1, 5000) == [(1, 8192)]
    queue.discard(2, 0, MIB)
    assert queue.wait(1, 5000) == [(2, 0)]
    queue.read(3, 4096, [memory])
    assert queue.wait(1, 5000) == [(3, 8192)]
    assert memory[:] == bytes(8192), "a loop device reads zeros where it was told to forget"
    queue.close()
    device.close()


def test_a_device_has_one_owner_by_whatever_name(attach: Attach, tmp_path: Path) -> None:
    path = attach()
    by_id = tmp_path / "nvme-Maker_Model_S3R1AL"
    by_id.symlink_to(path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, by_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}; stop it"):
        FileDevice.open(path)
    holder.kill()
    holder.communicate()
    FileDevice.open(str(by_id)).close()


def test_a_holder_that_is_not_seen_is_waited_for_then_refused(attach: Attach) -> None:
    path = attach()
    foreign = os.open(path, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(ConfigError, match=r"another container.*fuser"):
            FileDevice.open(path, lock_wait_ms=20)
    finally:
        os.close(foreign)


def test_a_mounted_device_is_refused_and_not_touched(attach: Attach, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    path = attach()
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = subprocess.run(["mount", path, folder], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(ConfigError, match=f"is mounted at {folder}: nothing on it was touched"):
            FileDevice.open(path)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_device_is_refused(attach: Attach, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    with pytest.raises(ConfigError, match="is read-only"):
        FileDevice.open(attach(read_only=True))


def test_sectors_larger_than_ours_are_refused(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockDevice, "sector_bytes", 16384)
    with pytest.raises(ConfigError, match="sectors of 16384 bytes, and 4096 are the most"):
        FileDevice.open(attach())


@pytest.mark.parametrize(
    "path", ["/dev/disk/by-id/nvme-Maker_Model_S3R1AL", "/dev/nvme77n1", "/dev/../dev/x"]
)
def test_no_file_is_made_in_the_place_of_a_device_that_is_away(path: str) -> None:
    with pytest.raises(ConfigError, match=r"no device is behind.*ls -l /dev/disk/by-id"):
        FileDevice.create(path, SIZE)
    assert not os.path.lexists(path)
    assert not os.path.lexists(f"{path}.new")
