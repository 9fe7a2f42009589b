"""A supervisor with real and with strange workers."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memkv.clock import SystemClock, deadline_after_ms
from memkv.errors import ConfigError
from memkv.metadata.endpoint import open_channel
from memkv.node.children import WorkerChild
from memkv.node.facts import Phase, WorkerView
from memkv.node.messages import Start as StartMessage
from memkv.node.messages import map_message
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.node.supervisor import Supervisor
from memkv.status import Status
from memkv.testing.reserved_pages import PAGE_BYTES, reserved_pages
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.client_session import SessionRefused
from memkv.wire.items import Durability
from memkv.wire.signed import TicketSigner, key_name
from memkv.wire.ticket import CLIENT_RIGHTS, TICKET_LIFETIME_S, Ticket
from memkv_proto import node_admin_pb2 as pb
from memkv_proto import node_admin_pb2_grpc as pb_grpc

POOL = "default/test"
WAIT_S = 60.0
MIB = 1 << 20
Start = Callable[..., Supervisor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Supervisor] = []

    def make(**changes: Any) -> Supervisor:
        settings: dict[str, Any] = {
            "name": "n1",
            "pool": POOL,
            "state_dir": tmp_path / "state",
            "drives": (DriveConfig(tmp_path / "drive", 64 * MIB),),
            "memory_bytes": 32 * MIB,
            "data_port": 0,
            "admin_port": 0,
            "http_port": None,
        }
        supervisor = Supervisor(NodeConfig(**{**settings, **changes}))
        supervisor.start()
        running.append(supervisor)
        return supervisor

    yield make
    for supervisor in running:
        supervisor.stop()


def wait_for(supervisor: Supervisor, holds: Callable[[WorkerView], bool]) -> WorkerView:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, int(WAIT_S * 1000))
    while True:
        view = supervisor.view().workers[0]
        if holds(view):
            return view
        assert clock.monotonic_ns() < deadline_ns, view
        pause.wait(0.02)


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def test_worker_serves_and_its_blocks_outlive_a_clean_stop(start: Start) -> None:
    block_id = b"b" * 32
    supervisor = start()
    view = wait_for(supervisor, lambda view: view.phase is Phase.READY)
    assert view.report is not None
    with WireClient(("127.0.0.1", view.report.port), POOL, now_s=SystemClock().wall_s()) as client:
        block = Block(block_id, b"data" * 100, Durability.CACHED)
        assert client.lane().put([block]) == [Status.OK]
    supervisor.stop()
    assert supervisor.view().workers[0].phase is Phase.STOPPED
    again = wait_for(start(), lambda view: view.phase is Phase.READY)
    assert again.report is not None
    assert again.report.uuid == view.report.uuid
    assert again.report.incarnation == view.report.incarnation + 1
    with WireClient(("127.0.0.1", again.report.port), POOL, now_s=SystemClock().wall_s()) as client:
        assert client.exists(block_id) == [1]


def test_worker_that_cannot_run_says_why_and_the_node_stays(start: Start, tmp_path: Path) -> None:
    (tmp_path / "drive").write_bytes(b"somebody's data" * 1_000_000)
    supervisor = start()
    view = wait_for(supervisor, lambda view: view.phase is Phase.FAILED)
    assert "not a MemKV store" in view.message
    with open_channel(supervisor.admin_endpoint, None) as channel:
        answer = pb_grpc.NodeAdminStub(channel).GetFacts(pb.GetFactsRequest(), timeout=WAIT_S)
    assert answer.workers[0].message == view.message
    assert answer.workers[0].phase == pb.WORKER_PHASE_FAILED


def test_drive_that_is_put_back_is_used(start: Start, tmp_path: Path) -> None:
    drive = tmp_path / "late" / "drive"
    supervisor = start(drives=(DriveConfig(drive),))
    view = wait_for(supervisor, lambda view: view.phase is Phase.FAILED)
    assert "mount it" in view.message
    drive.parent.mkdir()
    with drive.open("wb") as file:
        file.truncate(64 * MIB)
    wait_for(supervisor, lambda view: view.phase is Phase.READY)


@pytest.mark.parametrize(
    ("text", "phase", "named"),
    [
        ("raise SystemExit(3)", Phase.BACKOFF, "status 3"),
        ("import os; os.kill(os.getpid(), 9)", Phase.BACKOFF, "signal 9"),
        ("import os, sys; os.write(int(sys.argv[1]), b'x' * 99)", Phase.FAILED, "strange"),
    ],
    ids=["exits", "killed", "babbles"],
)
def test_strange_worker_is_started_again_and_again(
    start: Start, text: str, phase: Phase, named: str
) -> None:
    supervisor = start(worker_command=program(text))
    wait_for(supervisor, lambda view: view.restarts >= 2)
    view = wait_for(supervisor, lambda view: view.phase is phase)
    assert named in view.message


def test_a_map_that_comes_while_a_worker_starts_is_its_second_message() -> None:
    """A worker that got a map first ended at once, so that every reopened node started it twice."""
    tells_the_first = program(
        "import json, socket, struct, sys\n"
        "channel = socket.socket(fileno=int(sys.argv[1]))\n"
        "size, = struct.unpack('<I', channel.recv(4, socket.MSG_WAITALL))\n"
        "kind = json.loads(channel.recv(size, socket.MSG_WAITALL))['kind']\n"
        "raise SystemExit(7 if kind == 'start' else 8)"
    )

    def start_message() -> StartMessage:
        child.tell(map_message(b"a map"))
        return StartMessage("pool", "n1", 0, "drive", 0, 0, "127.0.0.1", 0, 1, 1, "state", True)

    ended: list[str] = []
    seen = threading.Event()

    def changed() -> None:
        if child.view.phase is Phase.BACKOFF:
            ended.append(child.view.message)
            seen.set()

    child = WorkerChild(0, start_message, SystemClock(), tells_the_first, changed)
    child.start()
    try:
        assert seen.wait(WAIT_S)
    finally:
        child.stop()
    assert "status 7" in ended[0]


def test_the_log_level_reaches_the_workers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one writes it: a worker that read it by itself knew capital letters only, and ended."""
    monkeypatch.setenv("MEMKV_LOG_LEVEL", "debug")
    view = wait_for(start(), lambda view: view.phase is Phase.READY or view.restarts > 0)
    assert view.restarts == 0


