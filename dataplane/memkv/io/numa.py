"""Which NUMA node a drive hangs on."""

import os
import stat
from pathlib import Path

UNKNOWN = -1
_BLOCK = Path("/sys/dev/block")
_LEVELS_MAX = 4  # partition, namespace, controller, PCI function


def numa_node_of(drive: Path, sysfs: Path = _BLOCK) -> int:
    """Return the NUMA node of a block device, or of the one that a file lies on; -1: unknown."""
    try:
        found = os.stat(drive)
        number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
        place = (sysfs / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    except OSError:
        return UNKNOWN
    for folder in (place, *place.parents[:_LEVELS_MAX]):
        for name in ("numa_node", "device/numa_node"):
            try:
                return int((folder / name).read_text())
            except (OSError, ValueError):
                continue
    return UNKNOWN
