"""What the virtual machine can do at most: ib_write_bw between its devices, fio on its drives."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

from memkv.bench.disk_limit import parse_gbps
from memkv.bench.statistics import GB
from memkv.limits import MIB

PORT = 18515
LISTENING_STATE = "0A"
SECONDS_MAX = 120.0
TRIES_MAX = 5


def write_bandwidth_gbps(size_bytes: int = 2 * MIB, writes: int = 40) -> float:
    """Return GB/s of RDMA WRITEs from rxe1 to rxe0, by ib_write_bw as it comes.

    It finds the frequency of its clock by a regression, and prints 0 where the samples are too
    bad, as on a busy emulated machine: then once more.
    """
    for _ in range(TRIES_MAX):
        if gbps := _write_bandwidth_once(size_bytes, writes):
            return gbps
    raise ValueError(f"ib_write_bw printed 0 MB/s {TRIES_MAX} times")


def _write_bandwidth_once(size_bytes: int, writes: int) -> float:
    common = ["ib_write_bw", "-F", "-s", str(size_bytes), "-n", str(writes), "-p", str(PORT)]
    with subprocess.Popen(
        [*common, "-d", "rxe0"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as server:
        try:
            _wait_until_it_listens(server)
            done = subprocess.run(
                [*common, "-d", "rxe1", "127.0.0.1"], capture_output=True, text=True, check=True,
                timeout=SECONDS_MAX,
            )  # fmt: skip
            server.wait(SECONDS_MAX)
        finally:
            server.kill()
    return parse_write_bandwidth(done.stdout, size_bytes)


def parse_write_bandwidth(text: str, size_bytes: int) -> float:
    """Return GB/s from the line of this size. What ib_write_bw calls MB is 2^20 bytes."""
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] == [str(size_bytes)]:
            return float(fields[3]) * MIB / GB
    raise ValueError(f"ib_write_bw printed no line for {size_bytes} bytes:\n{text}")


def drive_reads_gbps(
    path: Path, *, size_bytes: int = 2 * MIB, depth: int = 8, span_bytes: int = 512 * MIB,
    seconds: float = 3.0,
) -> float:  # fmt: skip
    """Return GB/s of random direct reads of the drive's first `span_bytes`.

    Something must have been written there: the host answers holes of a drive's file for nothing.
    """
    command = [
        "fio", "--name=limit", f"--filename={path}", f"--size={span_bytes}", "--readonly",
        "--rw=randread", f"--bs={size_bytes}", f"--iodepth={depth}", "--ioengine=io_uring",
        "--direct=1", "--time_based", f"--runtime={seconds}", "--randrepeat=0", "--norandommap",
        "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=seconds + SECONDS_MAX
    )
    return parse_gbps(done.stdout, "randread")


def fill_drive(path: Path, span_bytes: int = 512 * MIB) -> None:
    """Write the drive's first `span_bytes`. What was on it is lost."""
    subprocess.run(
        ["fio", "--name=fill", f"--filename={path}", f"--size={span_bytes}", "--rw=write",
         f"--bs={4 * MIB}", "--iodepth=4", "--ioengine=io_uring", "--direct=1"],
        capture_output=True, check=True, timeout=SECONDS_MAX * 4,
    )  # fmt: skip


def _wait_until_it_listens(server: subprocess.Popen[bytes]) -> None:
    pause, give_up = threading.Event(), time.monotonic() + SECONDS_MAX
    while not _is_listening():
        if server.poll() is not None or time.monotonic() > give_up:
            raise ChildProcessError("ib_write_bw does not listen")
        pause.wait(0.05)


def _is_listening() -> bool:
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, address, _, state, *_ = line.split()
            if address.endswith(f":{PORT:04X}") and state == LISTENING_STATE:
                return True
    return False
