"""The agent with real block devices (loop) and a kubelet that is played over its real socket."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from memkv.agent.agent import Agent
from memkv.agent.agent_config import AgentConfig
from memkv.agent.rules import Limits
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME, TlsFiles
from memkv.testing.certificates import Authority
from memkv.testing.fake_kubelet import FakeKubelet
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc
from memkv_proto import kubelet_device_plugin_pb2 as plugin_pb

SIZE = 64 * MIB
POOL = "0123abcd-0000"
RESOURCE = f"drives.memkv.io/group-{POOL[:8]}"


def attach(file: Path) -> str:
    done = subprocess.run(
        ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
    return done.stdout.strip()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        threading.Event().wait(0.05)


def detach(path: str) -> None:
    subprocess.run(["losetup", "--detach", path], check=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short: the path of a Unix socket has 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="memkv-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def loop(folder: Path) -> Iterator[str]:
    """A loop device with an ext4 file system's mark on it."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices need root and losetup")
    file = folder / "disk.img"
    with file.open("wb") as disk:
        disk.truncate(SIZE)
        disk.seek(0x438)
        disk.write(b"\x53\xef")
    path = attach(file)
    yield path
    subprocess.run(["losetup", "--detach", path], check=False, capture_output=True)


@pytest.fixture
def kubelet(folder: Path) -> Iterator[FakeKubelet]:
    (folder / "plugins").mkdir()
    kubelet = FakeKubelet(folder / "plugins")
    yield kubelet
    kubelet.stop()


@pytest.fixture
def agent(folder: Path, kubelet: FakeKubelet) -> Iterator[Agent]:
    agent = Agent(
        AgentConfig(
            "node-a", folder / "state", plugin_dir=folder / "plugins",
            seccomp_dir=folder / "seccomp", admin_port=0, http_port=0,
            disks=Limits(allow_loop=True, size_bytes_min=SIZE),
        )
    )  # fmt: skip
    agent.start()
    yield agent
    agent.stop()


def stub_of(agent: Agent) -> pb_grpc.AgentAdminStub:
    return pb_grpc.AgentAdminStub(grpc.insecure_channel(agent.admin_endpoint))


def facts_of(agent: Agent) -> pb.AgentFacts:
    return stub_of(agent).GetAgentFacts(pb.GetAgentFactsRequest(), timeout=10).facts


def disk_of(agent: Agent, path: str) -> pb.AgentDisk:
    wait_for(lambda: any(d.device_path == path for d in facts_of(agent).disks), f"no {path}")
    return next(disk for disk in facts_of(agent).disks if disk.device_path == path)


def spec(generation: int, disk: pb.AgentDisk, *, erase: bool) -> pb.AgentSpec:
    drive = pb.AssignedDrive(id=disk.id, fingerprint=disk.fingerprint, position=0, erase=erase)
    assignment = pb.Assignment(pool_uid=POOL, resource=RESOURCE, drives=[drive])
    return pb.AgentSpec(generation=generation, assignments=[assignment])


def apply(agent: Agent, wanted: pb.AgentSpec) -> None:
    stub_of(agent).ApplyAgent(pb.ApplyAgentRequest(spec=wanted), timeout=10)


def is_healthy(kubelet: FakeKubelet) -> Callable[[], bool]:
    return lambda: kubelet.devices.get(RESOURCE, {}).get("drives", plugin_pb.Device()).health == (
        "Healthy"
    )


def allocate(kubelet: FakeKubelet) -> plugin_pb.ContainerAllocateResponse:
    one = plugin_pb.ContainerAllocateRequest(devices_ids=["drives"])
    request = plugin_pb.AllocateRequest(container_requests=[one])
    (answer,) = kubelet.stub(RESOURCE).Allocate(request, timeout=10).container_responses
    return answer


