"""A node one of whose drives fails under it: a real block device whose writes fail, while the other
drive of the node serves on. With device mapper also one whose every sector fails.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from memkv.clock import SystemClock, deadline_after_ms
from memkv.metadata.facts import reports_of
from memkv.node.facts import Phase, WorkerView
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.node.supervisor import Supervisor
from memkv.shardmap import WorkerState
from memkv.status import Status
from memkv.testing.loop_device import NoLoopDevices, loop_device
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.items import Durability
from memkv_proto import node_admin_pb2 as pb

POOL = "default/test"
MIB = 1 << 20
WAIT_MS = 120_000
LENGTH = 200_000


class Failing:
    """A block device that can be made to fail and to work again."""

    def __init__(self, path: str, fail: Callable[[], None], heal: Callable[[], None]) -> None:
        self.path = path
        self.fail = fail
        self.heal = heal


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no failing drive to try: {' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def full_below(folder: Path) -> Iterator[Failing]:
    """A loop device on a tmpfs that is filled up: writes of new places fail with EIO."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder))
    filler = folder / "filler"

    def fail() -> None:
        room = os.statvfs(folder)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)

    try:
        with loop_device(folder / "disk", 64 * MIB) as path:
            yield Failing(path, fail, filler.unlink)
    finally:
        run("umount", str(folder))


@contextmanager
def error_table(folder: Path) -> Iterator[Failing]:
    """A device mapper device whose table is replaced by one of errors."""
    if shutil.which("dmsetup") is None or not os.path.exists("/dev/mapper/control"):
        pytest.skip("no failing drive to try: no device mapper (/dev/mapper/control, dmsetup)")
    folder.mkdir()
    name = f"memkv-test-{os.getpid()}"
    with loop_device(folder / "disk", 64 * MIB) as path:
        sectors = 64 * MIB // 512
        linear, errors = f"0 {sectors} linear {path} 0", f"0 {sectors} error"
        run("dmsetup", "create", name, "--table", linear)

        def use(table: str) -> None:
            run("dmsetup", "suspend", "--noflush", name)
            run("dmsetup", "load", name, "--table", table)
            run("dmsetup", "resume", name)

        try:
            yield Failing(f"/dev/mapper/{name}", lambda: use(errors), lambda: use(linear))
        finally:
            run("dmsetup", "remove", "--retry", name)


@pytest.fixture(params=[full_below, error_table], ids=["writes", "everything"])
def failing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Failing]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(request.param(tmp_path / "failing"))
        except NoLoopDevices as error:
            pytest.skip(f"no block device to try: {error}")


@pytest.fixture
def node(failing: Failing, tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(
        NodeConfig(
            name="n1", pool=POOL, state_dir=tmp_path / "state",
            drives=(DriveConfig(Path(failing.path)), DriveConfig(tmp_path / "good", 64 * MIB)),
            memory_bytes=32 * MIB, data_port=0, admin_port=0, http_port=0,
        )
    )  # fmt: skip
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def wait_for(node: Supervisor, holds: Callable[[WorkerView], bool], worker: int = 0) -> WorkerView:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, WAIT_MS)
    while not holds(view := node.view().workers[worker]):
        assert clock.monotonic_ns() < deadline_ns, view
        pause.wait(0.05)
    return view


def is_serving(view: WorkerView) -> bool:
    return view.phase is Phase.READY and view.report is not None and view.report.port > 0


def client_of(view: WorkerView) -> WireClient:
    assert view.report is not None
    return WireClient(("127.0.0.1", view.report.port), POOL, now_s=SystemClock().wall_s())


def block(number: int) -> Block:
    return Block(number.to_bytes(32, "little"), bytes([number % 251]) * LENGTH, Durability.DURABLE)


def test_a_drive_that_fails_is_faulted_and_the_rest_of_the_node_serves(
    failing: Failing, node: Supervisor
) -> None:
    sick, well = wait_for(node, is_serving), wait_for(node, is_serving, 1)
    with client_of(sick) as client:
        lane = client.lane()
        for number in range(8):
            assert lane.put([block(number)]) == [Status.OK]
        failing.fail()
        numbers = iter(range(100, 1_000_000))

        def put_until_faulted(view: WorkerView) -> bool:
            status = lane.put([block(next(numbers))])[0]
            assert status in (Status.OK, Status.UNAVAILABLE, Status.NO_SPACE, Status.BUSY)
            return view.report is not None and view.report.drive_state == "faulted"

        wait_for(node, put_until_faulted)
        assert lane.put([block(99)]) == [Status.UNAVAILABLE]
        assert client.stat()["drive"]["state"] == "faulted"
        got = lane.get(b"".join(block(number).block_id for number in range(8)))
        hits = [one.status for one in got.values()]
        assert set(hits) <= {Status.OK, Status.MISS}
        assert Status.OK in hits, "what is in DRAM is served"
    with client_of(well) as client:
        assert client.lane().put([block(1)]) == [Status.OK]
    facts = node._facts()
    assert facts.workers[0].drive_state == pb.DRIVE_STATE_FAULTED
    assert "its drive is faulted" in facts.workers[0].message
    states = [report.worker.state for report in reports_of(facts, POOL)]
    assert states == [WorkerState.DRAINING, WorkerState.ACTIVE]
    page = urlopen(f"http://127.0.0.1:{node.http_port}/metrics", timeout=10).read().decode()
    assert 'memkv_store_drive_state{state="faulted",worker="0"} 1.0' in page
    assert 'memkv_store_drive_state{state="healthy",worker="1"} 1.0' in page
    drive = os.path.basename(failing.path)
    assert f'memkv_drive_health_known{{drive="{drive}",worker="0"}} 0.0' in page, "no NVMe drive"
    assert 'memkv_drive_health_known{drive="good"' not in page, "a file has no health"
    check_it_comes_back(failing, node)


def check_it_comes_back(failing: Failing, node: Supervisor) -> None:
    """Not by itself when the drive works again, but with a new process; with its durable blocks."""
    failing.heal()
    before = wait_for(node, is_serving)
    threading.Event().wait(1)
    view = node.view().workers[0]
    assert view.report is not None
    assert view.report.drive_state == "faulted"
    assert before.pid is not None
    os.kill(before.pid, 9)
    again = wait_for(node, lambda view: is_serving(view) and view.pid not in (None, before.pid))
    assert again.report is not None
    assert again.report.drive_state == "healthy"
    with client_of(again) as client:
        ids = b"".join(block(number).block_id for number in range(8))
        assert client.exists(ids) == [1] * 8
        got = client.lane().get(ids)
        assert [got[number].payload for number in range(8)] == [block(n).data for n in range(8)]
