"""The life of a pool on a real cluster, in order: each test begins where the last one ended."""

import json
import os
import subprocess
import time
from collections.abc import Callable

import pytest

from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-a"
LABEL = "memkv.io/node=true"
READY_S = 180  # 60 s on a machine with time for it; three times that fails
DELETED_S = 180  # 60 s as well, and three times that fails
DOOMED = "node2"  # of the local cluster; its first node has the cluster's DNS
LOST_S = 35  # nodeLostGraceSeconds and 5; three times that fails
LEADERS_MAX = 6  # that are ended until one leads from the node that will die
BAD_TAG = "there-is-no-such-image"


def sample() -> Object:
    """The pool that the manual begins with."""
    pool = read_yaml(ROOT / "deploy/samples/pool.yaml")
    assert child(pool, "metadata")["name"] == POOL
    return pool


@pytest.fixture(scope="module")
def home(release: LiveCluster, pool_namespace: Callable[[str], str]) -> str:
    """A namespace for the pool."""
    return pool_namespace("memkv-pools")


@pytest.fixture
def clients(release: LiveCluster, home: str) -> ClientPods:
    """Pods with nothing but the pool's ConfigMap."""
    return ClientPods(release, home, POOL, READY_S)


def wait_for_pool(cluster: LiveCluster, home: str, condition: str) -> None:
    cluster.wait(home, f"memkvpool/{POOL}", condition, READY_S)


def test_pool_becomes_ready(release: LiveCluster, home: str) -> None:
    release.kubectl("label", "node", release.nodes()[0], LABEL, "--overwrite")
    begun = time.monotonic()
    release.apply(home, sample())
    wait_for_pool(release, home, "condition=Ready")
    print(f"pool Ready {time.monotonic() - begun:.1f} s after apply")


def test_pods_with_the_config_map_alone_share_blocks(clients: ClientPods) -> None:
    written = clients.run("writer", *put(0, 1, 2, 3))
    assert len(set(written)) == 4
    assert clients.run("reader", *get(0, 1, 2, 3)) == written


def test_pool_grows_by_a_label(release: LiveCluster, home: str, clients: ClientPods) -> None:
    nodes = release.nodes()
    if len(nodes) < 2:
        pytest.skip("this cluster has one node")
    release.kubectl("label", "node", nodes[1], LABEL, "--overwrite")
    wait_for_pool(release, home, "jsonpath={.status.readyNodes}=2")
    wait_for_pool(release, home, "condition=Ready")
    # What moves is still read from where it was.
    assert len(clients.run("after-growth", *get(0, 1, 2, 3))) == 4


def memkv_node(cluster: LiveCluster, home: str, node: str) -> Object:
    """Return what the pool says of a node."""
    (found,) = (
        one for one in cluster.list(home, "memkvnode") if child(one, "spec")["nodeName"] == node
    )
    return found


def want(cluster: LiveCluster, home: str, kind: str, name: str, spec: Object) -> None:
    """Change an object's spec as a person would."""
    patch = json.dumps({"spec": spec})
    cluster.kubectl("patch", "-n", home, kind, name, "--type=merge", "-p", patch)


def test_drained_node_owns_nothing_and_comes_back(
    release: LiveCluster, home: str, clients: ClientPods
) -> None:
    if len(release.nodes()) < 2:
        pytest.skip("this cluster has one node: its slots have nowhere to go")
    name = str(child(memkv_node(release, home, release.nodes()[1]), "metadata")["name"])
    begun = time.monotonic()
    want(release, home, "memkvnode", name, {"state": "Draining"})
    release.wait(home, f"memkvnode/{name}", "condition=Drained", READY_S)
    print(f"node drained {time.monotonic() - begun:.1f} s after its state was set")
    assert len(clients.run("while-drained", *get(0, 1, 2, 3))) == 4
    want(release, home, "memkvnode", name, {"state": "Cordoned"})
    release.wait(home, f"memkvnode/{name}", "condition=Drained=false", READY_S)
    want(release, home, "memkvnode", name, {"state": "Active"})
    wait_for_pool(release, home, "condition=Rebalanced")
    wait_for_pool(release, home, "condition=Ready")
    assert len(clients.run("after-drain", *get(0, 1, 2, 3))) == 4


def data_plane_pods(cluster: LiveCluster, home: str) -> dict[str, Object]:
    """Return the pool's data-plane pods by UID."""
    selector = f"memkv.io/pool={POOL},app.kubernetes.io/component=node"
    pods = cluster.list(home, "pod", "-l", selector)
    return {str(child(pod, "metadata")["uid"]): pod for pod in pods}


def image_tags(cluster: LiveCluster, home: str) -> set[str]:
    """Return the tags that the pool's DaemonSets ask for."""
    return {
        str(container["image"]).rpartition(":")[2]
        for one in cluster.list(home, "daemonset", "-l", f"memkv.io/pool={POOL}")
        for container in objects(child(one, "spec", "template", "spec"), "containers")
    }


