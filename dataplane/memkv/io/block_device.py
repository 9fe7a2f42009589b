"""What the kernel says of a block device, in sysfs and procfs; `root` is "/" but in tests.

What cannot be read counts as not said: 0, False, "". Nothing here opens the device.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A disk or partition, by its number."""

    number: tuple[int, int]
    root: Path = ROOT

    @classmethod
    def of(cls, status: os.stat_result, root: Path = ROOT) -> "BlockDevice | None":
        """Return the device that a path or an open file is; None: it is none."""
        if not stat.S_ISBLK(status.st_mode):
            return None
        return cls((os.major(status.st_rdev), os.minor(status.st_rdev)), root)

    @property
    def name(self) -> str:
        """The kernel's, such as nvme0n1."""
        return os.path.basename(os.path.realpath(self._folder))

    @property
    def discard_bytes_max(self) -> int:
        """The longest range it can be told to forget in one go; 0: it takes no discards."""
        return self._queue("discard_max_bytes")

    @property
    def sector_bytes(self) -> int:
        """What it is addressed in: 512 (also of 512e drives), 4096 of 4Kn ones."""
        return self._queue("logical_block_size")

    @property
    def is_read_only(self) -> bool:
        """Whether it refuses writes."""
        return _text(self._folder / "ro") == "1"

    @property
    def use(self) -> str:
        """What this machine uses it, or a partition of it, for: "mounted at /srv"; "": nothing
        that is seen from here."""
        folders = {_number(self._folder): self._folder}
        for entry in _entries(self._folder):
            if (self._folder / entry / "partition").exists():
                folders[_number(self._folder / entry)] = self._folder / entry
        for line in _text(self.root / "proc/self/mountinfo").splitlines():
            fields = line.split(" ")
            if len(fields) > 4 and fields[2] in folders:
                return f"mounted at {fields[4]}"
        for line in _text(self.root / "proc/swaps").splitlines()[1:]:
            path = line.split(" ")[0].split("\t")[0]
            if os.path.basename(path) in {os.path.basename(os.path.realpath(f))
                                          for f in folders.values()}:  # fmt: skip
                return "used as swap"
        for folder in folders.values():
            holders = _entries(folder / "holders")
            if holders:
                return f"in use by {', '.join(holders)} (LVM, LUKS, RAID or multipath)"
        return ""

    @property
    def _folder(self) -> Path:
        return self.root / "sys/dev/block" / f"{self.number[0]}:{self.number[1]}"

    def _queue(self, name: str) -> int:
        """Return a limit; of a partition it is its disk's."""
        for folder in (self._folder, Path(os.path.realpath(self._folder)).parent):
            text = _text(folder / "queue" / name)
            if text.isdecimal():
                return int(text)
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _number(folder: Path) -> str:
    return _text(folder / "dev")
