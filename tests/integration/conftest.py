"""MEMKV_TEST_TRANSPORT=rdma has every client that goes to workers of the test's process move blocks
over RDMA, on the devices MEMKV_TEST_NODE_DEVICE and MEMKV_TEST_CLIENT_DEVICE; `fake` instead of
these names: on devices in memory. MEMKV_RDMA_MODE=strict as always. Ends with a line that says how
many keys went so, and fails when none did. MEMKV_TEST_DRIVES: block devices, whose content is lost,
for the workers of local_workers, instead of files."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from memkv.client.rdma_settings import RdmaSettings
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.rdma.driver import PyVerbs
from memkv.rdma.verbs import Verbs
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.over_rdma import go_over_rdma

FAKE = "fake"
COUNTS: list[int] = []
"""Keys of each client that was closed."""


@cache
def fabric() -> FakeFabric:
    return FakeFabric()


def verbs(name: str) -> Verbs:
    return FakeVerbs(fabric(), [f"{name}0"]) if device(name) == FAKE else PyVerbs()


def device(name: str) -> str:
    return os.environ.get(f"MEMKV_TEST_{name.upper()}_DEVICE", FAKE)


def on_drive(path: str, drives: str) -> FileDevice:
    """Open the drive of the worker whose file this would be, as if it were new."""
    drive = drives.split(",")[int(path.rpartition("-")[2])]
    with Path(drive).open("r+b") as device:
        device.write(bytes(4 * MIB))
    return FileDevice.open(drive)


if os.environ.get("MEMKV_TEST_TRANSPORT") == "rdma":

    @pytest.fixture(scope="session", autouse=True)
    def _over_rdma() -> Iterator[None]:
        named = device("client")
        environment = {
            "MEMKV_RDMA_MODE": os.environ.get("MEMKV_RDMA_MODE", ""),
            "MEMKV_RDMA_DEVICES": "" if named == FAKE else named,
        }
        options = RdmaSettings(environment, {}, "").options
        with pytest.MonkeyPatch.context() as patch:
            go_over_rdma(
                patch, lambda: verbs("node"), lambda: verbs("client"), options, COUNTS.append
            )
            drives = os.environ.get("MEMKV_TEST_DRIVES")
            if drives:
                patch.setattr(FileDevice, "create", lambda path, size: on_drive(path, drives))
            yield
        assert sum(COUNTS), "no key went over RDMA"

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"{sum(COUNTS)} keys over RDMA")