def test_paused_pool_is_not_updated(release: LiveCluster, home: str) -> None:
    before = data_plane_pods(release, home)
    image = {"tag": BAD_TAG, "pullPolicy": "Never"}
    want(release, home, "memkvpool", POOL, {"paused": True, "image": image})
    generation = child(release.get(home, "memkvpool", POOL), "metadata")["generation"]
    # Both at once: the operator has seen the new image when it says that the pool is paused.
    wait_for_pool(release, home, f"jsonpath={{.status.observedGeneration}}={generation}")
    wait_for_pool(release, home, "condition=Paused")
    assert BAD_TAG not in image_tags(release, home)
    assert data_plane_pods(release, home).keys() == before.keys()


def test_bad_image_stops_at_the_canary_and_is_rolled_back(
    release: LiveCluster, home: str, clients: ClientPods
) -> None:
    before = data_plane_pods(release, home)
    begun = time.monotonic()
    want(release, home, "memkvpool", POOL, {"paused": False})
    # Until then the conditions are of the paused pool, whose update is paused as well.
    generation = child(release.get(home, "memkvpool", POOL), "metadata")["generation"]
    wait_for_pool(release, home, f"jsonpath={{.status.observedGeneration}}={generation}")
    reason = 'jsonpath={.status.conditions[?(@.type=="UpToDate")].reason}=UpdatePaused'
    wait_for_pool(release, home, reason)
    print(f"update stopped {time.monotonic() - begun:.1f} s after it began")
    assert image_tags(release, home) == {BAD_TAG}
    # One was tried, the others serve as before.
    assert len(before.keys() - data_plane_pods(release, home).keys()) == 1
    if len(before) > 1:
        assert clients.run("while-stopped", *put(20), *get(20))
    begun = time.monotonic()
    want(release, home, "memkvpool", POOL, {"image": None})
    wait_for_pool(release, home, "condition=UpToDate")
    wait_for_pool(release, home, "condition=Ready")
    print(f"rolled back after {time.monotonic() - begun:.1f} s")
    assert len(before.keys() - data_plane_pods(release, home).keys()) == 1
    assert BAD_TAG not in image_tags(release, home)
    assert len(clients.run("after-rollback", *get(0, 1, 2, 3))) == 4


def leader(cluster: LiveCluster, system: str) -> tuple[str, str]:
    """Return the operator's pod that leads, and its node; nothing while none does."""
    lease = child(cluster.get(system, "lease", "memkv-operator"), "spec")
    name = str(lease.get("holderIdentity", "")).partition("_")[0]
    pods = cluster.list(system, "pod", "-l", "app.kubernetes.io/component=operator")
    for pod in pods:
        if child(pod, "metadata")["name"] == name:
            return name, str(child(pod, "spec")["nodeName"])
    return "", ""


def lead_from(cluster: LiveCluster, system: str, node: str) -> None:
    """End leaders until one leads from a node, and another one stands by."""
    for _ in range(LEADERS_MAX):
        cluster.wait(system, "deployment/memkv-operator", "jsonpath={.status.readyReplicas}=2",
                     READY_S)  # fmt: skip
        name, where = leader(cluster, system)
        if where == node:
            return
        if name:
            cluster.kubectl("delete", "pod", "-n", system, name)
    pytest.fail(f"no operator leads from {node}\n{cluster.trouble(system)}")


def test_node_that_dies_with_the_leader_leaves_the_map(
    release: LiveCluster, home: str, system: str, clients: ClientPods
) -> None:
    if os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":
        pytest.skip("MEMKV_TEST_LOCAL_NODES is not 1: nodes of other clusters are not killed")
    lead_from(release, system, DOOMED)
    begun = time.monotonic()
    kill = [str(ROOT / "deploy/dev/cluster/node.sh"), "kill", DOOMED.removeprefix("node")]
    subprocess.run(kill, check=True, timeout=120)
    killed_s = time.monotonic() - begun
    wait_for_pool(release, home, "jsonpath={.status.lostNodes}=1")
    lost_s = time.monotonic() - begun
    print(f"dead node out of the map after {lost_s:.1f} s, the leader died with it (its cable was "
          f"cut first, its last process ended after {killed_s:.1f} s)")  # fmt: skip
    assert lost_s < 3 * LOST_S
    # Its Node counts as Ready for longer than the map: pods would still be put there.
    release.kubectl("cordon", DOOMED)
    found = clients.run("after-death", *put(10, 11, 12), *get(10, 11, 12))
    assert found[:3] == found[3:]


def test_pool_is_deleted_though_its_node_is_dead(release: LiveCluster, home: str) -> None:
    begun = time.monotonic()
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={DELETED_S}s")
    print(f"pool deleted after {time.monotonic() - begun:.1f} s")
    for kind in ("daemonset", "deployment", "service", "memkvshardmap"):
        for item in release.list(home, kind):
            name = child(item, "metadata")["name"]
            release.wait(home, f"{kind}/{name}", "delete", DELETED_S)


def test_namespace_ends_when_the_dead_node_is_given_up(release: LiveCluster, home: str) -> None:
    """Only a node's kubelet may say that its pods ended; who deletes the Node says so for it."""
    for node in release.list("default", "nodes"):
        meta, status = child(node, "metadata"), child(node, "status")
        ready = [c["status"] for c in objects(status, "conditions") if c["type"] == "Ready"]
        if ready != ["True"]:
            release.kubectl("delete", "node", str(meta["name"]))
    begun = time.monotonic()
    release.kubectl("delete", "namespace", home, f"--timeout={DELETED_S}s")
    print(f"namespace gone after {time.monotonic() - begun:.1f} s")
