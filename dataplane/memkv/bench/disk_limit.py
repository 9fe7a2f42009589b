"""The limit of flash: fio with io_uring and O_DIRECT, random, on the same file system.

fio's writes end with a flush, which counts in its time: what it left in the drive's cache would
otherwise be flushed in MemKV's next turn, and be MemKV's loss.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from memkv.bench.statistics import GB
from memkv.errors import ConfigError

INSTALL = "install it with `apt-get install fio` (or your distribution's package)"
FIO_TIMEOUT_MARGIN_S = 60.0  # laying out the file comes before the clock starts


@dataclass(frozen=True, slots=True)
class DiskLimit:
    """A file of `file_bytes` in `directory` for fio to read or overwrite."""

    directory: Path
    size_bytes: int
    file_bytes: int
    depth: int = 16

    @property
    def file(self) -> Path:
        return self.directory / "fio.data"

    def measure_gbps(self, kind: str, seconds: float) -> float:
        """Return GB/s of "randread" or "randwrite". Raises ConfigError when fio cannot run."""
        command = [
            "fio", "--name=limit", f"--filename={self.file}", f"--size={self.file_bytes}",
            f"--rw={kind}", f"--bs={self.size_bytes}", f"--iodepth={self.depth}",
            "--ioengine=io_uring", "--direct=1", "--time_based", f"--runtime={seconds}",
            "--randrepeat=0", "--norandommap", "--end_fsync=1", "--output-format=json",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=True,
                timeout=seconds + FIO_TIMEOUT_MARGIN_S,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or error.stdout).strip().splitlines()
            raise ConfigError(f"fio failed: {reason[-1] if reason else 'no message'}") from None
        except subprocess.TimeoutExpired:
            raise ConfigError(f"fio did not end within {seconds:g} s of its time") from None
        return parse_gbps(done.stdout, kind)

    def remove(self) -> None:
        """Delete fio's file."""
        self.file.unlink(missing_ok=True)


def parse_gbps(text: str, kind: str) -> float:
    """Return GB/s from fio's JSON, which warnings may precede."""
    document = json.loads(text[text.index("{") :])
    side = document["jobs"][0]["read" if kind == "randread" else "write"]
    return float(side["bw_bytes"]) / GB


def fio_missing() -> str:
    """Return why there is no disk limit, "" when fio is installed."""
    return "" if shutil.which("fio") else f"fio is not installed: {INSTALL}"