def test_approved_disk_reaches_a_container(agent: Agent, kubelet: FakeKubelet, loop: str) -> None:
    disk = disk_of(agent, loop)
    assert disk.content_description == "ext2, ext3 or ext4 file system"
    assert (disk.unusable_reason, disk.transport) == ("", "loop")
    apply(agent, spec(1, disk, erase=False))
    kubelet.wait(lambda: RESOURCE in kubelet.devices)
    assert not is_healthy(kubelet)()
    with pytest.raises(grpc.RpcError, match="other content"):
        allocate(kubelet)

    apply(agent, spec(2, disk, erase=True))
    kubelet.wait(is_healthy(kubelet))
    given = allocate(kubelet)
    assert dict(given.envs) == {"MEMKV_NODE_DRIVES": "/dev/memkv/drive-0"}
    (device,) = given.devices
    assert device.container_path == "/dev/memkv/drive-0"
    assert (device.host_path, device.permissions) == (loop, "rw")
    assert Path(loop).read_bytes()[: MIB] == bytes(MIB)
    wait_for(lambda: facts_of(agent).assignments[0].healthy, "not told to the operator")

    # The pod owns it: the agent reads beside it and does not get in its way.
    owner = FileDevice.open(device.host_path)
    start = plugin_pb.PreStartContainerRequest(devices_ids=["drives"])
    kubelet.stub(RESOURCE).PreStartContainer(start, timeout=10)
    owner.close()


def test_disk_in_use_is_not_erased(agent: Agent, kubelet: FakeKubelet, loop: str) -> None:
    disk = disk_of(agent, loop)
    owner = FileDevice.open(loop)  # somebody opens it between approval and erasure
    apply(agent, spec(1, disk, erase=True))
    wait_for(lambda: any("exclusively" in p for p in facts_of(agent).problems), "not told")
    assert Path(loop).read_bytes()[0x438 : 0x43A] == b"\x53\xef"
    owner.close()
    kubelet.wait(is_healthy(kubelet), 60)


def test_other_file_behind_the_same_loop_device(
    agent: Agent, kubelet: FakeKubelet, loop: str, folder: Path
) -> None:
    disk = disk_of(agent, loop)
    other = folder / "other.img"
    shutil.copy(folder / "disk.img", other)  # the very same bytes
    detach(loop)
    assert attach(other) == loop
    apply(agent, spec(1, disk, erase=True))
    wait_for(
        lambda: "missing" in facts_of(agent).assignments[0].problem, "the swap was not noticed"
    )
    assert other.read_bytes()[0x438 : 0x43A] == b"\x53\xef"
    detach(loop)
    assert attach(folder / "disk.img") == loop
    kubelet.wait(is_healthy(kubelet))
    assert other.read_bytes()[0x438 : 0x43A] == b"\x53\xef"


def test_pulled_drive_is_unhealthy_until_it_is_back(
    agent: Agent, kubelet: FakeKubelet, loop: str, folder: Path
) -> None:
    apply(agent, spec(1, disk_of(agent, loop), erase=True))
    kubelet.wait(is_healthy(kubelet))
    detach(loop)
    kubelet.wait(lambda: not is_healthy(kubelet)())
    start = plugin_pb.PreStartContainerRequest(devices_ids=["drives"])
    with pytest.raises(grpc.RpcError, match="missing"):
        kubelet.stub(RESOURCE).PreStartContainer(start, timeout=10)
    assert attach(folder / "disk.img") == loop
    kubelet.wait(is_healthy(kubelet))


def test_kubelet_is_told_again_after_its_restart(
    agent: Agent, kubelet: FakeKubelet, loop: str, folder: Path
) -> None:
    apply(agent, spec(1, disk_of(agent, loop), erase=True))
    kubelet.wait(is_healthy(kubelet))
    for _ in range(2):
        kubelet.stop()
        wait_for(lambda: not facts_of(agent).assignments[0].healthy, "the end was not noticed")
        kubelet = FakeKubelet(folder / "plugins")  # removes the agent's socket
        kubelet.wait(is_healthy(kubelet))
        assert allocate(kubelet).devices
        assert kubelet.requests[0].options.pre_start_required
        wait_for(lambda: facts_of(agent).assignments[0].healthy, "not told to the operator")
    apply(agent, pb.AgentSpec(generation=2))
    kubelet.wait(lambda: RESOURCE not in kubelet.devices)
    kubelet.stop()


