"""What the driver says where there is no device, no node in /dev, or no pyverbs."""

import errno
import logging
import sys
from pathlib import Path

import pytest

from memkv.rdma import driver_constants as constants
from memkv.rdma.driver import PyVerbs
from memkv.rdma.verbs import Access, VerbsError


@pytest.fixture
def machine(tmp_path: Path) -> PyVerbs:
    """One device as the kernel shows it, near NUMA node 1."""
    device = tmp_path / "class/infiniband/mlx5_0/device"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    verbs = tmp_path / "class/infiniband_verbs/uverbs2"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    return PyVerbs(tmp_path / "class/infiniband", tmp_path / "dev")


@pytest.fixture
def without_pyverbs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyverbs", None)
    monkeypatch.delitem(sys.modules, "memkv.rdma.driver_device", raising=False)


@pytest.mark.usefixtures("without_pyverbs")
def test_a_machine_without_devices_needs_no_pyverbs(tmp_path: Path) -> None:
    assert PyVerbs(tmp_path).device_names() == []


@pytest.mark.usefixtures("without_pyverbs")
@pytest.mark.parametrize("use", ["device_names", "open"])
def test_pyverbs_is_missing(machine: PyVerbs, use: str) -> None:
    handlers = logging.getLogger().handlers[:]
    with pytest.raises(VerbsError, match="apt-get install python3-pyverbs") as refused:
        machine.device_names() if use == "device_names" else machine.open("mlx5_0")
    assert "--system-site-packages" in str(refused.value)
    assert refused.value.number == errno.ENOENT
    assert logging.getLogger().handlers == handlers


def test_there_is_no_such_device(machine: PyVerbs) -> None:
    with pytest.raises(VerbsError, match="no RDMA device mlx5_7") as refused:
        machine.open("mlx5_7")
    assert refused.value.number == errno.ENODEV


@pytest.mark.parametrize(
    ("node_is_there", "said"),
    [(False, "uverbs2 is not here.*RDMA resource"), (True, "ibverbs-providers")],
)
def test_libibverbs_does_not_list_it(
    machine: PyVerbs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    node_is_there: bool,
    said: str,
) -> None:
    monkeypatch.setattr("memkv.rdma.driver._listed", list)
    if node_is_there:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/uverbs2").touch()
    with pytest.raises(VerbsError, match=said):
        machine.open("mlx5_0")


@pytest.mark.parametrize(
    ("size_bytes", "code"),
    [(0, 1), (256, 1), (511, 1), (512, 2), (1024, 3), (2048, 4), (4096, 5), (9000, 5)],
)
def test_mtu_codes(size_bytes: int, code: int) -> None:
    assert constants.mtu_code(size_bytes) == code
    assert constants.mtu_bytes(code) <= max(size_bytes, 256)


def test_access_bits() -> None:
    assert constants.access_bits(Access.NONE) == 0
    assert constants.access_bits(Access.LOCAL_WRITE | Access.WINDOWS) == 0b10001
    assert constants.access_bits(Access.REMOTE_READ | Access.REMOTE_WRITE) == 0b00110


def test_statuses() -> None:
    assert constants.status_text(0) == ""
    assert constants.status_text(constants.STATUS_FLUSHED) == "flushed"
    assert constants.status_text(10) == "remote access error"
    assert constants.status_text(99) == "status 99"
