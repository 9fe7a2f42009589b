"""Node groups of other kinds than a file, in real pods: memory alone, whole cores, huge pages.

In order: each test begins where the last one ended.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-groups"
LABEL = "memkv.io/test-group"
READY_S = 180
PAGES = "hugepages-2Mi"
LINUX_NEEDED = (6, 6)  # direct I/O on tmpfs


@pytest.fixture(scope="module")
def home(release: LiveCluster, pool_namespace: Callable[[str], str]) -> str:
    """A namespace for the pool."""
    return pool_namespace("memkv-groups")


@pytest.fixture(scope="module")
def nodes(release: LiveCluster) -> Iterator[tuple[str, str]]:
    """Nodes for the groups in memory and with whole cores; the same one where there is one."""
    found = release.nodes()
    chosen = found[0], found[-1]
    for node, group in zip(chosen, ("memory", "cores"), strict=True):
        release.kubectl("label", "node", node, f"{LABEL}-{group}=yes", "--overwrite")
    yield chosen
    for node in set(chosen):
        release.kubectl("label", "node", node, *(f"{LABEL}-{g}-" for g in ("memory", "cores")))


def pool(groups: list[Object]) -> Object:
    made = read_yaml(ROOT / "deploy/samples/pool.yaml")
    child(made, "spec")["nodeGroups"] = groups
    made["metadata"] = {"name": POOL}
    return made


def group(name: str, **changes: object) -> Object:
    selector = {f"{LABEL}-{name}": "yes"}
    return {"name": name, "nodeSelector": selector, "memory": {"size": "512Mi"}, **changes}


IN_MEMORY = group("memory")
WHOLE_CORES = group(
    "cores",
    storage={"file": {"hostPath": "/var/lib/memkv/pool-groups", "size": "1Gi"}},
    resources={"requests": {"cpu": "1"}},
)


def pod_of(cluster: LiveCluster, home: str, name: str) -> Object:
    """Return the data-plane pod of a group."""
    chosen = f"memkv.io/pool={POOL},memkv.io/node-group={name}"
    (pod,) = cluster.list(home, "pod", "-l", chosen)
    return pod


def kernel_of(cluster: LiveCluster, node: str) -> tuple[int, ...]:
    info = child(cluster.get("", "node", node), "status", "nodeInfo")
    return tuple(int(part) for part in str(info["kernelVersion"]).split(".")[:2])


def test_groups_in_memory_and_with_whole_cores_become_ready(
    release: LiveCluster, home: str, nodes: tuple[str, str]
) -> None:
    if nodes[0] == nodes[1]:
        pytest.skip("this cluster has one node: two groups need two")
    if kernel_of(release, nodes[0]) < LINUX_NEEDED:
        pytest.skip("the first node's kernel is older than 6.6: no direct I/O on tmpfs")
    begun = time.monotonic()
    release.apply(home, pool([IN_MEMORY, WHOLE_CORES]))
    release.wait(home, f"memkvpool/{POOL}", "jsonpath={.status.readyNodes}=2", READY_S)
    release.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    print(
        f"groups in memory and with whole cores Ready {time.monotonic() - begun:.1f} s after apply"
    )


def test_whole_cores_make_the_pod_guaranteed(
    release: LiveCluster, home: str, nodes: tuple[str, str]
) -> None:
    pod = pod_of(release, home, "cores")
    (container,) = objects(child(pod, "spec"), "containers")
    requests, limits = (child(container, "resources", kind) for kind in ("requests", "limits"))
    assert requests == limits
    assert requests["cpu"] == "1"
    assert child(pod, "status")["qosClass"] == "Guaranteed"
    # The other group asks for a part of a core and has no limit.
    assert child(pod_of(release, home, "memory"), "status")["qosClass"] == "Burstable"


def test_blocks_are_stored_in_both_groups(release: LiveCluster, home: str) -> None:
    clients = ClientPods(release, home, POOL, READY_S)
    numbers = range(12)  # enough that each of two nodes owns some
    written = clients.run("writer", *put(*numbers))
    assert clients.run("reader", *get(*numbers)) == written
    for one in release.list(home, "memkvnode", "-l", f"memkv.io/pool={POOL}"):
        (worker,) = objects(child(one, "status"), "workers")
        assert worker["phase"] == "Ready"
        print(f"{child(one, 'spec')['nodeName']}: {worker['capacityBytes']} bytes")


def test_missing_huge_pages_are_said(
    release: LiveCluster, home: str, nodes: tuple[str, str]
) -> None:
    """Or, where the node has some, used."""
    paged = {**WHOLE_CORES, "memory": {"size": "64Mi", "hugePages": "2Mi"}}
    (there,) = (
        child(node, "status", "allocatable").get(PAGES, "0")
        for node in release.list("", "node")
        if child(node, "metadata")["name"] == nodes[1]
    )
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={READY_S}s")
    release.apply(home, pool([paged]))
    if there == "0":
        reason = 'jsonpath={.status.conditions[?(@.type=="ConfigValid")].reason}'
        release.wait(home, f"memkvpool/{POOL}", f"{reason}=InsufficientHugepages", READY_S)
        reason = reason.replace("ConfigValid", "NodesReady")
        release.wait(home, f"memkvpool/{POOL}", f"{reason}=InsufficientHugepages", READY_S)
        print("huge pages were not used: the node's kubelet knows of none, and the pool says so")
        return
    release.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    clients = ClientPods(release, home, POOL, READY_S)
    written = clients.run("paged-writer", *put(0, 1))
    assert clients.run("paged-reader", *get(0, 1)) == written
    print(f"a worker has its blocks in {PAGES} of {there}")


def test_pool_is_deleted(release: LiveCluster, home: str) -> None:
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={READY_S}s")
