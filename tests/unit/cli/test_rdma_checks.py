"""What `memkv doctor` says of RDMA devices, of drives and of the way between them."""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from memkv.agent.content import Content, Kind
from memkv.agent.decisions import Examined
from memkv.agent.disks import BlockDevice
from memkv.cli.check import OK, WARNING, Check
from memkv.cli.drive_checks import drives, read_distances
from memkv.cli.rdma_checks import REGISTERED_BYTES, Machine, numa_nodes, rdma
from memkv.errors import ConfigError
from memkv.limits import GIB
from memkv.rdma.verbs import Access, LinkLayer, VerbsError
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs

HERE = {1: "lo", 2: "eth0", 3: "eth1"}


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    made = FakeFabric()
    yield made
    assert made.open_objects() == {}, "the doctor gives back what it took"
    made.close()


def look(fabric: FakeFabric, *names: str, missing: str = "") -> list[Check]:
    return rdma(Machine(FakeVerbs(fabric, names, missing), names, HERE))


def test_no_device_is_no_fault(fabric: FakeFabric) -> None:
    assert look(fabric) == [Check("RDMA", OK, "no device; payload goes over TCP")]


def test_a_good_device(fabric: FakeFabric) -> None:
    fabric.add_device("other")  # takes the fabric's first interface
    fabric.add_device("mlx5_0", numa_node=1)
    device, port = look(fabric, "mlx5_0")
    assert device == Check("RDMA mlx5_0", OK, "64 MiB registered, memory windows, NUMA node 1")
    assert (port.name, port.state, port.fix) == ("RDMA mlx5_0 port 1", OK, "")
    assert port.found == "active, ethernet, MTU 4096, GID 3 = 10.0.0.2 (RoCE v2 by IPv4)"
    assert len(port.details) == 5
    assert "eth0" in port.details[4]
    assert "chosen" in port.details[4]
    (tried,) = fabric.registrations
    assert (tried.size_bytes, tried.access) == (REGISTERED_BYTES, Access.LOCAL_WRITE)


