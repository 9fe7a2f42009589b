"""Looks at a node's disks: what they are, what is on them, who has them."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memkv.agent.content import Content, judge
from memkv.agent.decisions import Examined
from memkv.agent.disks import BlockDevice
from memkv.agent.host import Number, ReadDevices, read_devices
from memkv.agent.opened import DiskBusy, DiskChanged, OpenDisk
from memkv.agent.rules import Limits, reasons_by_name
from memkv.clock import Clock
from memkv.io.nvme_health import Health
from memkv.store.foreign import PROBE_BYTES

log = logging.getLogger("memkv.agent")

READ_AGAIN_S = 30.0  # content changes without notice: somebody partitions a disk
SIZE_BYTES_READ_MIN = 2 * PROBE_BYTES


class Disks(OpenDisk, Protocol):
    """What touches disks."""

    def is_held(self, device: BlockDevice) -> bool:
        """Return whether somebody has it open exclusively. DiskChanged, OSError."""

    def leads_to(self, device: BlockDevice) -> bool:
        """Return whether the path that is handed out leads to this disk now."""

    def health(self, device: BlockDevice) -> Health | None:
        """Return what a drive says of itself; None: nothing."""

    def loop_file(self, name: str, number: Number) -> str:
        """As host.LoopFile."""


@dataclass(frozen=True, slots=True)
class _Known:
    device: BlockDevice
    examined: Examined
    read_ns: int


class Inventory:
    """The disks of a node. For one thread."""

    def __init__(
        self, root: Path, disks: Disks, limits: Limits, clock: Clock,
        read: ReadDevices = read_devices,
    ) -> None:  # fmt: skip
        """`root`: where the node's /sys, /proc and /dev are seen; `read`: as read_devices."""
        self._root = root
        self._disks = disks
        self._limits = limits
        self._clock = clock
        self._read = read
        self._known: dict[str, _Known] = {}

    def look(self, granted: Collection[str], fresh: Collection[str] = ()) -> list[Examined]:
        """Return all disks by id. ConfigError when the node cannot be looked at.

        `granted`: ids of disks that a pod may be opening just now, which are not opened exclusively
        here. `fresh`: ids of disks whose content is read in any case; others' every READ_AGAIN_S.
        """
        devices = self._read(self._root, self._disks.loop_file)
        reasons = reasons_by_name(devices, self._limits)
        now_ns = self._clock.monotonic_ns()
        self._known = {
            device.name: self._examined(device, reasons[device.name], granted, fresh, now_ns)
            for device in devices
        }
        return sorted((one.examined for one in self._known.values()), key=lambda d: d.device.id)

    def forget(self, device: BlockDevice) -> None:
        """Read a disk's content at the next look."""
        self._known.pop(device.name, None)

    def _examined(
        self, device: BlockDevice, reason: str, granted: Collection[str], fresh: Collection[str],
        now_ns: int,
    ) -> _Known:  # fmt: skip
        known = self._known.get(device.name)
        if (
            known is not None
            and known.device == device
            and known.examined.reason == reason
            and device.id not in fresh
            and now_ns - known.read_ns < READ_AGAIN_S * 1e9
        ):
            return known
        if reason or device.size_bytes < SIZE_BYTES_READ_MIN:
            return _Known(device, Examined(device, reason or "too small"), now_ns)
        return _Known(device, self._opened(device, device.id in granted), now_ns)

    def _opened(self, device: BlockDevice, is_granted: bool) -> Examined:
        content: Content | None = None
        held, error = False, ""
        health = self._disks.health(device)
        try:
            with self._disks(device, exclusive=False) as disk:
                content = judge(device, *disk.read_ends())
            held = not is_granted and self._disks.is_held(device)
        except (DiskChanged, DiskBusy) as changed:
            error = str(changed)
        except OSError as failed:
            error = f"reading it failed: {failed.strerror} (dmesg, smartctl)"
            log.warning("%s: %s", device.path, error)
        return Examined(device, "", content, error, held, health)