def test_missing_worker_program_is_said(start: Start) -> None:
    supervisor = start(worker_command=("/no/such/program",))
    view = wait_for(supervisor, lambda view: view.phase is Phase.FAILED)
    assert "/no/such/program" in view.message


def test_spec_survives_the_supervisor(start: Start, tmp_path: Path) -> None:
    first = start()
    spec = pb.NodeSpec(generation=5, state=pb.NODE_STATE_DRAINING)
    with open_channel(first.admin_endpoint, None) as channel:
        stub = pb_grpc.NodeAdminStub(channel)
        stub.Apply(pb.ApplyRequest(spec=spec), timeout=WAIT_S)
        with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
            stub.Apply(pb.ApplyRequest(spec=pb.NodeSpec(generation=4)), timeout=WAIT_S)
    first.stop()
    second = start()
    assert second.view().spec_generation == 5
    assert second.view().state == pb.NODE_STATE_DRAINING


def test_ports_in_use_are_written_down(start: Start, tmp_path: Path) -> None:
    supervisor = start(http_port=0)
    view = wait_for(supervisor, lambda view: view.phase is Phase.READY)
    assert view.report is not None
    pause = threading.Event()

    def written() -> dict[str, Any]:
        return dict(json.loads((tmp_path / "state" / "node.json").read_text()))

    while written()["workers"][0]["port"] != view.report.port:
        pause.wait(0.02)
    assert written()["admin_endpoint"] == supervisor.admin_endpoint
    assert written()["http_port"] == supervisor.http_port