def test_infiniband(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0", link_layer=LinkLayer.INFINIBAND, mtu_bytes=2048)
    device, port = look(fabric, "mlx5_0")
    assert device.found.endswith("NUMA node unknown")
    assert (port.state, port.fix) == (OK, "")
    assert "infiniband, MTU 2048, GID 0" in port.found


def test_small_packets(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0", mtu_bytes=1024)
    port = look(fabric, "mlx5_0")[1]
    assert port.state == WARNING
    assert "MTU of 4200" in port.fix


def test_a_port_that_is_down(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0", ports=2)
    fabric.set_port("mlx5_0", False, port=2)
    device, up, down = look(fabric, "mlx5_0")
    assert (device.state, up.state, down.state) == (OK, OK, WARNING)
    assert down.found.startswith("down")
    assert "is the cable in" in down.fix


def test_no_address(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0")
    fabric.set_gids("mlx5_0", ())
    port = look(fabric, "mlx5_0")[1]
    assert port.state == WARNING
    assert "give its network interface an address" in port.fix


def test_libraries_are_missing(fabric: FakeFabric) -> None:
    (only,) = look(fabric, "mlx5_0", missing="apt-get install python3-pyverbs")
    assert only.state == WARNING
    assert only.fix == "apt-get install python3-pyverbs"


def test_one_device_is_forbidden_and_the_other_is_looked_at(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0")
    fabric.add_device("mlx5_1")
    fabric.forbid("mlx5_0")
    forbidden, *others = look(fabric, "mlx5_0", "mlx5_1")
    assert (forbidden.name, forbidden.state) == ("RDMA mlx5_0", WARNING)
    assert "may not use it" in forbidden.fix
    assert [check.state for check in others] == [OK, OK]


@pytest.mark.parametrize("what", ["region", "queue pair"])
def test_what_cannot_be_had_is_told(fabric: FakeFabric, what: str) -> None:
    fabric.add_device("mlx5_0")
    fabric.knobs.fails_at[what] = 1
    device, port = look(fabric, "mlx5_0")
    assert (device.state, port.state) == (WARNING, OK)
    assert device.fix


def test_a_device_without_windows_is_fit(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_0")
    fabric.knobs.fails_at["window"] = 1
    device = look(fabric, "mlx5_0")[0]
    assert device.state == OK
    assert "strict mode" in device.found


def test_a_device_that_is_pulled_out_while_it_is_looked_at(
    fabric: FakeFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric.add_device("mlx5_0")
    verbs = FakeVerbs(fabric, ["mlx5_0"])
    device = verbs.open("mlx5_0")

    def gone() -> list[object]:
        raise VerbsError("mlx5_0 is gone", errno.EIO)

    monkeypatch.setattr(device, "ports", gone)
    monkeypatch.setattr(verbs, "open", lambda name: device)
    (only,) = rdma(Machine(verbs, ["mlx5_0"], HERE))
    assert (only.state, only.fix) == (WARNING, "mlx5_0 is gone")


def disk(name: str, kind: Kind = Kind.BLANK, node: int = 0) -> Examined:
    device = BlockDevice(name, (259, 0), 4 * GIB, serial=name, numa_node=node)
    text = "an ext4 file system" if kind is Kind.FOREIGN else kind.value
    return Examined(device, content=Content(kind, text, "fingerprint"))


DISKS: Sequence[Examined] = [
    disk("nvme0n1"),
    disk("nvme1n1", Kind.MEMKV, 1),
    disk("nvme2n1", Kind.FOREIGN),
    replace(disk("nvme3n1"), reason="mounted at /data", content=None),
    replace(disk("nvme4n1"), error="reading it failed: Permission denied", content=None),
    replace(disk("nvme5n1"), held=True),
]


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    for number, distances in enumerate(("10 21", "21 10")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}/distance").write_text(f"{distances}\n")
    (tmp_path / "possible").write_text("0-1\n")
    return tmp_path


def test_every_drive_has_a_verdict(nodes: Path) -> None:
    found, _ = drives(lambda: DISKS, {}, nodes)
    assert (found.state, found.found) == (OK, "3 of 6 could be a pool's")
    said = {line[2:].split()[0]: line for line in found.details}
    assert said["nvme0n1"].startswith("+")
    assert said["nvme0n1"].endswith("4 GiB  /dev/nvme0n1: blank")
    assert said["nvme1n1"].endswith("MemKV store")
    assert "holds an ext4 file system; a pool erases it only when" in said["nvme2n1"]
    assert said["nvme3n1"].startswith(" ")
    assert said["nvme3n1"].endswith("mounted at /data")
    assert "Permission denied" in said["nvme4n1"]
    assert "somebody has it open" in said["nvme5n1"]


def test_distances_between_drives_and_devices(nodes: Path) -> None:
    _, numa = drives(lambda: DISKS[:2], {"mlx5_0": 0, "mlx5_1": -1}, nodes)
    assert numa.found == ("2 nodes; no RDMA device on the node of nvme1n1: payload crosses sockets")
    assert numa.details == (
        "nvme0n1 (node 0): mlx5_0 10, mlx5_1 unknown",
        "nvme1n1 (node 1): mlx5_0 21, mlx5_1 unknown",
    )


def test_one_node_has_no_distances(tmp_path: Path) -> None:
    found, numa = drives(list, {"mlx5_0": 0}, tmp_path)
    assert "a file on ext4 or XFS can" in found.found
    assert (numa.found, numa.details) == ("one node", ())


def test_disks_that_cannot_be_looked_at() -> None:
    def refused() -> list[Examined]:
        raise ConfigError("cannot read /sys/block: Permission denied")

    (only,) = drives(refused, {})
    assert (only.state, only.found) == (
        OK, "not looked at: cannot read /sys/block: Permission denied",
    )  # fmt: skip


def test_reading_sysfs(nodes: Path, tmp_path: Path) -> None:
    assert read_distances(nodes) == {0: {0: 10, 1: 21}, 1: {0: 21, 1: 10}}
    (tmp_path / "ib/mlx5_0/device").mkdir(parents=True)
    (tmp_path / "ib/mlx5_0/device/numa_node").write_text("1\n")
    (tmp_path / "ib/rxe0").mkdir()
    assert numa_nodes(tmp_path / "ib") == {"mlx5_0": 1, "rxe0": -1}
