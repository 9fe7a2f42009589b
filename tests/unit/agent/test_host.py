"""What the agent makes of sysfs, mounts, swap and udev's links: a reason for every disk."""

from pathlib import Path

import pytest

from memkv.agent.disks import BlockDevice
from memkv.agent.host import read_devices
from memkv.agent.rules import Limits, misleading_links, reasons_by_name
from memkv.errors import ConfigError
from memkv.limits import GIB, MIB
from memkv.testing.node_disks import HostTree

LIMITS = Limits()


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    return HostTree(tmp_path)


def devices(tree: HostTree) -> dict[str, BlockDevice]:
    found = read_devices(tree.root, lambda name, number: "7:11" if name == "loop0" else "")
    return {device.name: device for device in found}


def reasons(tree: HostTree, limits: Limits = LIMITS) -> dict[str, str]:
    return dict(reasons_by_name(devices(tree).values(), limits))


def test_free_disk_has_no_reason_against_it(tree: HostTree) -> None:
    nvme = "pci0000:00/0000:00:05.0/nvme/nvme0"
    place = tree.disk(
        "nvme0n1", 3840 * 10**9, nvme, wwid="eui.0025385b21404e6f", device__serial="S64G",
        device__model="SAMSUNG MZQL2", queue__rotational="0", diskseq="9",
    )  # fmt: skip
    (place.parents[3] / "numa_node").write_text("1\n")
    tree.link("nvme-eui.0025385b21404e6f", "../../nvme0n1")
    tree.link("nvme-SAMSUNG_MZQL2_S64G", "../../nvme0n1")
    tree.link("pci-0000:00:05.0-nvme-1", "../../nvme0n1", "by-path")
    (disk,) = devices(tree).values()
    assert reasons(tree) == {"nvme0n1": ""}
    assert disk.id == "nvme-eui.0025385b21404e6f"
    assert disk.path == "/dev/disk/by-id/nvme-eui.0025385b21404e6f"
    assert (disk.by_path, disk.transport, disk.numa_node) == ("pci-0000:00:05.0-nvme-1", "nvme", 1)
    assert (disk.serial, disk.model, disk.sequence) == ("S64G", "SAMSUNG MZQL2", 9)
    assert disk.size_bytes == 3840 * 10**9


@pytest.mark.parametrize(
    ("name", "attributes", "size_bytes", "reason"),
    [
        ("sda", {"ro": "1"}, 8 * GIB, "read-only"),
        ("sda", {"removable": "1"}, 8 * GIB, "removable"),
        ("sda", {}, 512 * MIB, "too small"),
        ("sda", {"device__type": "5"}, 8 * GIB, "CD-ROM"),
        ("sda", {}, 0, "no medium"),
        ("sda", {"serial": ""}, 8 * GIB, "no serial number"),
        ("sda", {"queue__logical_block_size": "8192"}, 8 * GIB, "sectors of 8192"),
        ("sr0", {}, 8 * GIB, "CD-ROM"),
        ("zram0", {}, 8 * GIB, "zram"),
        ("ram3", {}, 8 * GIB, "RAM disk"),
        ("nbd0", {}, 8 * GIB, "nbd"),
        ("dm-0", {}, 8 * GIB, "device mapper"),
        ("md127", {}, 8 * GIB, "RAID"),
        ("loop0", {}, 8 * GIB, "--allow-loop"),
    ],
)
def test_every_kind_of_unfit_disk_has_its_reason(
    tree: HostTree, name: str, attributes: dict[str, str], size_bytes: int, reason: str
) -> None:
    tree.disk(name, size_bytes, **{"serial": "S1", **attributes})
    assert reason in reasons(tree)[name]


def test_empty_slots_and_hidden_paths_are_no_disks(tree: HostTree) -> None:
    tree.disk("loop7", 0)
    tree.disk("nbd3", 0)
    tree.disk("sr0", 0)
    tree.disk("nvme0c0n1", 8 * GIB, hidden="1", serial="S1")
    assert reasons(tree) == {}


def test_loop_device_is_named_by_its_file(tree: HostTree) -> None:
    tree.disk("loop0", 8 * GIB)
    disk = devices(tree)["loop0"]
    assert reasons(tree, Limits(allow_loop=True)) == {"loop0": ""}
    assert disk.id.startswith("loop-")
    assert len(disk.id) == len("loop-") + 12
    assert disk.path == "/dev/loop0"


