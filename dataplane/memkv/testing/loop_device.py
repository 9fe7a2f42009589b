"""A real block device over a file: for tests of what only block devices do. Needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoLoopDevices(Exception):
    """This machine has none to give; the text says why."""


@contextmanager
def loop_device(
    file: Path, size_bytes: int, *, sector_bytes: int = 512, read_only: bool = False
) -> Iterator[str]:
    """Attach a new sparse file; yield the device's path. NoLoopDevices."""
    if os.geteuid() != 0:
        raise NoLoopDevices("loop devices need root")
    if shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"):
        raise NoLoopDevices("no losetup, or no /dev/loop-control")
    if not file.exists():
        with file.open("wb") as made:
            made.truncate(size_bytes)
    command = ["losetup", "--find", "--show", f"--sector-size={sector_bytes}"]
    if read_only:
        command.append("--read-only")
    attached = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    if attached.returncode != 0:
        raise NoLoopDevices(f"losetup: {attached.stderr.strip()}")
    path = attached.stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)
