"""What cannot work is said with its likely cause and the fix, by the command that was typed."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from memkv.cli.exits import Exit
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.limits import KIB, MIB
from memkv.localpool.pool import LocalPool
from memkv.localpool.ports import free_ports
from memkv.node.supervisor import READY_FILE
from memkv.store.layout import seal_sector

MEMKV = [sys.executable, "-m", "memkv.cli.main"]
TIMEOUT_S = 60


def memkv(
    *words: str, code: Exit, prepare: Callable[[], None] | None = None, data: bytes = b""
) -> str:
    """Run a command that must end with `code`; return what it said on stderr."""
    done = subprocess.run(
        [*MEMKV, *words], input=data, capture_output=True, timeout=TIMEOUT_S, preexec_fn=prepare,
        check=False,
    )  # fmt: skip
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def node_words(directory: Path, *more: str) -> list[str]:
    """A node that would work. Options may be repeated, and the last one counts."""
    data, admin, http = (str(port) for port in free_ports(3))
    return [
        "node", "--dir", str(directory), "--capacity", "64MiB", "--memory", "32MiB",
        "--data-port", data, "--admin-port", admin, "--http-port", http, *more,
    ]  # fmt: skip


@contextmanager
def running(
    words: list[str], prepare: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*MEMKV, *words], stderr=subprocess.PIPE, text=True, preexec_fn=prepare
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == Exit.OK


def line_with(process: subprocess.Popen[str], *texts: str) -> str:
    """Read what a process says until a line has all texts."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if all(text in line for text in texts):
            return line
    pytest.fail("".join(seen))


def refusal(words: list[str], prepare: Callable[[], None] | None = None) -> str:
    """Return why the worker of a node cannot start; the node itself stays, for it may be fixed."""
    with running(words, prepare) as process:
        return line_with(process, "ERROR memkv.node worker 0: ")


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


# --- the drive --------------------------------------------------------------------------------
def test_a_file_with_other_data_is_refused_and_kept(tmp_path: Path) -> None:
    drive, data = tmp_path / "flash.data", os.urandom(8 * MIB)
    drive.write_bytes(data)
    said = refusal(node_words(tmp_path))
    assert f"{drive}: the device holds data that is not a MemKV store" in said
    assert "wipe it first" in said
    assert drive.read_bytes() == data


def test_a_file_that_is_too_small_is_refused(tmp_path: Path) -> None:
    drive = tmp_path / "flash.data"
    drive.write_bytes(bytes(100_000))
    said = refusal(node_words(tmp_path))
    assert f"{drive}: the device has 98304 bytes, too few for a store; give it at least" in said


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    words = node_words(tmp_path)
    with running(words):
        wait_for_worker(tmp_path)
    os.truncate(tmp_path / "flash.data", 32 * MIB)
    assert "was formatted with 67108864 bytes and has only 33554432 now" in refusal(words)


def test_another_store_format_is_refused(tmp_path: Path) -> None:
    words, drive = node_words(tmp_path), tmp_path / "flash.data"
    with running(words):
        wait_for_worker(tmp_path)
    with drive.open("r+b") as file:
        for copy in range(2):
            page = bytearray(os.pread(file.fileno(), 4 * KIB, copy * 4 * KIB))
            page[8] = 99  # the format, right behind the magic
            seal_sector(memoryview(page))
            os.pwrite(file.fileno(), page, copy * 4 * KIB)
    said = refusal(words)
    assert "has store format 99, this program reads 1; use the version of MemKV" in said


def wait_for_worker(directory: Path) -> None:
    """Wait until a node has made its store and serves."""
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, TIMEOUT_S * 1000)
    while '"ready"' not in read_ready_file(directory):
        assert clock.monotonic_ns() < deadline_ns, "the node does not serve"
        pause.wait(0.02)


def read_ready_file(directory: Path) -> str:
    try:
        return (directory / READY_FILE).read_text()
    except FileNotFoundError:
        return ""