def test_uses_are_reasons(tree: HostTree) -> None:
    for letter in "abcdefg":
        tree.disk(f"sd{letter}", serial=f"S{letter}")
    tree.mount(tree.partition("sda", "sda1"), "/boot/efi")
    tree.mount(tree.root / "sys/block/sdb", "/srv/with\\040space")
    tree.partition("sdc", "sdc1")
    tree.swap("/dev/sdc1")
    tree.partition("sdd", "sdd1")
    tree.holder(tree.root / "sys/block/sde", "dm-0")
    volume = tree.disk("dm-0")
    tree.mount(volume, "/")
    tree.mount_line("40 35 0:44 / /data rw - btrfs /dev/sdf rw")  # has a number of its own
    found = reasons(tree)
    assert found["sda"] == "the system's own disk (mounted at /boot/efi)"
    assert found["sdb"] == "mounted at /srv/with space"
    assert found["sdc"].startswith("used as swap")
    assert found["sdd"].startswith("has partitions (sdd1)")
    assert found["sde"] == "the system's own disk (mounted at /)"
    assert found["sdf"] == "mounted at /data"
    assert found["sdg"] == ""


def test_holders_are_followed_through_partitions_and_circles(tree: HostTree) -> None:
    tree.disk("sda", serial="S1")
    partition = tree.partition("sda", "sda1")
    tree.holder(partition, "dm-0")
    tree.holder(tree.disk("dm-0"), "dm-1")
    tree.holder(tree.disk("dm-1"), "dm-0")  # no kernel does that; a look must end all the same
    assert reasons(tree)["sda"].startswith("in use by dm-0, dm-1")


def test_loop_device_on_a_disk_holds_it(tree: HostTree) -> None:
    """Kubelet makes one when it maps a raw block volume."""
    tree.disk("sda", serial="S1")
    (tree.root / "dev/sda").touch()
    tree.disk("loop3", loop__backing_file="/dev/sda")
    assert reasons(tree)["sda"].startswith("in use by loop3")


def test_two_paths_to_one_disk_are_both_refused(tree: HostTree) -> None:
    tree.disk("sda", device__wwid="naa.5000c500a1", serial="S1")
    tree.disk("sdb", device__wwid="naa.5000c500a1", serial="S1")
    assert "two paths to one disk" in reasons(tree)["sda"]
    assert "sda" in reasons(tree)["sdb"]


def test_retargeted_link_does_not_rename_a_disk(tree: HostTree) -> None:
    """A link that was made to lead to another disk, which the kernel knows by its own name."""
    tree.disk("nvme0n1", wwid="eui.aaaa", bus="pci0/nvme/nvme0")
    tree.disk("nvme1n1", wwid="eui.bbbb", bus="pci0/nvme/nvme1")
    tree.link("nvme-eui.aaaa", "../../nvme1n1")
    found = devices(tree)
    assert found["nvme0n1"].id == "nvme-eui.aaaa"
    assert found["nvme0n1"].path == "/dev/nvme0n1"
    assert found["nvme1n1"].id == "nvme-eui.bbbb"
    assert found["nvme1n1"].path == "/dev/nvme1n1"
    assert misleading_links(found["nvme1n1"]) == ["nvme-eui.aaaa"]


def test_links_in_circles_or_to_elsewhere_are_no_names(tree: HostTree) -> None:
    tree.disk("sda", serial="S1")
    tree.link("wwn-a", "wwn-b")
    tree.link("wwn-b", "wwn-a")
    tree.link("wwn-c", "wwn-c")
    tree.link("wwn-d", "../../../etc/passwd")
    tree.link("wwn-e", "../../mapper/sda")
    (tree.root / "dev/disk/by-id/wwn-f").write_text("no link")
    assert devices(tree)["sda"].links == ()
    tree.link("ata-good", "../../sda")
    assert devices(tree)["sda"].id == "ata-good"


def test_names_hold_what_an_api_takes(tree: HostTree) -> None:
    tree.disk("sda", serial="a b/../c\tü" + "x" * 400)
    name = devices(tree)["sda"].id
    assert not set(name) & set(" /\tü")
    assert len(name) <= 200


def test_nothing_is_free_when_mounts_or_swap_cannot_be_read(tree: HostTree) -> None:
    tree.disk("sda", serial="S1")
    for file in ("proc/swaps", "proc/1/mountinfo", "sys/block/sda", "sys/block"):
        path = tree.root / file
        path.rename(tree.root / "away") if not path.is_symlink() else path.unlink()
        if file == "sys/block/sda":
            assert devices(tree) == {}
            continue
        with pytest.raises(ConfigError):
            devices(tree)
        (tree.root / "away").rename(path)
