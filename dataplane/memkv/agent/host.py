"""Reads a node's block devices from sysfs, its mounts from procfs and udev's links.

`root` is where the node's own /sys, /proc and /dev are seen: "/" on the node itself. What cannot be
read of a device makes it unusable or unnamed; what cannot be read of mounts or swap fails the whole
look, because then nothing is known to be free.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memkv.agent.disks import BlockDevice
from memkv.errors import ConfigError

LINUX_SECTOR_BYTES = 512  # sysfs counts sizes in these, whatever the device has
_SCSI_OPTICAL = "5"
_TRANSPORTS = (
    ("/usb", "usb"), ("/nvme", "nvme"), ("/virtio", "virtio"), ("/ata", "sata"),
    ("/end_device", "sas"), ("/rport-", "fc"), ("/session", "iscsi"), ("/virtual/", "virtual"),
)  # fmt: skip
_ESCAPE = re.compile(r"\\([0-7]{3})")
_EMPTY_WHEN_UNUSED = re.compile(r"(loop|nbd|ram|zram|fd|sr)\d+$")
Number = tuple[int, int]
LoopFile = Callable[[str, Number], str]
"""Of a loop device, by the kernel's name and number: what names its file; "": nothing."""
ReadDevices = Callable[[Path, LoopFile], tuple[BlockDevice, ...]]
"""As read_devices."""


@dataclass(frozen=True, slots=True)
class Uses:
    """What the kernel uses block devices for, by number."""

    mounts: dict[Number, list[str]]
    swaps: set[Number]