def test_kubelet_that_refuses_is_asked_again(
    agent: Agent, kubelet: FakeKubelet, loop: str
) -> None:
    kubelet.refuses = "no such version"
    apply(agent, spec(1, disk_of(agent, loop), erase=True))
    wait_for(lambda: "no such version" in facts_of(agent).assignments[0].problem, "not told")
    kubelet.refuses = ""
    kubelet.wait(is_healthy(kubelet))


def test_restarted_agent_knows_its_drives(
    agent: Agent, kubelet: FakeKubelet, loop: str, folder: Path
) -> None:
    apply(agent, spec(1, disk_of(agent, loop), erase=True))
    kubelet.wait(is_healthy(kubelet))
    agent.stop()
    kubelet.wait(lambda: RESOURCE not in kubelet.devices)
    again = Agent(agent._config)
    again.start()
    try:
        kubelet.wait(is_healthy(kubelet))
        assert facts_of(again).spec_generation == 1
    finally:
        again.stop()


def test_profile_and_metrics(agent: Agent, folder: Path) -> None:
    from urllib.request import urlopen

    wait_for(lambda: bool(facts_of(agent).software_version), "no look")
    assert facts_of(agent).seccomp_profile == "memkv/data-plane.json"
    assert b"io_uring_setup" in (folder / "seccomp/memkv/data-plane.json").read_bytes()
    with urlopen(f"http://127.0.0.1:{agent.http_port}/metrics", timeout=10) as answer:
        assert b"memkv_agent_disks" in answer.read()
    with urlopen(f"http://127.0.0.1:{agent.http_port}/readyz", timeout=10) as answer:
        assert answer.status == 200


def test_only_the_operator_commands_the_agent(folder: Path) -> None:
    """Every call, by every kind of caller: no certificate, a foreign one, another agent's."""
    authority, foreign = Authority(), Authority()
    (folder / "plugins").mkdir()
    config = AgentConfig(
        "node-a", folder / "state", plugin_dir=folder / "plugins", admin_port=0, http_port=0,
        tls=authority.files(folder, "agent", AGENT_NAME),
    )  # fmt: skip
    agent = Agent(config)
    agent.start()

    def call(files: TlsFiles | None, name: str) -> grpc.StatusCode:
        key = files.key.read_bytes() if files else None
        certificate = files.certificate.read_bytes() if files else None
        credentials = grpc.ssl_channel_credentials(authority.pem, key, certificate)
        options = [("grpc.ssl_target_name_override", AGENT_NAME)]
        with grpc.secure_channel(agent.admin_endpoint, credentials, options) as channel:
            stub = pb_grpc.AgentAdminStub(channel)
            try:
                if name == "GetAgentFacts":
                    stub.GetAgentFacts(pb.GetAgentFactsRequest(), timeout=60)
                else:
                    wanted = pb.ApplyAgentRequest(spec=pb.AgentSpec(generation=9))
                    stub.ApplyAgent(wanted, timeout=60)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)  # noqa: PT017  what a call raises
                return error.code()
        return grpc.StatusCode.OK

    try:
        for name in ("ApplyAgent", "GetAgentFacts"):
            assert call(None, name) is grpc.StatusCode.UNAVAILABLE
            stranger = foreign.files(folder, "foreign", AGENT_OPERATOR_NAME)
            assert call(stranger, name) is grpc.StatusCode.UNAVAILABLE
            for other in (AGENT_NAME, "admin.pool.ns.memkv", "memkv"):
                files = authority.files(folder, "other", other)
                assert call(files, name) is grpc.StatusCode.PERMISSION_DENIED
        assert agent.facts().spec_generation == 0
        operator = authority.files(folder, "operator", AGENT_OPERATOR_NAME)
        assert call(operator, "GetAgentFacts") is grpc.StatusCode.OK
        assert call(operator, "ApplyAgent") is grpc.StatusCode.OK
    finally:
        agent.stop()
