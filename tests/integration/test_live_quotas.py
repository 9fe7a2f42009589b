"""Quotas of a NodeSpec: in force at once, without a restart, kept, and worth something."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from memkv.clock import SystemClock, deadline_after_ms
from memkv.metadata.endpoint import open_channel
from memkv.node.facts import Phase, WorkerView
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.node.supervisor import Supervisor
from memkv.status import Status
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.items import Durability
from memkv_proto import node_admin_pb2 as pb
from memkv_proto import node_admin_pb2_grpc as pb_grpc

POOL = "default/test"
WAIT_S = 60.0
MIB = 1 << 20
GUEST_BLOCKS = 12  # of 256 KiB
BATCH = 16


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Supervisor]]:
    running: list[Supervisor] = []

    def make() -> Supervisor:
        drive = DriveConfig(tmp_path / "drive", 64 * MIB)
        config = NodeConfig(
            "n1", POOL, tmp_path / "state", (drive,), memory_bytes=64 * MIB, data_port=0,
            admin_port=0, http_port=None,
        )  # fmt: skip
        supervisor = Supervisor(config)
        supervisor.start()
        running.append(supervisor)
        return supervisor

    yield make
    for supervisor in running:
        supervisor.stop()


def until(supervisor: Supervisor, holds: Callable[[WorkerView], bool]) -> WorkerView:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, int(WAIT_S * 1000))
    while True:
        view = supervisor.view().workers[0]
        if holds(view):
            return view
        assert clock.monotonic_ns() < deadline_ns, view
        pause.wait(0.02)


def ready(supervisor: Supervisor) -> WorkerView:
    return until(supervisor, lambda view: view.phase is Phase.READY)


def guaranteed(view: WorkerView) -> dict[str, tuple[int, int]]:
    usages = view.report.tenants if view.report is not None else ()
    return {u.tenant: (u.flash_guaranteed_bytes, u.memory_guaranteed_bytes) for u in usages}


def apply(supervisor: Supervisor, spec: pb.NodeSpec) -> pb.ApplyResponse:
    with open_channel(supervisor.admin_endpoint, None) as channel:
        stub = pb_grpc.NodeAdminStub(channel)
        return stub.Apply(pb.ApplyRequest(spec=spec), timeout=WAIT_S)


def facts(supervisor: Supervisor) -> pb.GetFactsResponse:
    with open_channel(supervisor.admin_endpoint, None) as channel:
        return pb_grpc.NodeAdminStub(channel).GetFacts(pb.GetFactsRequest(), timeout=WAIT_S)


def client(view: WorkerView, tenant: str) -> WireClient:
    assert view.report is not None
    address = ("127.0.0.1", view.report.port)
    return WireClient(address, POOL, tenant, now_s=SystemClock().wall_s())


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def put(view: WorkerView, tenant: str, first: int, count: int) -> None:
    data = bytes(256 * 1024)
    with client(view, tenant) as session, session.lane() as lane:
        for start in range(first, first + count, BATCH):
            numbers = range(start, min(start + BATCH, first + count))
            blocks = [Block(key(n), data, Durability.DURABLE) for n in numbers]
            assert set(lane.put(blocks)) == {Status.OK}


def present(view: WorkerView, tenant: str) -> int:
    with client(view, tenant) as session:
        return sum(session.exists(b"".join(key(n) for n in range(GUEST_BLOCKS))))


def test_a_quota_is_in_force_without_a_restart_and_after_one(
    start: Callable[[], Supervisor],
) -> None:
    supervisor = start()
    before = ready(supervisor)
    assert before.report is not None
    put(before, "guest", 0, GUEST_BLOCKS)  # stored while nobody had a quota
    spec = pb.NodeSpec(generation=1, revision="one")
    spec.quotas.add(tenant="guest", flash_bytes=8 * MIB, memory_bytes=4 * MIB, worker=0)
    spec.quotas.add(tenant="guest", flash_bytes=1, worker=1)  # of a drive that is not here
    assert apply(supervisor, spec).pending == ""
    until(supervisor, lambda view: guaranteed(view).get("guest") == (8 * MIB, 4 * MIB))
    after = ready(supervisor)
    assert (after.pid, after.restarts) == (before.pid, 0)
    put(after, "noise", 0, 320)  # more than the drive holds, under the same keys
    assert present(after, "guest") == GUEST_BLOCKS
    until(supervisor, lambda view: "noise" in guaranteed(view))  # workers report now and then
    answer = facts(supervisor)
    assert (answer.spec_generation, answer.spec_revision) == (1, "one")
    assert answer.workers[0].flash_guaranteed_bytes_max > 32 * MIB
    assert {usage.tenant for usage in answer.workers[0].tenants} == {"guest", "noise"}
    supervisor.stop()

    again = start()
    until(again, lambda view: guaranteed(view).get("guest") == (8 * MIB, 4 * MIB))
    view = ready(again)
    assert facts(again).spec_revision == "one"
    put(view, "noise", 1000, 320)
    assert present(view, "guest") == GUEST_BLOCKS
    assert apply(again, pb.NodeSpec(generation=2)).pending == ""  # nobody has any more
    until(again, lambda view: guaranteed(view)["guest"] == (0, 0))


@pytest.mark.parametrize(
    "quotas",
    [
        [pb.TenantQuota(tenant="No Name", flash_bytes=1)],
        [pb.TenantQuota(tenant="a", flash_bytes=1), pb.TenantQuota(tenant="a", worker=3)],
    ],
    ids=["name", "twice"],
)
def test_impossible_quotas_are_refused(
    start: Callable[[], Supervisor], quotas: list[pb.TenantQuota]
) -> None:
    supervisor = start()
    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
        apply(supervisor, pb.NodeSpec(generation=1, quotas=quotas))
    assert facts(supervisor).spec_generation == 0