def read_devices(root: Path, loop_file: LoopFile) -> tuple[BlockDevice, ...]:
    """Return all disks, by name. ConfigError when mounts, swap or sysfs cannot be read."""
    try:
        names = sorted(os.listdir(root / "sys/block"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {root / 'sys/block'}: {error.strerror}; the agent needs the node's /sys"
        ) from error
    host = _Host(root)
    devices = (host.device(name, loop_file) for name in names)
    return tuple(device for device in devices if device is not None)


class _Host:
    """One look at a node."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._block = root / "sys/block"
        self._by_id = self._links("by-id")
        self._by_path = self._links("by-path")
        self._backed = self._loops_on_devices()
        self._uses = self._read_uses()

    def device(self, name: str, loop_file: LoopFile) -> BlockDevice | None:
        """Return a disk; None for what is gone, hidden, or a slot that nothing is in."""
        folder = self._block / name
        number = _number(folder)
        size_bytes = _integer(folder / "size") * LINUX_SECTOR_BYTES
        if number is None or _text(folder / "hidden") == "1":
            return None
        if size_bytes == 0 and _EMPTY_WHEN_UNUSED.match(name):
            return None
        partitions = sorted(_partitions(folder))
        family = list(self._family(name, partitions))
        numbers = [n for n in (_number(self._block_folder(kin)) for kin in family) if n is not None]
        mounts = [path for n in numbers for path in self._uses.mounts.get(n, [])]
        where = os.path.realpath(folder)
        return BlockDevice(
            name=name,
            number=number,
            size_bytes=size_bytes,
            sequence=_integer(folder / "diskseq"),
            sector_bytes=_integer(folder / "queue/logical_block_size") or LINUX_SECTOR_BYTES,
            read_only=_text(folder / "ro") == "1",
            removable=_text(folder / "removable") == "1",
            rotational=_text(folder / "queue/rotational") == "1",
            optical=_text(folder / "device/type") == _SCSI_OPTICAL,
            model=_text(folder / "device/model"),
            serial=_serial(folder),
            wwid=_text(folder / "wwid") or _text(folder / "device/wwid"),
            transport=_transport(name, where),
            numa_node=_numa_node(where),
            partitions=tuple(partitions),
            holders=tuple(sorted(set(family) - {name, *partitions})),
            mounts=tuple(sorted(mounts, key=lambda path: (len(path), path))),
            swap=any(n in self._uses.swaps for n in numbers),
            loop_file=loop_file(name, number) if name.startswith("loop") else "",
            links=tuple(self._by_id.get(name, ())),
            by_path=min(self._by_path.get(name, ()), default=""),
        )

    # --- what is built on what -----------------------------------------------------------------

    def _family(self, name: str, partitions: list[str]) -> Iterator[str]:
        """Yield a disk, its partitions and, again and again, what is built on any of them."""
        waiting, seen = [name, *partitions], set[str]()
        while waiting:
            current = waiting.pop(0)
            if current in seen:
                continue
            seen.add(current)
            yield current
            waiting += _entries(self._block_folder(current) / "holders")
            waiting += self._backed.get(current, ())

    def _block_folder(self, name: str) -> Path:
        """Return the folder of a disk or of a partition."""
        folder = self._block / name
        if folder.is_dir():
            return folder
        return next(iter(self._block.glob(f"*/{name}")), folder)

    def _loops_on_devices(self) -> dict[str, list[str]]:
        """Return loop devices by the disk or partition that they are on: kubelet makes such."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in _entries(self._block):
            file = _text(self._block / name / "loop/backing_file")
            if file.startswith("/dev/"):
                found[os.path.basename(os.path.realpath(self._seen(file)))].append(name)
        return found

    # --- links ---------------------------------------------------------------------------------

    def _links(self, kind: str) -> dict[str, list[str]]:
        """Return udev's links by the device that they lead to, at once and by no other link."""
        folder = f"/dev/disk/{kind}"
        found: dict[str, list[str]] = defaultdict(list)
        for link in _entries(self._seen(folder)):
            try:
                target = os.readlink(self._seen(f"{folder}/{link}"))
            except OSError:
                continue  # no link, or gone by now
            whole = os.path.normpath(os.path.join(folder, target))
            if os.path.dirname(whole) == "/dev":
                found[os.path.basename(whole)].append(link)
        return found

    def _seen(self, path: str) -> Path:
        """Return where a path of the node is seen from here."""
        return self._root / path.lstrip("/")

    # --- mounts and swap -------------------------------------------------------------------------

    def _read_uses(self) -> Uses:
        uses = Uses(defaultdict(list), set())
        for line in self._lines("proc/1/mountinfo"):
            own, _, rest = line.partition(" - ")
            fields, source = own.split(" "), rest.split(" ")
            if len(fields) < 5 or len(source) < 2:
                continue
            path = _unescaped(fields[4])
            major, _, minor = fields[2].partition(":")
            numbers = {(int(major), int(minor)), self._number_of(_unescaped(source[1]))}
            for number in numbers - {None}:
                assert number is not None
                uses.mounts[number].append(path)
        for line in self._lines("proc/swaps")[1:]:
            number = self._number_of(_unescaped(line.split(" ", 1)[0].split("\t", 1)[0]))
            if number is not None:
                uses.swaps.add(number)
        return uses

    def _lines(self, path: str) -> list[str]:
        try:
            text = (self._root / path).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise ConfigError(
                f"cannot read {self._root / path}: {error.strerror}; without it no disk is known"
                " to be free (the agent needs the node's /proc)"
            ) from error
        return text.splitlines()

    def _number_of(self, path: str) -> Number | None:
        """Return the number of the device that a path of the node names; None: it names none."""
        if not path.startswith("/dev/"):
            return None
        try:
            found = os.stat(self._seen(path))
            if stat.S_ISBLK(found.st_mode):
                return os.major(found.st_rdev), os.minor(found.st_rdev)
        except OSError:
            pass  # by its name, then
        return _number(self._block_folder(os.path.basename(path)))


# --- single values -----------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _integer(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0


def _number(folder: Path) -> Number | None:
    major, colon, minor = _text(folder / "dev").partition(":")
    return (int(major), int(minor)) if colon and major.isdecimal() and minor.isdecimal() else None


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _partitions(folder: Path) -> Iterator[str]:
    return (name for name in _entries(folder) if (folder / name / "partition").exists())


def _serial(folder: Path) -> str:
    known = _text(folder / "device/serial") or _text(folder / "serial")
    if known:
        return known
    try:
        page = (folder / "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    return page[4:].decode("ascii", "replace").strip().strip("\0")


def _transport(name: str, where: str) -> str:
    if name.startswith("loop"):
        return "loop"
    return next((transport for part, transport in _TRANSPORTS if part in where), "")


def _numa_node(where: str) -> int:
    """Return the NUMA node of the nearest bus above a device; -1: none is known."""
    folder = Path(where)
    for above in (folder, *folder.parents):
        text = _text(above / "numa_node")
        if text:
            return int(text) if text.isdecimal() else -1
        if above.name == "sys":
            break
    return -1


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