def test_one_file_for_two_nodes_is_refused_by_the_second(tmp_path: Path) -> None:
    with running(node_words(tmp_path / "one")):
        wait_for_worker(tmp_path / "one")
        drive = tmp_path / "one" / "flash.data"
        said = refusal(node_words(tmp_path / "two", "--drives", str(drive)))
        assert f"{drive} is in use by process" in said
        assert "give each worker a file or device of its own" in said


def test_a_full_disk_is_said_before_anything_is_left_there(tmp_path: Path) -> None:
    with small_disk(16 * MIB) as disk:
        said = refusal(node_words(tmp_path, "--drives", str(disk / "flash")))
        assert f"no space for {disk}/flash: 67108864 bytes are wanted and " in said
        assert "lower the capacity or free space" in said
        assert list(disk.iterdir()) == []


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
    said = refusal(node_words(tmp_path), limit)
    assert "flash.data would be larger than its file system or ulimit -f allows" in said


@contextmanager
def small_disk(size_bytes: int) -> Iterator[Path]:
    """A file system of its own. Skips where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="memkv-disk-"))
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        shutil.rmtree(folder)


# --- sizes and places -------------------------------------------------------------------------
def test_a_capacity_that_is_too_small_leaves_no_file(tmp_path: Path) -> None:
    said = refusal(node_words(tmp_path, "--capacity", "1MiB"))
    assert "1048576 bytes, too few for a store" in said
    assert "--capacity" in said
    assert not (tmp_path / "flash.data").exists()


def test_memory_that_is_too_small_is_said(tmp_path: Path) -> None:
    said = refusal(node_words(tmp_path, "--memory", "1MiB"))
    assert "Raise memory" in said
    assert not (tmp_path / "flash.data").exists()


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = memkv(*node_words(tmp_path / "file"), code=Exit.UNFIT)
    assert "choose another --dir, one that you can write to" in said
    state = str(tmp_path / "file" / "state")
    words = ("metadata", "--publish", "--nodes", "127.0.0.1:1", "--listen", "127.0.0.1:0")
    assert "choose another --state" in memkv(*words, "--state", state, code=Exit.UNFIT)
    assert "--dir" in memkv("up", "--dir", str(tmp_path / "file"), code=Exit.USAGE)


# --- ports ------------------------------------------------------------------------------------
def test_a_nodes_port_in_use_is_named(tmp_path: Path) -> None:
    with taken_port() as port:
        said = memkv(*node_words(tmp_path, "--admin-port", port), code=Exit.UNFIT)
        assert f"the admin port cannot listen on 127.0.0.1:{port}: another process has" in said
        said = memkv(*node_words(tmp_path, "--http-port", port), code=Exit.UNFIT)
        assert f"cannot serve HTTP on 127.0.0.1:{port}: Address already in use; choose" in said
        said = refusal(node_words(tmp_path, "--data-port", port))
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in said
        assert "is another worker running there" in said


def test_a_metadata_port_in_use_is_named(tmp_path: Path) -> None:
    words = ("metadata", "--publish", "--nodes", "127.0.0.1:1", "--state", str(tmp_path / "state"))
    with taken_port() as port:
        said = memkv(*words, "--listen", f"127.0.0.1:{port}", code=Exit.UNFIT)
        assert f"cannot listen on 127.0.0.1:{port}: another process has the port" in said
        said = memkv(*words, "--listen", "127.0.0.1:0", "--http-port", port, code=Exit.UNFIT)
        assert f"cannot serve HTTP on 127.0.0.1:{port}: Address already in use" in said
        assert "never awaited" not in said


def test_a_pools_port_in_use_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with taken_port() as port:
        words = ("--nodes", "1", "--capacity", "64MiB", "--endpoint", f"127.0.0.1:{port}")
        said = memkv("up", *words, code=Exit.UNFIT)
    assert f"cannot listen on 127.0.0.1:{port}: another process listens there" in said
    assert "starting" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_a_temporary_pool_that_cannot_start_is_kept() -> None:
    words = ("--nodes", "1", "--capacity", "64MiB", "--memory", "1MiB", "--endpoint", "127.0.0.1:0")
    said = memkv("up", *words, code=Exit.UNFIT)
    log = Path(said.partition("its log ")[2].partition(" ends with")[0])
    try:
        assert "memory" in log.read_text()
        assert [path.name for path in log.parents[1].iterdir()] == ["logs"]
    finally:
        shutil.rmtree(log.parents[1])


# --- the metadata service ---------------------------------------------------------------------
def test_a_damaged_state_file_is_said(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("rubbish")
    words = ("metadata", "--publish", "--nodes", "127.0.0.1:1", "--listen", "127.0.0.1:0")
    said = memkv(*words, "--state", str(state), code=Exit.UNFIT)
    assert f"the state file {state} cannot be used" in said
    assert "Restore it from a copy" in said
    assert "cannot read the state file" in memkv(*words, "--state", str(tmp_path), code=Exit.UNFIT)


def test_a_second_publisher_is_refused(shared_pool: LocalPool) -> None:
    state = str(shared_pool.plan.directory / "metadata" / "state")
    words = ("metadata", "--publish", "--nodes", "127.0.0.1:1", "--listen", "127.0.0.1:0")
    said = memkv(*words, "--state", state, code=Exit.UNFIT)
    assert "another process publishes from" in said
    assert "--follow" in said


# --- keys, blocks and places of a put and a get -----------------------------------------------
@pytest.mark.parametrize("key", ["", "k" * 513])
def test_a_key_that_cannot_be_is_said(shared_pool: LocalPool, key: str) -> None:
    for words in (("put", key, "-"), ("get", key), ("exists", key), ("rm", key)):
        said = memkv(*words, "--endpoint", shared_pool.endpoint, code=Exit.USAGE, data=b"x")
        assert "a key has 1 to 512 bytes" in said


def test_a_key_that_is_no_text_is_its_bytes(shared_pool: LocalPool, client: Client) -> None:
    key = os.fsdecode(b"not \xff UTF-8")
    memkv("put", key, "-", "--endpoint", shared_pool.endpoint, code=Exit.OK, data=b"x")
    memkv("exists", key, "--endpoint", shared_pool.endpoint, code=Exit.OK)
    assert client.get(b"not \xff UTF-8") == b"x"


def test_a_block_that_cannot_be_is_said(shared_pool: LocalPool) -> None:
    words = ("put", "key", "-", "--endpoint", shared_pool.endpoint)
    said = memkv(*words, code=Exit.USAGE)
    assert "a block has at least one byte" in said
    said = memkv(*words, code=Exit.USAGE, data=bytes(16 * MIB + 1))
    assert "longer than a block may be (16 MiB); split it" in said


def test_another_pools_name_is_said(shared_pool: LocalPool) -> None:
    said = memkv(
        "get", "key", "--endpoint", shared_pool.endpoint, "--pool", "default/other",
        code=Exit.UNREACHABLE,
    )  # fmt: skip
    assert "default/other" in said
    assert "default/local" in said  # what is served there


def test_a_dead_node_is_named_by_who_asks_for_its_block(shared_pool: LocalPool) -> None:
    endpoint = ("--endpoint", shared_pool.endpoint)
    for process in (node.child for node in shared_pool.nodes):
        for pid in process.processes():
            os.kill(pid, signal.SIGSTOP)
    try:
        said = memkv("get", "key", *endpoint, "--deadline", "500ms", code=Exit.UNREACHABLE)
        assert "`memkv nodes` shows which nodes are away" in said
    finally:
        for process in (node.child for node in shared_pool.nodes):
            for pid in process.processes():
                os.kill(pid, signal.SIGCONT)
        shared_pool.wait_complete(TIMEOUT_S)

