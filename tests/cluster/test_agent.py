"""Drives on a real kubelet: the agent of the chart hands a loop device to an unprivileged pod.

The nodes of the local cluster share this machine's /dev; the test plays the operator, which says
what an agent shall do, with the certificate that the operator would use.
"""

import base64
import datetime
import subprocess
from collections.abc import Callable, Iterator

import grpc
import pytest
import yaml

from memkv.limits import MIB
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME
from memkv_operator.api.names import AGENTS_IDENTITY
from memkv_operator.identity.authority import Pair, issue, make_authority
from memkv_operator.testing.crds import Object, child, objects
from memkv_operator.testing.live_cluster import ROOT, LiveCluster
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc

SYSTEM, HOME = "memkv-agents", "memkv-drive-pods"
SIZE = 256 * MIB
POOL = "0a1b2c3d-0000"
RESOURCE = "drives.memkv.io/test-0a1b2c3d"
READY_S = 240
NAMESPACES = {SYSTEM: "privileged", HOME: "privileged"}
USE = """
set -eu
grep '^CapEff' /proc/self/status
grep '^Seccomp:' /proc/self/status
test "$MEMKV_NODE_DRIVES" = /dev/memkv/drive-0
python3 - <<'PROGRAM'
import mmap, os
from memkv._hotpath import IoRing
fd = os.open("/dev/memkv/drive-0", os.O_RDWR | os.O_DIRECT | os.O_EXCL)
block = mmap.mmap(-1, 4096)
block[:] = b"memkv123" * 512
assert os.pwrite(fd, block, 8 << 20) == 4096
ring = IoRing(fd, 8)
print("io_uring refused:", repr(ring.fallback_reason))
assert not ring.fallback_reason
ring.close()
for path in ("/dev/loop-control", "/dev/vda", "/dev/sda"):
    assert not os.path.exists(path), path
try:
    os.mknod("/tmp/disk", 0o60600, os.makedev(7, 0))
except PermissionError:
    print("no other device can be made")
PROGRAM
memkv node --dir /state --host 127.0.0.1 &
node=$!
python3 - <<'PROGRAM'
import json, pathlib, threading
worker = None
for _ in range(1500):
    file = pathlib.Path("/state/node.json")
    if file.exists():
        worker = json.loads(file.read_text())["workers"][0]
        if worker["phase"] == "ready":
            break
    threading.Event().wait(0.1)
else:
    raise SystemExit(f"the node did not become ready: {worker}")
print("a node serves from the drive")
PROGRAM
kill $node
wait $node || true
"""


@pytest.fixture(scope="module")
def loop(cluster: LiveCluster, loop_disk: Callable[[int], str]) -> str:
    return loop_disk(SIZE)


