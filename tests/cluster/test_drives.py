"""A pool on a raw drive, on a real cluster: from a disk that holds something to blocks on it.

In order: each test begins where the last one ended.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-raw"
SYSTEM = "memkv-system"
CHART = str(ROOT / "charts/memkv")
READY_S = 180
SIZE = 512 * MIB
LABEL = "memkv.io/drives"
AGENT = ("agent.enabled=true", "agent.allowLoop=true", "agent.minSize=64MiB")


@pytest.fixture(scope="module")
def loop(loop_disk: Callable[[int], str]) -> str:
    """A disk of the cluster's nodes that holds a file system."""
    return loop_disk(SIZE)


@pytest.fixture(scope="module")
def agents(release: LiveCluster, loop: str) -> Iterator[LiveCluster]:
    """The release with agents, on the last node."""
    level = "pod-security.kubernetes.io/enforce"
    node = release.nodes()[-1]
    release.kubectl("label", "namespace", SYSTEM, f"{level}=privileged", "--overwrite")
    release.kubectl("label", "node", node, f"{LABEL}=yes", "memkv.io/node=drives", "--overwrite")
    words = [word for value in (*AGENT, r"agent.nodeSelector.memkv\.io/node=drives")
             for word in ("--set", value)]  # fmt: skip
    upgrade = ("helm", "upgrade", "memkv", CHART, "-n", SYSTEM, "--reuse-values")
    done = release.try_to(*upgrade, *words, "--wait", f"--timeout={READY_S}s")
    assert done.returncode == 0, f"{done.stderr}\n{release.trouble(SYSTEM)}"
    yield release
    release.run(*upgrade, "--set", "agent.enabled=false", "--wait", f"--timeout={READY_S}s")
    release.kubectl("label", "namespace", SYSTEM, f"{level}=restricted", "--overwrite")
    release.kubectl("label", "node", node, f"{LABEL}-", "memkv.io/node-")


@pytest.fixture(scope="module")
def home(agents: LiveCluster, pool_namespace: Callable[[str], str]) -> str:
    """A namespace for the pool."""
    return pool_namespace("memkv-raw")


def pool(loop: str) -> Object:
    kind = Path("/sys/block", Path(loop).name, "queue/rotational").read_text().strip()
    made = read_yaml(ROOT / "deploy/samples/pool.yaml")
    (group,) = objects(child(made, "spec"), "nodeGroups")
    group["name"], group["nodeSelector"] = "raw", {LABEL: "yes"}
    group["storage"] = {"deviceSelector": {
        "transport": "any", "minSize": "128Mi", "rotational": kind == "1"
    }}  # fmt: skip
    made["metadata"] = {"name": POOL}
    return made


def node_of(cluster: LiveCluster, home: str) -> Object:
    (found,) = cluster.list(home, "memkvnode")
    return found


def test_foreign_disk_waits_for_approval(agents: LiveCluster, home: str, loop: str) -> None:
    agents.apply(home, pool(loop))
    waiting = 'jsonpath={.status.conditions[?(@.type=="DrivesReady")].reason}=DrivePendingApproval'
    agents.wait(home, f"memkvpool/{POOL}", waiting, READY_S)
    name = str(child(node_of(agents, home), "metadata")["name"])
    # The pool says so in the look that makes the MemKVNode, whose status is written in the next.
    agents.wait(home, f"memkvnode/{name}", waiting, READY_S)
    (drive,) = (
        drive
        for drive in objects(child(node_of(agents, home), "status"), "drives")
        if drive["state"] == "PendingApproval"
    )
    with Path(loop).open("rb") as disk:
        assert disk.read(MIB)[0x438:0x43A] == b"\x53\xef"
    patch = json.dumps({"spec": {"approvedDrives": [drive["fingerprint"]]}})
    agents.kubectl("patch", "-n", home, "memkvnode", name, "--type=merge", "-p", patch)


def test_approved_disk_makes_the_pool_ready(agents: LiveCluster, home: str) -> None:
    agents.wait(home, f"memkvpool/{POOL}", "condition=DrivesReady", READY_S)
    agents.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    selector = f"memkv.io/pool={POOL},app.kubernetes.io/component=node"
    (pod,) = agents.list(home, "pod", "-l", selector)
    (container,) = objects(child(pod, "spec"), "containers")
    assert child(container, "securityContext")["privileged"] is False
    assert any(str(name).startswith("drives.memkv.io/") for name in child(container, "resources",
                                                                         "limits"))  # fmt: skip


def test_blocks_are_on_the_drive(agents: LiveCluster, home: str, loop: str) -> None:
    clients = ClientPods(agents, home, POOL, READY_S)
    written = clients.run("writer", *put(0, 1, 2))
    assert clients.run("reader", *get(0, 1, 2)) == written
    with Path(loop).open("rb") as disk:
        assert disk.read(8) == b"MKVSUPER"


def test_pool_is_deleted(agents: LiveCluster, home: str) -> None:
    agents.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={READY_S}s")
