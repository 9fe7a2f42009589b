"""The virtual machine of deploy/dev/vm, seen from the host: boot it for a job, cut its power."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
SCRIPTS = TREE / "deploy/dev/vm"
GUEST_OUT = Path("/mnt/out")
LOG_LINES = 40


def why_none() -> str:
    """Return why no machine can be started here; empty: one can."""
    found = subprocess.run([SCRIPTS / "build.sh", "missing"], capture_output=True, text=True)
    lines = (found.stdout + found.stderr).splitlines()
    return f"deploy/dev/vm/build.sh has not got {', '.join(lines)}" if lines else ""


class VirtualMachine:
    """One run of one job. `out` is a folder that host and guest share (the guest's GUEST_OUT)."""

    def __init__(
        self, out: Path, drives: Sequence[Path] = (), *, seconds_max: int = 600,
        processors: int = 2, memory_mib: int = 3072, huge_pages: int = 256,
        all_modules: bool = True,
    ) -> None:  # fmt: skip
        """`drives`: files, each an NVMe drive; the first has the serial number memkv0.
        `all_modules`: False: no soft-RoCE and no device-mapper, which starts sooner."""
        self.out = out
        self._arguments = [
            "--seconds", str(seconds_max), "--processors", str(processors),
            "--memory", str(memory_mib), "--hugepages", str(huge_pages),
            "--modules", "all" if all_modules else "few",
        ]  # fmt: skip
        for drive in drives:
            self._arguments += ["--drive", str(drive)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, job: str) -> None:
        """Power on; `job` is a script of bash."""
        self.out.mkdir(parents=True, exist_ok=True)
        script = self.out / "job"
        script.write_text(job)
        with (self.out / "run.log").open("wb") as log:
            self._process = subprocess.Popen(
                [SCRIPTS / "run.sh", *self._arguments, script, self.out],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait for the job; return its exit status, or that of run.sh when it did not end."""
        assert self._process is not None
        return self._process.wait()

    def cut_power(self) -> None:
        """End the machine at once, as it is."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((self.out / "qemu.pid").read_text()), signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def log(self) -> str:
        """Return the last lines of what job, kernel and QEMU printed."""
        parts: list[str] = []
        for name in ("job.log", "console.log", "qemu.log", "run.log"):
            with contextlib.suppress(OSError):
                lines = (self.out / name).read_text(errors="replace").splitlines()[-LOG_LINES:]
                parts += [f"--- {name}", *lines]
        return "\n".join(parts)