def identity() -> tuple[Object, Pair]:
    """The Secret that the operator makes, and the certificate that it shows."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("MemKV agents", now)
    agents = issue(authority, [AGENT_NAME], now)
    operator = issue(authority, [AGENT_OPERATOR_NAME], now)
    content = {
        "ca.crt": authority.certificate, "tls.crt": agents.certificate, "tls.key": agents.key
    }  # fmt: skip
    data = {key: base64.b64encode(value).decode() for key, value in content.items()}
    meta = {"name": AGENTS_IDENTITY}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}, operator


def rendered_agent(cluster: LiveCluster, node: str) -> list[Object]:
    """What the chart makes of the agent, for one node."""
    registry, _, rest = cluster.image.partition("/")
    repository, _, tag = rest.rpartition(":")
    settings = (
        f"image.registry={registry}", f"image.repository={repository}", f"image.tag={tag}",
        "agent.enabled=true", "agent.allowLoop=true", "agent.minSize=64MiB",
    )  # fmt: skip
    words = [word for one in settings for word in ("--set", one)]
    chosen = ("--set", rf"agent.nodeSelector.memkv\.io/node={node}")
    text = cluster.run(
        "helm", "template", "agents", str(ROOT / "charts/memkv"), "-n", SYSTEM, *words, *chosen,
        "--show-only", "templates/agent/daemonset.yaml",
    )  # fmt: skip
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def agent(cluster: LiveCluster, loop: str) -> Iterator[pb_grpc.AgentAdminStub]:
    """The agent of the second node, as the operator reaches it."""
    for name, level in NAMESPACES.items():
        labels = {"pod-security.kubernetes.io/enforce": level}
        meta = {"name": name, "labels": labels}
        cluster.apply("default", {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    secret, operator = identity()
    cluster.apply(SYSTEM, secret)
    (daemon_set,) = rendered_agent(cluster, "drives")
    cluster.kubectl("label", "node", cluster.nodes()[-1], "memkv.io/node=drives", "--overwrite")
    cluster.apply(SYSTEM, daemon_set)
    workload = child(daemon_set, "metadata")["name"]
    done = cluster.try_to(
        "kubectl", "-n", SYSTEM, "rollout", "status", f"daemonset/{workload}",
        f"--timeout={READY_S}s",
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n{cluster.trouble(SYSTEM)}"
    (pod,) = cluster.list(SYSTEM, "pod")
    authority = base64.b64decode(str(child(secret, "data")["ca.crt"]))
    credentials = grpc.ssl_channel_credentials(authority, operator.key, operator.certificate)
    endpoint = f"{child(pod, 'status')['podIP']}:9472"
    options = [("grpc.ssl_target_name_override", AGENT_NAME), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(endpoint, credentials, options) as channel:
        yield pb_grpc.AgentAdminStub(channel)
    for name in NAMESPACES:
        cluster.kubectl("delete", "namespace", name, f"--timeout={READY_S}s")
    cluster.kubectl("label", "node", cluster.nodes()[-1], "memkv.io/node-")


def facts_of(agent: pb_grpc.AgentAdminStub) -> pb.AgentFacts:
    return agent.GetAgentFacts(pb.GetAgentFactsRequest(), timeout=60, wait_for_ready=True).facts


def test_every_disk_of_the_node_has_its_reason(agent: pb_grpc.AgentAdminStub, loop: str) -> None:
    facts = facts_of(agent)
    by_path = {disk.device_path: disk for disk in facts.disks}
    assert by_path[loop].content_description == "ext2, ext3 or ext4 file system"
    assert not by_path[loop].unusable_reason
    root = subprocess.run(
        ["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if root in by_path:
        assert "the system's own disk" in by_path[root].unusable_reason
    assert facts.seccomp_profile == "memkv/data-plane.json"
    for path, disk in by_path.items():
        print(f"{path}: {disk.unusable_reason or disk.content_description}")


def test_unprivileged_pod_gets_the_drive(
    cluster: LiveCluster, agent: pb_grpc.AgentAdminStub, loop: str
) -> None:
    (disk,) = (disk for disk in facts_of(agent).disks if disk.device_path == loop)
    drive = pb.AssignedDrive(id=disk.id, fingerprint=disk.fingerprint, position=0, erase=True)
    assignment = pb.Assignment(pool_uid=POOL, resource=RESOURCE, drives=[drive])
    spec = pb.AgentSpec(generation=1, assignments=[assignment])
    agent.ApplyAgent(pb.ApplyAgentRequest(spec=spec), timeout=60)
    node = cluster.nodes()[-1]
    escaped = RESOURCE.replace(".", r"\.")
    allocatable = rf"jsonpath={{.status.allocatable.{escaped}}}=1"
    cluster.wait("default", f"node/{node}", allocatable, READY_S)
    container: Object = {
        "name": "node", "image": cluster.image, "command": ["sh", "-c", USE],
        "resources": {"limits": {RESOURCE: "1"}},
        "securityContext": {
            "runAsUser": 0, "privileged": False, "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
            "seccompProfile": {
                "type": "Localhost", "localhostProfile": facts_of(agent).seccomp_profile
            },
        },
        "volumeMounts": [{"name": "state", "mountPath": "/state"},
                         {"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
    pod: Object = {
        "restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container],
        "volumes": [{"name": "state", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    cluster.apply(HOME, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"},
                         "spec": pod})  # fmt: skip
    done = cluster.try_to(
        "kubectl", "wait", "-n", HOME, "pod/user", "--for=jsonpath={.status.phase}=Succeeded",
        f"--timeout={READY_S}s",
    )  # fmt: skip
    logs = cluster.try_to("kubectl", "logs", "-n", HOME, "pod/user").stdout
    assert done.returncode == 0, f"{logs}\n{cluster.trouble(HOME)}"
    assert "a node serves from the drive" in logs
    assert "no other device can be made" in logs
    capabilities = next(line for line in logs.splitlines() if line.startswith("CapEff"))
    assert int(capabilities.split()[1], 16) == 1 << 14  # IPC_LOCK alone
    (after,) = (disk for disk in facts_of(agent).disks if disk.device_path == loop)
    assert after.assigned


def test_second_pod_waits_for_a_drive_that_is_taken(
    cluster: LiveCluster, agent: pb_grpc.AgentAdminStub
) -> None:
    """The resource has one device: the scheduler gives it to one pod at a time."""
    (node,) = (n for n in cluster.list("default", "node")
               if child(n, "metadata")["name"] == cluster.nodes()[-1])  # fmt: skip
    assert child(node, "status", "capacity")[RESOURCE] == "1"
    problems = [a.problem for a in facts_of(agent).assignments]
    assert problems == [""], objects(child(node, "status"), "conditions")
