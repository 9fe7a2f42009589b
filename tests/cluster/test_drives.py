"""Pools on a raw drive, on a real cluster: from a disk that holds something to blocks on it, and
the same disk by its stable path under the agent's seccomp profile.

In order: each test begins where the last one ended.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-raw"
BY_PATH = "pool-path"
BY_ID = Path("/dev/disk/by-id")
SYSTEM = "memkv-system"
CHART = str(ROOT / "charts/memkv")
READY_S = 180
SIZE = 512 * MIB
LABEL = "memkv.io/drives"
OPEN_RINGS = "grep ^Seccomp: /proc/1/status; ls -l /proc/[0-9]*/fd | grep -o '.io_uring.' | uniq -c"
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


@pytest.fixture(scope="module")
def link(loop: str) -> Iterator[Path]:
    """A stable name of the disk, as udev makes one; gone afterwards, and the folders with it."""
    path = BY_ID / f"memkv-test-{Path(loop).name}"
    made = [folder for folder in (BY_ID, BY_ID.parent) if not folder.exists()]
    BY_ID.mkdir(parents=True, exist_ok=True)
    path.symlink_to(f"../../{Path(loop).name}")
    yield path
    path.unlink()
    for folder in made:
        folder.rmdir()


def pool(name: str, **changes: object) -> Object:
    made = read_yaml(ROOT / "deploy/samples/pool.yaml")
    (group,) = objects(child(made, "spec"), "nodeGroups")
    group |= {"name": "raw", "nodeSelector": {LABEL: "yes"}, **changes}
    made["metadata"] = {"name": name}
    return made


def node_of(cluster: LiveCluster, home: str, name: str) -> Object:
    (found,) = cluster.list(home, "memkvnode", "-l", f"memkv.io/pool={name}")
    return found


def pod_of(cluster: LiveCluster, home: str, name: str) -> Object:
    selector = f"memkv.io/pool={name},app.kubernetes.io/component=node"
    (pod,) = cluster.list(home, "pod", "-l", selector)
    return pod


def approve_the_drive(agents: LiveCluster, home: str, pool_name: str) -> Object:
    """Wait until a drive of the pool's only node wants approval, and give it."""
    waiting = 'jsonpath={.status.conditions[?(@.type=="DrivesReady")].reason}=DrivePendingApproval'
    agents.wait(home, f"memkvpool/{pool_name}", waiting, READY_S)
    name = str(child(node_of(agents, home, pool_name), "metadata")["name"])
    # The pool says so in the look that makes the MemKVNode, whose status is written in the next.
    agents.wait(home, f"memkvnode/{name}", waiting, READY_S)
    (drive,) = (
        drive
        for drive in objects(child(node_of(agents, home, pool_name), "status"), "drives")
        if drive["state"] == "PendingApproval"
    )
    patch = json.dumps({"spec": {"approvedDrives": [drive["fingerprint"]]}})
    agents.kubectl("patch", "-n", home, "memkvnode", name, "--type=merge", "-p", patch)
    return drive


def test_foreign_disk_waits_for_approval(agents: LiveCluster, home: str, loop: str) -> None:
    kind = Path("/sys/block", Path(loop).name, "queue/rotational").read_text().strip()
    selector = {"transport": "any", "minSize": "128Mi", "rotational": kind == "1"}
    agents.apply(home, pool(POOL, storage={"deviceSelector": selector}))
    waiting = 'jsonpath={.status.conditions[?(@.type=="DrivesReady")].status}=False'
    agents.wait(home, f"memkvpool/{POOL}", waiting, READY_S)
    with Path(loop).open("rb") as disk:
        assert disk.read(MIB)[0x438:0x43A] == b"\x53\xef"
    approve_the_drive(agents, home, POOL)


def test_approved_disk_makes_the_pool_ready(agents: LiveCluster, home: str) -> None:
    agents.wait(home, f"memkvpool/{POOL}", "condition=DrivesReady", READY_S)
    agents.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    (container,) = objects(child(pod_of(agents, home, POOL), "spec"), "containers")
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
    selector = f"memkv.io/pool={POOL}"
    agents.kubectl("wait", "-n", home, "pod", "-l", selector, "--for=delete",
                   f"--timeout={READY_S}s")  # fmt: skip


def test_drive_by_its_path_is_taken_over_under_the_agents_profile(
    agents: LiveCluster, home: str, link: Path
) -> None:
    """The disk has the store of a pool that is gone, so it waits for a person once more."""
    begun = time.monotonic()
    storage = {"devicePaths": [str(link)]}
    agents.apply(home, pool(BY_PATH, storage=storage, seccompProfile="Localhost"))
    drive = approve_the_drive(agents, home, BY_PATH)
    assert drive["path"] == str(link)
    agents.wait(home, f"memkvpool/{BY_PATH}", "condition=Ready", READY_S)
    print(f"pool on {link} Ready {time.monotonic() - begun:.1f} s after apply")
    pod = pod_of(agents, home, BY_PATH)
    profile = child(pod, "spec", "securityContext", "seccompProfile")
    assert profile == {"type": "Localhost", "localhostProfile": "memkv/data-plane.json"}
    # What its processes have open says by what the workers read and write.
    name = str(child(pod, "metadata")["name"])
    found = agents.kubectl("exec", "-n", home, name, "--", "sh", "-c", OPEN_RINGS)
    print(f"the worker's rings: {found.strip()}")
    assert "[io_uring]" in found
    assert "Seccomp:\t2" in found


def test_blocks_are_shared_over_the_drive_by_path(agents: LiveCluster, home: str) -> None:
    clients = ClientPods(agents, home, BY_PATH, READY_S)
    written = clients.run("path-writer", *put(7, 8))
    assert clients.run("path-reader", *get(7, 8)) == written
    agents.kubectl("delete", "memkvpool", "-n", home, BY_PATH, f"--timeout={READY_S}s")
