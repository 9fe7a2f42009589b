"""The tests of the client once more, over RDMA on devices in memory. In the virtual machine they
run over soft-RoCE."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = ("test_client_operations.py", "test_tenant_isolation.py")


@pytest.mark.parametrize("mode", ["arena", "strict"])
def test_the_suite_of_the_client_passes_over_rdma(mode: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
            *(f"tests/integration/{name}" for name in SUITE),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "MEMKV_TEST_TRANSPORT": "rdma", "MEMKV_RDMA_MODE": mode},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    counted = re.search(r"(\d+) keys over RDMA", done.stdout)
    assert counted, done.stdout[-2000:]
    assert int(counted[1]) > 300, counted[0]
