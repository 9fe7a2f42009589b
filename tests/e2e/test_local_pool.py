"""What `memkv up` promises about its processes: none outlives it, none is lost unseen."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memkv.cli.exits import Exit
from memkv.localpool.process import descendants

MEMKV = [sys.executable, "-m", "memkv.cli.main"]
TIMEOUT_S = 60


@contextmanager
def pool(directory: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run `memkv up`; yield it and the ids of its children."""
    command = [
        *MEMKV, "up", "--nodes", "2", "--dir", str(directory), "--capacity", "64MiB",
        "--memory", "32MiB", "--endpoint", "127.0.0.1:0", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "}\n"))
        document = json.loads("".join([*lines, "}"]))
        pids = [document["metadata"]["pid"], *(node["pid"] for node in document["nodes"])]
        yield process, pids
    finally:
        process.kill()
        process.communicate()


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], TIMEOUT_S)
    finally:
        os.close(descriptor)
    assert ended, f"process {pid} still runs"


def test_killed_pools_leave_no_process_behind(tmp_path: Path) -> None:
    """Nor a locked file: the same pool opens again."""
    for _ in range(2):
        with pool(tmp_path) as (process, pids):
            workers = [child for pid in pids for child in descendants(pid)]
            assert len(workers) == 2
            process.kill()
            for pid in (*pids, *workers):
                wait_for_end(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with pool(tmp_path) as (process, pids):
        process.send_signal(number)
        process.wait(TIMEOUT_S)
        assert process.returncode == Exit.OK
        for pid in pids:
            wait_for_end(pid)


def test_a_child_that_ends_is_reported_and_ends_the_pool(tmp_path: Path) -> None:
    """Nothing is restarted in secret: a person sees which one, and the end of its log."""
    with pool(tmp_path) as (process, pids):
        os.kill(pids[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == Exit.UNFIT
        assert "node-1 ended with exit code -9; its log" in errors
        for pid in pids:
            wait_for_end(pid)


def test_a_pool_that_does_not_fit_the_disk_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MEMKV, "up", "--dir", str(tmp_path), "--capacity", "900TiB"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.USAGE
    assert "lower --capacity (it is for each node)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_the_network_needs_a_clear_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MEMKV, "up", "--dir", str(tmp_path), "--capacity", "64MiB", "--endpoint", "0.0.0.0:0"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.UNFIT
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr
