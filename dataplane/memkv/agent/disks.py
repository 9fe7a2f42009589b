"""What the kernel and udev say of a block device, and the names that are made of it."""

import hashlib
import re
from dataclasses import dataclass, field

NAME_CHARACTERS_MAX = 200  # with size and sum a fingerprint stays below 320, as the API wants it
_UNFIT = re.compile(r"[^A-Za-z0-9._:+=@-]+")
# The first that a disk has is its name: those that cannot be given to another disk come first.
_LINK_ORDER = (
    "nvme-eui.", "nvme-uuid.", "nvme-nvme.", "wwn-", "scsi-3", "nvme-", "scsi-", "ata-", "virtio-",
    "google-", "usb-",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One entry of /sys/block, with what is made of it elsewhere."""

    name: str
    """The kernel's, such as nvme0n1; another disk may have it after a reboot."""
    number: tuple[int, int]
    """Major and minor."""
    size_bytes: int
    sequence: int = 0
    """Grows with each disk that appears, so that a swapped one is seen; 0: an older kernel."""
    sector_bytes: int = 512
    read_only: bool = False
    removable: bool = False
    rotational: bool = False
    optical: bool = False
    model: str = ""
    serial: str = ""
    wwid: str = ""
    transport: str = ""
    numa_node: int = -1
    partitions: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    """What is built on it or on a partition: dm-0, md0, loop3."""
    mounts: tuple[str, ...] = ()
    """Where it, a partition or a holder is mounted."""
    swap: bool = False
    loop_file: str = ""
    """What names the file behind a loop device, wherever it is attached."""
    links: tuple[str, ...] = field(default=())
    """Names below /dev/disk/by-id that lead to it."""
    by_path: str = ""
    """Its name below /dev/disk/by-path."""

    @property
    def link(self) -> str:
        """The best of its names below /dev/disk/by-id; "": none fits."""
        fit = [link for link in self.links if not contradicts(link, self.wwid)]
        return min(fit, key=lambda link: (_rank(link), link), default="")

    @property
    def id(self) -> str:
        """Stable name; the kernel's where nothing tells the disk from others."""
        return self.stable_id or self.name

    @property
    def stable_id(self) -> str:
        """Name that stays with the disk; "": it has none."""
        for candidate in (self.link, _made_name(self)):
            if candidate:
                return _UNFIT.sub("_", candidate)[:NAME_CHARACTERS_MAX]
        return ""

    @property
    def path(self) -> str:
        """Path on the node that leads to this disk also after a reboot, where there is one."""
        return f"/dev/disk/by-id/{self.link}" if self.link else f"/dev/{self.name}"

    @property
    def identity(self) -> str:
        """All that tells this disk from others, hashed: stays when cables and content change."""
        parts = (self.id, self.wwid, self.serial, self.model, self.loop_file, str(self.size_bytes))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def contradicts(link: str, wwid: str) -> bool:
    """Return whether a link below /dev/disk/by-id names another disk than the kernel does."""
    if link.startswith("nvme-eui.") and wwid.startswith("eui."):
        return link.removeprefix("nvme-") != wwid
    if link.startswith("wwn-0x") and wwid.startswith(("naa.", "eui.")):
        return link.removeprefix("wwn-0x") != wwid[4:]
    return False


def _rank(link: str) -> int:
    for rank, prefix in enumerate(_LINK_ORDER):
        if link.startswith(prefix):
            return rank
    return len(_LINK_ORDER)


def _made_name(device: BlockDevice) -> str:
    """Return a name like udev's, for machines without udev."""
    if device.loop_file:
        return f"loop-{hashlib.sha256(device.loop_file.encode()).hexdigest()[:12]}"
    if device.wwid.startswith("naa."):
        return f"wwn-0x{device.wwid.removeprefix('naa.')}"
    if device.wwid:
        return f"{device.transport or 'disk'}-{device.wwid.strip()}"
    if device.serial:
        words = [part for part in (device.model, device.serial) if part]
        return f"{device.transport or 'disk'}-{'_'.join(words)}"
    return ""
