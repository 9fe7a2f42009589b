"""`memkv metadata` as a process: who may publish."""

import subprocess
import sys
from pathlib import Path

import pytest

from memkv.cli.exits import Exit
from memkv.metadata.files import StateFile

TIMEOUT_S = 60


def run_metadata(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "memkv.cli.main", "metadata", "--listen", "127.0.0.1:0", *words],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def test_second_publisher_on_a_state_file_is_refused(tmp_path: Path) -> None:
    first = StateFile(tmp_path / "state")
    done = run_metadata("--publish", "--nodes", "127.0.0.1:1", "--state", str(first.path))
    first.release()
    assert done.returncode == Exit.UNFIT
    assert "another process publishes from" in done.stderr
    assert "--follow" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_state_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"garbage")
    done = run_metadata("--publish", "--nodes", "127.0.0.1:1", "--state", str(tmp_path / "state"))
    assert done.returncode == Exit.UNFIT
    assert "move it away" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("percent", ["0", "101", "many"])
def test_senseless_share_of_moving_slots_is_refused(percent: str) -> None:
    done = run_metadata("--publish", "--max-moving-slots-percent", percent)
    assert done.returncode == Exit.USAGE
    assert "--max-moving-slots-percent" in done.stderr
