"""The life of a pool on a real cluster, in order: each test begins where the last one ended."""

import os
import subprocess
import time
from typing import cast

import pytest
import yaml

from memkv_operator.testing.crds import Object, child, objects
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-a"
LABEL = "memkv.io/node=true"
READY_S = 180  # 60 s on a machine with time for it; three times that fails
USER = 65532
MAKE_BLOCK = (
    "import random, sys; block = random.Random(int(sys.argv[1])).randbytes(2 << 20);"
    " open('/tmp/block', 'wb').write(block)"
)


def sample() -> Object:
    """The pool that the manual begins with."""
    text = (ROOT / "deploy/samples/pool.yaml").read_text(encoding="utf-8")
    pool = cast(Object, yaml.safe_load(text))
    assert child(pool, "metadata")["name"] == POOL
    return pool


def client_job(cluster: LiveCluster, name: str, script: str) -> Object:
    """A pod with nothing but the pool's ConfigMap, as restricted as Kubernetes knows."""
    container: Object = {
        "name": "client", "image": cluster.image, "command": ["sh", "-euc", script],
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "connection", "mountPath": "/etc/memkv"}, {"name": "tmp", "mountPath": "/tmp"}
        ],
    }  # fmt: skip
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [container],
        "volumes": [
            {"name": "connection", "configMap": {"name": f"{POOL}-connection"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }  # fmt: skip
    spec: Object = {"backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def run_client(cluster: LiveCluster, home: str, name: str, *lines: str) -> list[str]:
    """Run `memkv` commands in a client pod; return the sums that it prints."""
    cluster.apply(home, client_job(cluster, name, "\n".join(lines)))
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        # Returns at the first condition: a job has one end or the other.
        cluster.try_to(
            "kubectl", "wait", "-n", home, f"job/{name}", "--for=jsonpath={.status.conditions}",
            f"--timeout={READY_S}s",
        )  # fmt: skip
        status = child(cluster.get(home, "job", name), "status")
        logs = cluster.try_to("kubectl", "logs", "-n", home, f"job/{name}").stdout
        if status.get("succeeded"):
            return [line for line in logs.splitlines() if line.endswith("  -")]
        if status.get("failed"):
            pytest.fail(f"{name} failed:\n{logs}\n{cluster.trouble(home)}")
    pytest.fail(f"{name} did not end in {READY_S} s:\n{cluster.trouble(home)}")


def put(*numbers: int) -> list[str]:
    """Store 2 MiB blocks of different bytes, durably, and print their sums."""
    return [
        f'python3 -c "{MAKE_BLOCK}" {number}; memkv put block-{number} /tmp/block --durable;'
        " sha256sum </tmp/block"
        for number in numbers
    ]


def get(*numbers: int) -> list[str]:
    """Fetch blocks and print their sums."""
    return [f"memkv get block-{number} -o /tmp/found; sha256sum </tmp/found" for number in numbers]


def wait_for_pool(cluster: LiveCluster, home: str, condition: str) -> None:
    cluster.wait(home, f"memkvpool/{POOL}", condition, READY_S)


def test_pool_becomes_ready(release: LiveCluster, home: str) -> None:
    release.kubectl("label", "node", release.nodes()[0], LABEL, "--overwrite")
    begun = time.monotonic()
    release.apply(home, sample())
    wait_for_pool(release, home, "condition=Ready")
    print(f"pool Ready {time.monotonic() - begun:.1f} s after apply")


def test_pods_with_the_config_map_alone_share_blocks(release: LiveCluster, home: str) -> None:
    written = run_client(release, home, "writer", *put(0, 1, 2, 3))
    assert len(set(written)) == 4
    assert run_client(release, home, "reader", *get(0, 1, 2, 3)) == written


def test_pool_grows_by_a_label(release: LiveCluster, home: str) -> None:
    nodes = release.nodes()
    if len(nodes) < 2:
        pytest.skip("this cluster has one node")
    release.kubectl("label", "node", nodes[1], LABEL, "--overwrite")
    wait_for_pool(release, home, "jsonpath={.status.readyNodes}=2")
    wait_for_pool(release, home, "condition=Ready")
    # What moves is still read from where it was.
    assert len(run_client(release, home, "after-growth", *get(0, 1, 2, 3))) == 4


def test_dead_node_leaves_the_map(release: LiveCluster, home: str) -> None:
    if os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":
        pytest.skip("MEMKV_TEST_LOCAL_NODES is not 1: nodes of other clusters are not killed")
    begun = time.monotonic()
    subprocess.run([ROOT / "deploy/dev/cluster/node.sh", "kill", "2"], check=True, timeout=120)
    wait_for_pool(release, home, "jsonpath={.status.lostNodes}=1")
    print(f"dead node out of the map after {time.monotonic() - begun:.1f} s")
    found = run_client(release, home, "after-death", *put(10, 11, 12), *get(10, 11, 12))
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
