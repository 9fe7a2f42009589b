"""The tests of the client once more, over soft-RoCE, with workers on pieces of the raw drive; see
tests/integration/conftest.py."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv.testing.guest_node import drive
from memkv.testing.rdma_pool import CLIENT_DEVICE, NODE_DEVICE

SUITE = Path(__file__).parents[2] / "integration/test_client_operations.py"
WORKERS = 3
PIECE_BYTES = 256 * MIB
SECTOR_BYTES = 512
SECONDS_MAX = 400  # a quarter of that on a quiet machine


@pytest.fixture
def pieces() -> Iterator[list[str]]:
    """Block devices, each a part of the first drive."""
    names = [f"piece{number}" for number in range(WORKERS)]
    sectors = PIECE_BYTES // SECTOR_BYTES
    for number, name in enumerate(names):
        table = f"0 {sectors} linear {drive(0)} {(number + 1) * sectors}"
        subprocess.run(["dmsetup", "create", "--noudevsync", name, "--table", table], check=True)
    subprocess.run(["dmsetup", "mknodes"], check=True)
    yield [f"/dev/mapper/{name}" for name in names]
    for name in names:
        subprocess.run(["dmsetup", "remove", "--noudevsync", name], check=True)


@pytest.mark.timeout(SECONDS_MAX + 20)
def test_the_suite_of_the_client_passes_over_soft_roce(pieces: list[str]) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "pytest_timeout", "-p", "no:cacheprovider",
            "-o", "addopts=--import-mode=importlib", "-o", "timeout=200",
            "--durations=5",
            f"--confcutdir={SUITE.parent}", str(SUITE),
        ],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        env={
            **os.environ, "MEMKV_TEST_TRANSPORT": "rdma", "MEMKV_TEST_DRIVES": ",".join(pieces),
            "MEMKV_TEST_NODE_DEVICE": NODE_DEVICE, "MEMKV_TEST_CLIENT_DEVICE": CLIENT_DEVICE,
        },
    )  # fmt: skip
    print("\n" + ", ".join(done.stdout.splitlines()[-2:]))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    counted = re.search(r"(\d+) keys over RDMA", done.stdout)
    assert counted, done.stdout[-2000:]
    assert int(counted[1]) > 300, counted[0]
