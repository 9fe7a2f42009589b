"""IoRing on a real file, by io_uring and by its fallback."""

import errno
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv._hotpath import IoRing

PAGE = 4096
FILE_BYTES = 64 * PAGE


@pytest.fixture(params=[True, False], ids=["io_uring", "pread"])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IoRing]:
    path = tmp_path / "flash"
    path.write_bytes(bytes(FILE_BYTES))
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    ring = IoRing(fd, 8, use_io_uring=request.param)
    if request.param and ring.engine != "io_uring":
        pytest.skip(ring.fallback_reason)
    yield ring
    ring.close()
    os.close(fd)


def pages(count: int, fill: int) -> mmap.mmap:
    memory = mmap.mmap(-1, count * PAGE)
    memory[:] = bytes([fill]) * (count * PAGE)
    return memory


def drain(ring: IoRing) -> dict[int, int]:
    results: dict[int, int] = {}
    while ring.in_flight:
        results.update(ring.wait(1, 5000))
    return results


def test_what_was_written_is_read_back(ring: IoRing) -> None:
    ring.write(1, 8 * PAGE, [pages(1, 7), pages(2, 9)])
    assert drain(ring) == {1: 3 * PAGE}
    target = pages(3, 0)
    ring.read(2, 8 * PAGE, [target])
    assert drain(ring) == {2: 3 * PAGE}
    assert target[:] == b"\x07" * PAGE + b"\x09" * 2 * PAGE


def test_many_parts_in_one_operation(ring: IoRing) -> None:
    ring.write(1, 0, [pages(1, i) for i in range(20)])
    assert drain(ring) == {1: 20 * PAGE}
    targets = [pages(1, 255) for _ in range(20)]
    ring.read(2, 0, targets)
    assert drain(ring) == {2: 20 * PAGE}
    assert [target[0] for target in targets] == list(range(20))


def test_the_depth_is_a_limit_and_slots_are_reused(ring: IoRing) -> None:
    source = pages(1, 5)
    for round_number in range(3):
        for token in range(8):
            ring.write(token + 10 * round_number, token * PAGE, [source])
        assert ring.in_flight == 8
        with pytest.raises(ValueError, match="8 operations are in flight"):
            ring.write(99, 0, [source])
        assert drain(ring) == {token + 10 * round_number: PAGE for token in range(8)}


def test_registered_memory_is_used_inside_and_outside(ring: IoRing) -> None:
    arena = pages(8, 3)
    assert ring.register_arena(arena) is (ring.engine == "io_uring")
    inside, outside = memoryview(arena)[PAGE : 3 * PAGE], pages(2, 4)
    ring.write(1, 0, [inside])
    ring.write(2, 2 * PAGE, [outside])
    assert drain(ring) == {1: 2 * PAGE, 2: 2 * PAGE}
    ring.read(3, 2 * PAGE, [memoryview(arena)[6 * PAGE :]])
    assert drain(ring) == {3: 2 * PAGE}
    assert arena[6 * PAGE :] == b"\x04" * 2 * PAGE


def test_two_arenas_can_be_registered(ring: IoRing) -> None:
    first, second = pages(2, 1), pages(2, 2)
    assert ring.register_arena(first) == ring.register_arena(second)
    ring.write(1, 0, [memoryview(second)])
    assert drain(ring) == {1: 2 * PAGE}
    ring.read(2, 0, [memoryview(first)])
    assert drain(ring) == {2: 2 * PAGE}
    assert first[:] == second[:]


def test_flush_and_discard(ring: IoRing) -> None:
    ring.write(1, 0, [pages(2, 6)])
    assert drain(ring) == {1: 2 * PAGE}
    ring.flush(2)
    assert drain(ring) == {2: 0}
    ring.discard(3, 0, PAGE)
    assert drain(ring)[3] in (0, -errno.EOPNOTSUPP)
    target = pages(2, 1)
    ring.read(4, 0, [target])
    drain(ring)
    assert target[PAGE:] == b"\x06" * PAGE


def test_a_short_read_is_reported_as_it_is(ring: IoRing) -> None:
    ring.read(1, FILE_BYTES - PAGE, [pages(4, 0)])
    ring.read(2, FILE_BYTES + 4 * PAGE, [pages(1, 0)])
    assert drain(ring) == {1: PAGE, 2: 0}


def test_a_misaligned_offset_is_an_errno_not_an_exception(ring: IoRing) -> None:
    ring.read(1, 1, [pages(1, 0)])
    assert drain(ring) == {1: -errno.EINVAL}


def test_impossible_arguments_are_refused(ring: IoRing) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ring.read(1, 0, [b"x" * PAGE])
    with pytest.raises(ValueError, match="Invalid argument"):
        ring.read(1, 0, [])
    with pytest.raises(ValueError, match="Invalid argument"):
        ring.discard(1, 0, 0)
    with pytest.raises(ValueError, match="not contiguous"):
        ring.write(1, 0, [memoryview(pages(2, 0))[::2]])
    with pytest.raises(ValueError, match="more than 1024"):
        ring.write(1, 0, [b"x"] * 1025)
    assert ring.in_flight == 0


