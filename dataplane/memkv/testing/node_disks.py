"""Disks of a node that does not exist: a sysfs tree, and drives that lie, break and are swapped."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from memkv.agent.disks import BlockDevice
from memkv.agent.host import Number
from memkv.agent.opened import Disk, DiskBusy, DiskChanged
from memkv.io.nvme_health import Health
from memkv.limits import GIB, SECTOR_BYTES
from memkv.store.foreign import PROBE_BYTES

SECTORS = 512


class HostTree:
    """Writes /sys, /proc and /dev/disk of a node below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._minor = 0
        (root / "sys/block").mkdir(parents=True)
        (root / "proc/1").mkdir(parents=True)
        (root / "dev/disk/by-id").mkdir(parents=True)
        (root / "dev/disk/by-path").mkdir(parents=True)
        (root / "proc/1/mountinfo").write_text("")
        (root / "proc/swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")

    def disk(self, name: str, size_bytes: int = 8 * GIB, bus: str = "", **attributes: str) -> Path:
        """Add a disk; attributes are files in its folder, `__` stands for a slash."""
        bus = bus or "pci0000:00/0000:00:04.0/ata1/host0"
        place = self.root / f"sys/devices/{bus}/block/{name}"
        place.mkdir(parents=True)
        link = self.root / f"sys/block/{name}"
        link.symlink_to(place)
        self._number(place)
        given = {"size": str(size_bytes // SECTORS), "ro": "0", "removable": "0", **attributes}
        for path, text in given.items():
            file = place / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return place

    def partition(self, disk: str, name: str) -> Path:
        """Add a partition."""
        folder = self.root / f"sys/block/{disk}/{name}"
        folder.mkdir()
        (folder / "partition").write_text("1\n")
        self._number(folder)
        return folder

    def holder(self, below: Path, name: str) -> None:
        """Put something on a disk or partition, such as dm-0, which is a disk of its own."""
        (below / "holders").mkdir(exist_ok=True)
        (below / "holders" / name).mkdir()

    def link(self, name: str, target: str, kind: str = "by-id") -> None:
        """Add a link of udev's, or make it lead elsewhere."""
        path = self.root / f"dev/disk/{kind}/{name}"
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def mount(self, folder: Path, path: str, source: str = "none") -> None:
        """Mount a disk or partition; `source` as in mountinfo."""
        number = (folder / "dev").read_text().strip()
        self.mount_line(f"36 35 {number} / {path} rw - ext4 {source} rw")

    def mount_line(self, line: str) -> None:
        """Add a line to mountinfo."""
        with (self.root / "proc/1/mountinfo").open("a") as file:
            file.write(f"{line}\n")

    def swap(self, path: str) -> None:
        """Swap to a device."""
        with (self.root / "proc/swaps").open("a") as file:
            file.write(f"{path}                               partition\t1\t0\t-2\n")

    def _number(self, folder: Path) -> None:
        self._minor += 1
        (folder / "dev").write_text(f"8:{self._minor}\n")


class Crash(BaseException):
    """The process ends here."""


@dataclass
class FakeDrive:
    """A drive: its ends, and what is wrong with it."""

    size_bytes: int
    serial: str
    head: bytearray = field(default_factory=lambda: bytearray(PROBE_BYTES))
    tail: bytearray = field(default_factory=lambda: bytearray(PROBE_BYTES))
    broken: bool = False
    keeps_writes: bool = True
    held: bool = False
    writes: int = 0

    def write(self, offset: int, data: bytes) -> None:
        """Put data where it is seen: in the first or the last MiB."""
        for start, end in ((0, self.head), (self.size_bytes - PROBE_BYTES, self.tail)):
            low, high = max(offset, start), min(offset + len(data), start + PROBE_BYTES)
            if low < high:
                end[low - start : high - start] = data[low - offset : high - offset]


class FakeDisks:
    """Drives by kernel name, as inventory.Disks. Between look and open anything may happen."""

    def __init__(self) -> None:
        self.drives: dict[str, tuple[BlockDevice, FakeDrive]] = {}
        self.crash_after_sectors: int | None = None
        """Sectors that are still zeroed before the process ends."""
        self.leads_elsewhere: set[str] = set()
        self.during_zero: Callable[[], None] = lambda: None
        """Happens while a drive is being zeroed."""
        self._sequence = 0

    def plug(self, name: str, drive: FakeDrive) -> BlockDevice:
        """Put a drive in a slot, in place of the one that was there."""
        self._sequence += 1
        device = BlockDevice(
            name, (8, len(name) + sum(map(ord, name))), drive.size_bytes, self._sequence,
            serial=drive.serial, model="Fake", transport="sata", numa_node=1,
        )  # fmt: skip
        self.drives[name] = (device, drive)
        return device

    def pull(self, name: str) -> None:
        """Take a drive out."""
        del self.drives[name]

    def read(self, root: Path, loop_file: object) -> tuple[BlockDevice, ...]:
        """As host.read_devices."""
        return tuple(device for device, _ in self.drives.values())

    @contextmanager
    def __call__(self, device: BlockDevice, *, exclusive: bool) -> Iterator[Disk]:
        drive = self._find(device)
        if exclusive and drive.held:
            raise DiskBusy(f"/dev/{device.name} is open exclusively in another process")
        yield _FakeDisk(self, device, drive)

    def is_held(self, device: BlockDevice) -> bool:
        return self._find(device).held

    def leads_to(self, device: BlockDevice) -> bool:
        return device.name not in self.leads_elsewhere

    def health(self, device: BlockDevice) -> Health | None:
        return None

    def loop_file(self, name: str, number: Number) -> str:
        return ""

    def _find(self, device: BlockDevice) -> FakeDrive:
        now, drive = self.drives.get(device.name, (None, None))
        if drive is None or now != device:
            raise DiskChanged(f"/dev/{device.name} is another disk now")
        return drive


class _FakeDisk:
    def __init__(self, disks: FakeDisks, device: BlockDevice, drive: FakeDrive) -> None:
        self._disks = disks
        self._device = device
        self._drive = drive

    def read_ends(self) -> tuple[bytes, bytes]:
        self._check()
        return bytes(self._drive.head), bytes(self._drive.tail)

    def zero(self, offset: int, length: int) -> None:
        self._check()
        self._disks.during_zero()
        for at in range(offset, offset + length, SECTOR_BYTES):
            near_end = at < PROBE_BYTES or at >= self._drive.size_bytes - PROBE_BYTES
            if not near_end:
                continue
            if self._disks.crash_after_sectors is not None:
                if self._disks.crash_after_sectors == 0:
                    raise Crash
                self._disks.crash_after_sectors -= 1
            self._drive.writes += 1
            if self._drive.keeps_writes:
                self._drive.write(at, bytes(SECTOR_BYTES))

    def _check(self) -> None:
        if self._drive.broken or self._disks.drives.get(self._device.name, (0, 0))[1] is not (
            self._drive
        ):
            raise OSError(errno.EIO, "Input/output error")