class Overtaken:
    """A lock whose first taker finds that another one was quicker."""

    def __init__(self, overtake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._overtake = [overtake]

    def __enter__(self) -> None:
        while self._overtake:
            self._overtake.pop()()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_who_looked_later_at_the_workers_writes_later(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = start()
    view = wait_for(supervisor, lambda view: view.phase is Phase.READY)
    [child] = supervisor._children

    def write_of_another_process() -> None:
        monkeypatch.setattr(child, "_view", replace(view, pid=4711))
        supervisor._write_ready_file()

    monkeypatch.setattr(supervisor, "_files", Overtaken(write_of_another_process))
    supervisor._write_ready_file()
    written = json.loads((tmp_path / "state" / "node.json").read_text())
    assert written["workers"][0]["pid"] == 4711


def test_a_second_node_in_a_directory_is_refused_and_writes_nothing(
    start: Start, tmp_path: Path
) -> None:
    first, told = start(), tmp_path / "state" / "node.json"
    # The file is written once the worker is ready, and so a moment later.
    wait_for(first, lambda _: '"phase": "ready"' in told.read_text())
    before = told.read_bytes()
    with pytest.raises(ConfigError, match="another node runs in"):
        start(name="n2")
    assert told.read_bytes() == before
    first.stop()
    wait_for(start(), lambda view: view.phase is Phase.READY)


def test_admin_port_in_use_is_refused_with_the_fix(start: Start, tmp_path: Path) -> None:
    port = int(start().admin_endpoint.rpartition(":")[2])
    with pytest.raises(ConfigError, match="another process has the port"):
        start(admin_port=port, state_dir=tmp_path / "other")


def refusal_of_an_unsigned_ticket(address: tuple[str, int]) -> str:
    """Return why it is refused, "" when it is not."""
    try:
        WireClient(address, POOL, now_s=SystemClock().wall_s()).close()
    except SessionRefused as error:
        return str(error)
    return ""


def test_keys_of_the_spec_are_in_force_at_once_and_open_sessions_stay(start: Start) -> None:
    supervisor = start()
    view = wait_for(supervisor, lambda view: view.phase is Phase.READY)
    assert view.report is not None
    address, now_s = ("127.0.0.1", view.report.port), SystemClock().wall_s()
    signer = TicketSigner(Ed25519PrivateKey.generate())
    key = signer.key
    with (
        WireClient(address, POOL, now_s=now_s) as before,
        open_channel(supervisor.admin_endpoint, None) as channel,
    ):
        stub = pb_grpc.NodeAdminStub(channel)
        for keys in (
            [pb.TicketKey(public_key=b"short")],
            [pb.TicketKey(public_key=key.public_key, key_id="00000000")],
        ):
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                stub.Apply(
                    pb.ApplyRequest(spec=pb.NodeSpec(generation=1, ticket_keys=keys)),
                    timeout=WAIT_S,
                )
        keys = [pb.TicketKey(public_key=key.public_key, key_id=key_name(key.key_id))]
        spec = pb.NodeSpec(generation=1, ticket_keys=keys)
        answer = stub.Apply(pb.ApplyRequest(spec=spec), timeout=WAIT_S)
        assert answer.pending == ""
        pause, clock = threading.Event(), SystemClock()
        deadline_ns = deadline_after_ms(clock, int(WAIT_S * 1000))
        while "not accepted here" not in refusal_of_an_unsigned_ticket(address):
            assert clock.monotonic_ns() < deadline_ns  # it passes until the worker heard of the key
            pause.wait(0.02)
        assert before.exists(b"b" * 32) == [0]
        ticket = signer.sign(
            Ticket(POOL, "default", "test", CLIENT_RIGHTS, now_s, now_s + TICKET_LIFETIME_S)
        )
        with WireClient(address, POOL, now_s=now_s, ticket=ticket.encode()) as after:
            assert after.exists(b"b" * 32) == [0]


def test_blocks_lie_in_huge_pages_and_the_facts_say_so(start: Start) -> None:
    with reserved_pages(17):
        supervisor = start(memory_bytes=33 * MIB, huge_page_bytes=PAGE_BYTES)
        view = wait_for(supervisor, lambda view: view.phase is Phase.READY)
        assert view.report is not None
        memory = [s.value for s in view.report.samples if s.name == "memkv_store_memory_bytes"]
        assert memory == [32 * MIB]
        with open_channel(supervisor.admin_endpoint, None) as channel:
            facts = pb_grpc.NodeAdminStub(channel).GetFacts(pb.GetFactsRequest(), timeout=WAIT_S)
        assert facts.huge_page_bytes == PAGE_BYTES
        assert list(facts.transports) == ["tcp"]
        supervisor.stop()


def test_a_worker_without_its_huge_pages_says_how_to_get_them(start: Start) -> None:
    huge = 1 << 50  # no machine has so many
    supervisor = start(memory_bytes=huge, huge_page_bytes=PAGE_BYTES)
    view = wait_for(supervisor, lambda view: view.phase is Phase.FAILED)
    assert "huge pages of 2Mi are wanted" in view.message or "no huge pages" in view.message
    assert "--huge-pages none" in view.message or "hugepagesz" in view.message
