"""Why a disk is not for pools. The first rule that fits is told, the gravest comes first."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memkv.agent.disks import BlockDevice, contradicts
from memkv.limits import GIB, SECTOR_BYTES

SIZE_BYTES_MIN = 1 * GIB  # a smaller disk is a stick, a boot module or a mistake
_KINDS = (
    (re.compile(r"loop\d+$"), "a loop device: for tests only, where the agent has --allow-loop"),
    (re.compile(r"ram\d+$"), "a RAM disk"),
    (re.compile(r"zram\d+$"), "compressed memory (zram)"),
    (re.compile(r"nbd\d+$"), "a network block device (nbd)"),
    (re.compile(r"rbd\d+$"), "a network block device (rbd)"),
    (re.compile(r"dm-\d+$"), "a device mapper volume (LVM, LUKS, multipath): name the disk below"),
    (re.compile(r"md\d+|md_"), "a RAID array: name the disks below"),
    (re.compile(r"bcache\d+$"), "a bcache volume: name the disk below"),
    (re.compile(r"fd\d+$"), "a floppy drive"),
    (re.compile(r"sr\d+$|scd\d+$"), "a CD-ROM drive"),
    (re.compile(r"mtdblock\d+$"), "flash of the firmware (mtd)"),
)
_BOOT = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/sysroot", "/ostree")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node's agent was told."""

    allow_loop: bool = False
    size_bytes_min: int = SIZE_BYTES_MIN


def reason_against(device: BlockDevice, limits: Limits) -> str:
    """Return why no pool can have a disk, "" when nothing speaks against it."""
    return (
        _reason_of_kind(device, limits)
        or _reason_of_use(device)
        or _reason_of_build(device, limits)
    )


def reasons_by_name(devices: Iterable[BlockDevice], limits: Limits) -> Mapping[str, str]:
    """Return the reason against each disk, by the kernel's name; "" for usable ones."""
    known = list(devices)
    times = Counter(device.id for device in known)
    reasons = {}
    for device in known:
        reason = reason_against(device, limits)
        if not reason and times[device.id] > 1:
            others = sorted(d.name for d in known if d.id == device.id and d is not device)
            reason = (
                f"has the same name as {', '.join(others)}: two paths to one disk (set multipath up"
                " and name the disk once), or disks with one serial number"
            )
        reasons[device.name] = reason
    return reasons


def misleading_links(device: BlockDevice) -> list[str]:
    """Return links below /dev/disk/by-id that lead to this disk and name another one."""
    return [link for link in device.links if contradicts(link, device.wwid)]


def _reason_of_kind(device: BlockDevice, limits: Limits) -> str:
    if device.optical:
        return "a CD-ROM drive"
    is_allowed_loop = limits.allow_loop and device.name.startswith("loop")
    for pattern, text in _KINDS:
        if pattern.match(device.name) and not is_allowed_loop:
            return text
    return "no medium" if device.size_bytes == 0 else ""


def _reason_of_use(device: BlockDevice) -> str:
    boot = [path for path in device.mounts if path in _BOOT]
    if boot:
        return f"the system's own disk (mounted at {boot[0]})"
    if device.mounts:
        return f"mounted at {device.mounts[0]}"
    if device.swap:
        return "used as swap: swapoff it first"
    if device.holders:
        return f"in use by {', '.join(device.holders)} (LVM, LUKS, RAID, multipath or loop)"
    if device.partitions:
        return (
            f"has partitions ({', '.join(device.partitions)}): if nobody wants them, remove them"
            f" with wipefs --all on each and on /dev/{device.name}"
        )
    return ""


def _reason_of_build(device: BlockDevice, limits: Limits) -> str:
    if device.read_only:
        return "read-only"
    if device.removable:
        return "removable"
    if device.size_bytes < limits.size_bytes_min:
        return f"too small: {device.size_bytes} bytes, at least {limits.size_bytes_min} are needed"
    if device.sector_bytes > SECTOR_BYTES:
        return f"has sectors of {device.sector_bytes} bytes, {SECTOR_BYTES} at most are supported"
    if not device.stable_id:
        return "has no serial number or world wide name that would tell it from others"
    return ""
