"""What `memkv doctor` looks at. Each check says what it found and, when it is not fine, the fix."""

import errno
import mmap
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from memkv.cli import drive_checks, rdma_checks, units
from memkv.cli.check import BROKEN, OK, WARNING, Check
from memkv.io.huge_pages import free_pages
from memkv.limits import GIB, HTTP_PORT_DEFAULT, MEMLOCK_BYTES_WANTED, MIB, SECTOR_BYTES

PYTHON_MIN = (3, 11)
FILES_WANTED = 4096
FREE_BYTES_WANTED = 2 * GIB
PORTS = (
    (7443, "metadata"), (7070, "node data"), (9470, "node admin"), (HTTP_PORT_DEFAULT, "metrics"),
)  # fmt: skip


def python() -> Check:
    """MemKV runs on CPython 3.11 or later."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < PYTHON_MIN:
        return Check("python", BROKEN, found, "install Python 3.11 or later and run make again")
    return Check("python", OK, found)


def kernel() -> Check:
    """io_uring as MemKV uses it came with Linux 5.6."""
    release = platform.release()
    parts = [int(part) for part in release.split(".")[:2] if part.isdigit()]
    found = f"{platform.system()} {release}, {os.cpu_count()} CPUs"
    if platform.system() != "Linux":
        return Check("kernel", BROKEN, found, "nodes run on Linux only")
    if tuple(parts) < (5, 6):
        return Check("kernel", WARNING, found, "Linux 5.6 or later has io_uring; reads are slower")
    return Check("kernel", OK, found)


def native_module() -> Check:
    """Nothing works without memkv._hotpath."""
    try:
        from memkv import _hotpath
    except ImportError as error:
        return Check("native module", BROKEN, str(error), "build it: `make setup`")
    engine = _hotpath.sums_engine
    fix = "" if engine != "baseline" else "this CPU has no AVX2: checksums are slower, not wrong"
    return Check("native module", OK if not fix else WARNING, f"loaded, {engine} checksums", fix)


def io_uring(directory: Path) -> Check:
    """Where io_uring is refused MemKV reads and writes by pread and pwrite."""
    from memkv import _hotpath

    with tempfile.TemporaryFile(dir=directory) as file:
        ring = _hotpath.IoRing(file.fileno(), 8)
        engine, reason = ring.engine, ring.fallback_reason
        ring.close()
    if engine == "io_uring":
        return Check("io_uring", OK, "allowed")
    return Check("io_uring", WARNING, f"{engine} is used instead", reason)


def direct_io(directory: Path) -> Check:
    """The store wants O_DIRECT; some file systems have none."""
    path = Path(tempfile.mkstemp(dir=directory, prefix="memkv-doctor-")[1])
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, SECTOR_BYTES) as page:  # mmap gives the alignment O_DIRECT wants
                os.pwrite(descriptor, page, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return Check(
            "O_DIRECT", BROKEN, f"refused below {directory}",
            "tmpfs and some overlays have none: choose a directory on ext4 or XFS",
        )  # fmt: skip
    finally:
        path.unlink()
    return Check("O_DIRECT", OK, f"works below {directory}")


def room(directory: Path) -> Check:
    """Space for a small pool."""
    free = shutil.disk_usage(directory).free
    found = f"{units.format_bytes(free)} free below {directory}"
    if free < FREE_BYTES_WANTED:
        wanted = units.format_bytes(FREE_BYTES_WANTED)
        return Check("disk space", WARNING, found, f"`memkv demo` needs {wanted}; choose --dir")
    return Check("disk space", OK, found)


def memory_lock() -> Check:
    """A worker of the default size registers its memory whole."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", OK, "unlimited")
    found = f"{units.format_bytes(soft)} (ulimit -l)"
    if soft >= MEMLOCK_BYTES_WANTED:
        return Check("locked memory", OK, found)
    wanted = units.format_bytes(MEMLOCK_BYTES_WANTED)
    return Check(
        "locked memory", WARNING, found,
        f"under {wanted} a worker with the default --memory registers no buffers unless it has"
        " CAP_IPC_LOCK, and reads cost more CPU: `ulimit -l unlimited`, or LimitMEMLOCK=infinity",
    )  # fmt: skip


def huge_pages() -> Check:
    """Optional: `memkv node --huge-pages` wants them reserved."""
    counted = {name: free_pages(size) for name, size in (("2Mi", 2 * MIB), ("1Gi", GIB))}
    found = [f"{n} of {total} {name}" for name, c in counted.items() if c for n, total in [c]]
    return Check("huge pages", OK, f"free: {', '.join(found)}" if found else "none")


def open_files() -> Check:
    """A session is a few descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (ulimit -n; at most {hard})"
    if soft < FILES_WANTED:
        return Check(
            "open files", WARNING, found, f"`ulimit -n {FILES_WANTED}` before starting nodes"
        )
    return Check("open files", OK, found)


def clock() -> Check:
    """Deadlines read the clock often: a slow clock source costs latency."""
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    try:
        source = path.read_text().strip()
    except OSError:
        return Check("clock", OK, "source unknown")
    slow = source in ("hpet", "acpi_pm", "jiffies")
    fix = f"{source} costs microseconds a reading; boot with tsc if it is stable" if slow else ""
    return Check("clock", WARNING if slow else OK, source, fix)


def ports(host: str = "127.0.0.1", wanted: Sequence[tuple[int, str]] = PORTS) -> list[Check]:
    """The default ports are free, or someone serves there already."""
    found = []
    for port, what in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                fix = f"a pool that runs already, or choose another port for {what}"
                found.append(Check(f"port {port}", WARNING, error.strerror or "taken", fix))
            else:
                found.append(Check(f"port {port}", OK, f"free ({what})"))
    return found


def several(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Look at what is more than one finding."""
    try:
        return look()
    except OSError as error:
        return [Check(name, WARNING, f"cannot be looked at: {error}", "please report it")]


def all_checks(directory: Path) -> list[Check]:
    """Run every check; one that fails itself is a finding, not the end."""
    native = native_module()
    single: list[Callable[[], Check]] = [
        python, kernel, *([lambda: io_uring(directory)] if native.state != BROKEN else []),
        lambda: direct_io(directory), lambda: room(directory), memory_lock, huge_pages, open_files,
        clock,
    ]  # fmt: skip
    found = [native]
    for check in single:
        try:
            found.append(check())
        except OSError as error:
            name = getattr(check, "__name__", "check")
            fix = f"is {directory} writable?"
            found.append(Check(name, BROKEN, str(error), fix))
    return [
        *found,
        *several("RDMA", lambda: rdma_checks.rdma(rdma_checks.this_machine())),
        *several(
            "drives",
            lambda: drive_checks.drives(drive_checks.examined_drives, rdma_checks.numa_nodes()),
        ),
        *ports(),
    ]
