"""What processes cost, read from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pids: Iterable[int | str]) -> float:
    """Return user and system seconds of processes that still run; ended ones count as 0."""
    total = 0
    for pid in pids:
        try:
            # The name in brackets may hold spaces: count fields from the last bracket.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def resident_bytes(pids: Iterable[int | str]) -> int:
    """Return resident memory of processes together; shared pages count for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except OSError:
            continue
    return total


def peak_resident_bytes(pid: int | str = "self") -> int:
    """Return the most memory a process had resident since its start or since it was forgotten."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak_resident_bytes(pid: int | str) -> None:
    """Begin anew with what a process has resident now. Raises OSError for another user's."""
    Path(f"/proc/{pid}/clear_refs").write_text("5\n")


def drop_page_cache() -> str:
    """Forget clean cached pages of the whole machine; return why that failed, "" when it did not.

    sync first: dirty pages cannot be dropped.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        return f"the page cache could not be dropped ({error.strerror}); run as root"
    return ""