def test_nothing_in_flight_returns_at_once(ring: IoRing) -> None:
    assert ring.wait(1, 10_000) == []
    assert ring.wait(0, 0) == []


def test_buffers_are_held_until_their_token_returns(ring: IoRing) -> None:
    memory = pages(1, 1)
    ring.write(1, 0, [memory])
    with pytest.raises(BufferError):
        memory.close()
    drain(ring)
    memory.close()


def test_close_waits_for_what_is_in_flight(ring: IoRing) -> None:
    memory = pages(1, 8)
    ring.write(1, 0, [memory])
    ring.close()
    ring.close()
    memory.close()
    assert ring.in_flight == 0
    with pytest.raises(ValueError, match="closed"):
        ring.flush(2)


def test_a_bad_fd_is_an_errno(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(PAGE))
    fd = os.open(path, os.O_RDONLY)
    try:
        for use_io_uring in (True, False):
            ring = IoRing(fd, 1, use_io_uring=use_io_uring)
            ring.write(1, 0, [pages(1, 0)])
            assert drain(ring) == {1: -errno.EBADF}
            ring.close()
    finally:
        os.close(fd)


def test_depth_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        IoRing(0, 0)


# A classic BPF program: io_uring_setup (425) returns EPERM, as container runtimes have it.
SECCOMP = """
import ctypes, os, struct, sys
program = b"".join(struct.pack("=HBBI", *step) for step in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)])
memory = ctypes.create_string_buffer(program)
header = struct.pack("@HxxxxxxP", 4, ctypes.addressof(memory))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(header)) == 0, ctypes.get_errno()
from memkv._hotpath import IoRing
ring = IoRing(os.open(sys.argv[1], os.O_RDWR), 4)
ring.write(1, 0, [b"ab"])
assert ring.wait(1, 1000) == [(1, 2)]
print(ring.engine, ring.fallback_reason)
"""


@pytest.fixture
def own_mounts() -> list[str]:
    """A command prefix that gives a process mounts of its own."""
    prefix = ["unshare", "--map-root-user", "--mount"]
    plain = {**os.environ, "LD_PRELOAD": ""}
    tried = subprocess.run(
        [*prefix, "true"], capture_output=True, text=True, check=False, env=plain
    )
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    return prefix


def test_a_refusal_by_sysctl_names_it(tmp_path: Path, own_mounts: list[str]) -> None:
    """The kernel answers EPERM for both; the sysctl tells which it was."""
    path, setting = tmp_path / "flash", tmp_path / "io_uring_disabled"
    path.write_bytes(bytes(PAGE))
    setting.write_text("2\n")
    # A sanitizer is preloaded into what it was made for alone, and ThreadSanitizer wants a fixed
    # layout, which the kernel takes away from who gains rights.
    script = (
        'mount --bind "$1" /proc/sys/kernel/io_uring_disabled &&'
        ' exec $(setarch -R echo setarch -R 2>&-) env LD_PRELOAD="$5" "$2" -c "$3" "$4"'
    )
    preload = os.environ.get("LD_PRELOAD", "")
    done = subprocess.run(
        [*own_mounts, "sh", "-c", script, "sh", setting, sys.executable, SECCOMP, path, preload],
        capture_output=True, text=True, check=False, env={**os.environ, "LD_PRELOAD": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pread io_uring is not available (Operation not permitted)")
    assert "fix: sysctl -w kernel.io_uring_disabled=0" in done.stdout


def test_a_seccomp_refusal_falls_back_and_names_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(PAGE))
    done = subprocess.run(
        [sys.executable, "-c", SECCOMP, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pread io_uring is not available (Operation not permitted)")
    assert "seccomp" in done.stdout
    assert "fix: " in done.stdout


def test_running_out_of_descriptors_falls_back_and_names_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(PAGE))
    fd = os.open(path, os.O_RDWR)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd, hard))
        ring = IoRing(fd, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ring.engine == "pread"
    assert "ulimit -n" in ring.fallback_reason
    ring.close()
    os.close(fd)


def test_a_guarded_socket_ends_with_the_guard(ring: IoRing) -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    assert ring.guard(ours.fileno())
    ours.close()
    if ring.engine == "io_uring":  # the fallback's thread is inside its system calls instead
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        theirs.settimeout(20)
        assert ring.guard(-1)
    assert theirs.recv(1) == b""
    theirs.close()
    ring.read(1, 0, [pages(1, 0)])
    assert drain(ring) == {1: PAGE}


KILLED = """
import os, signal, socket, sys
from memkv._hotpath import IoRing
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
ring = IoRing(fd, 8)
end = socket.socket(fileno=int(sys.argv[2]))
assert ring.guard(end.fileno())
end.close()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_guard_does_not_outlive_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(bytes(FILE_BYTES))
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    assert process.wait(60) == -9
    ours.settimeout(20)
    assert ours.recv(1) == b""
    ours.close()
