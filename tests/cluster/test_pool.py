"""The life of a pool on a real cluster, in order: each test begins where the last one ended."""

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


def test_dead_node_leaves_the_map(release: LiveCluster, home: str, clients: ClientPods) -> None:
    if os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":
        pytest.skip("MEMKV_TEST_LOCAL_NODES is not 1: nodes of other clusters are not killed")
    begun = time.monotonic()
    subprocess.run([ROOT / "deploy/dev/cluster/node.sh", "kill", "2"], check=True, timeout=120)
    wait_for_pool(release, home, "jsonpath={.status.lostNodes}=1")
    print(f"dead node out of the map after {time.monotonic() - begun:.1f} s")
    found = clients.run("after-death", *put(10, 11, 12), *get(10, 11, 12))
    assert found[:3] == found[3:]


def test_pool_is_deleted_though_its_node_is_dead(release: LiveCluster, home: str) -> None:
    begun = time.monotonic()
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={READY_S}s")
    print(f"pool deleted after {time.monotonic() - begun:.1f} s")
    for kind in ("daemonset", "deployment", "service", "memkvshardmap"):
        for item in release.list(home, kind):
            name = child(item, "metadata")["name"]
            release.wait(home, f"{kind}/{name}", "delete", READY_S)


def test_namespace_ends_when_the_dead_node_is_given_up(release: LiveCluster, home: str) -> None:
    """Only a node's kubelet may say that its pods ended; who deletes the Node says so for it."""
    for node in release.list("default", "nodes"):
        meta, status = child(node, "metadata"), child(node, "status")
        ready = [c["status"] for c in objects(status, "conditions") if c["type"] == "Ready"]
        if ready != ["True"]:
            release.kubectl("delete", "node", str(meta["name"]))
    begun = time.monotonic()
    release.kubectl("delete", "namespace", home, f"--timeout={READY_S}s")
    print(f"namespace gone after {time.monotonic() - begun:.1f} s")
