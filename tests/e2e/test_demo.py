"""`memkv demo`, small: the whole story with real processes, and its verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memkv.cli.exits import Exit

TIMEOUT_S = 240


@pytest.mark.slow
def test_the_demo_kills_a_node_and_it_comes_back_warm(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "memkv.cli.main", "demo", "--requests", "100",
            "--dir", str(tmp_path), "--json", str(figures),
        ],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["passed"] is True
    assert found["requests"] == 100
    assert found["wrong_bytes"] == 0
    assert found["warm_ratio"] >= 0.99
    assert found["outage"]["durable_blocks"] > 0
    assert found["outage"]["processes_killed"] >= 2, "supervisor and worker"
    assert found["blocks_verified"] >= found["outage"]["served_again"] > 0
    assert 0 < found["prefix_hit_ratio"] <= found["reference"]["unbounded_ratio"]
    assert "warm ratio" in done.stdout
    assert list(tmp_path.glob("memkv-demo-*")) == [], "its files are removed"
