"""RDMA resources on a real kubelet: a device plugin that stands for a NIC's, and a pool that asks
for what it advertises.

In order: each test begins where the last one ended.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-nic"
RESOURCE = "rdma/hca_shared_devices_a"
COUNT = 4
LABEL = "memkv.io/test-nic"
READY_S = 180
PLUGINS = "/var/lib/kubelet/device-plugins"
DOUBLE = ROOT / "dataplane/memkv/testing/shared_devices.py"
PROGRAM = "/program"


@pytest.fixture(scope="module")
def home(release: LiveCluster, pool_namespace: Callable[[str], str]) -> Iterator[str]:
    """A namespace for the pool and the plugin, and labels on all nodes."""
    for node in release.nodes():
        release.kubectl("label", "node", node, f"{LABEL}=yes", "--overwrite")
    yield pool_namespace("memkv-nic")
    for node in release.nodes():
        release.kubectl("label", "node", node, f"{LABEL}-")


def pool() -> Object:
    made = read_yaml(ROOT / "deploy/samples/pool.yaml")
    (group,) = objects(child(made, "spec"), "nodeGroups")
    group["nodeSelector"] = {LABEL: "yes"}
    group["storage"] = {"file": {"hostPath": "/var/lib/memkv/pool-nic", "size": "1Gi"}}
    child(made, "spec")["network"] = {
        "mode": "HostNetwork", "payloadEncryption": "None",
        "rdma": {"mode": "Preferred", "resources": [{"name": RESOURCE}]},
    }  # fmt: skip
    made["metadata"] = {"name": POOL}
    return made


def plugin(image: str, node: str) -> Object:
    """Return the pod of the plugin, on one node."""
    container: Object = {
        "name": "plugin", "image": image,
        "command": ["python3", f"{PROGRAM}/{DOUBLE.name}", RESOURCE, f"--count={COUNT}"],
        "securityContext": {"runAsUser": 0, "privileged": True},
        "volumeMounts": [
            {"name": "plugins", "mountPath": PLUGINS}, {"name": "program", "mountPath": PROGRAM},
        ],
    }  # fmt: skip
    spec: Object = {
        "nodeName": node, "automountServiceAccountToken": False, "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "volumes": [
            {"name": "plugins", "hostPath": {"path": PLUGINS}},
            {"name": "program", "configMap": {"name": "plugin"}},
        ],
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plugin"}, "spec": spec}


def program() -> Object:
    """Return the double's own text, which images do not have."""
    data = {DOUBLE.name: DOUBLE.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plugin"}, "data": data}


def reason_of(type_: str) -> str:
    return f'jsonpath={{.status.conditions[?(@.type=="{type_}")].reason}}'


def message_of(cluster: LiveCluster, home: str, type_: str) -> str:
    status = child(cluster.get(home, "memkvpool", POOL), "status")
    (found,) = (one for one in objects(status, "conditions") if one["type"] == type_)
    return str(found["message"])


def pods_by_node(cluster: LiveCluster, home: str) -> dict[str, Object]:
    """Return the data-plane pods by the node that they were made for and run on; "": on none."""
    selector = f"memkv.io/pool={POOL},app.kubernetes.io/component=node"
    pods = cluster.list(home, "pod", "-l", selector)
    return {str(child(pod, "spec").get("nodeName", "")): pod for pod in pods}


def test_a_resource_that_nobody_advertises_is_said(release: LiveCluster, home: str) -> None:
    release.apply(home, pool())
    what = f"memkvpool/{POOL}"
    release.wait(home, what, f"{reason_of('ConfigValid')}=ResourceNotAdvertised", READY_S)
    message = message_of(release, home, "ConfigValid")
    assert RESOURCE in message
    assert all(node in message for node in release.nodes())
    release.wait(home, what, f"{reason_of('NodesReady')}=Unschedulable", READY_S)
    assert set(pods_by_node(release, home)) == {""}


def test_the_pod_runs_where_the_resource_is(release: LiveCluster, home: str) -> None:
    *others, node = release.nodes()
    begun = time.monotonic()
    release.apply(home, program(), plugin(release.image, node))
    escaped = RESOURCE.replace(".", r"\.")
    there = rf"jsonpath={{.status.allocatable.{escaped}}}={COUNT}"
    release.wait("default", f"node/{node}", there, READY_S)
    release.wait(home, f"memkvpool/{POOL}", "jsonpath={.status.readyNodes}=1", READY_S)
    print(f"pool serves from the node with {RESOURCE} {time.monotonic() - begun:.1f} s after its "
          "plugin was made")  # fmt: skip
    pods = pods_by_node(release, home)
    assert set(pods) == ({node, ""} if others else {node})
    (container,) = objects(child(pods[node], "spec"), "containers")
    for kind in ("requests", "limits"):
        assert child(container, "resources", kind)[RESOURCE] == "1"
    if others:
        message = message_of(release, home, "ConfigValid")
        assert node not in message
        assert all(other in message for other in others)


def test_the_pool_is_ready_over_tcp_and_says_so(release: LiveCluster, home: str) -> None:
    *others, node = release.nodes()
    for other in others:
        release.kubectl("label", "node", other, f"{LABEL}-")
    release.wait(home, f"memkvpool/{POOL}", "condition=ConfigValid", READY_S)
    release.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    release.wait(home, f"memkvpool/{POOL}", f"{reason_of('RDMAReady')}=FallbackToTCP", READY_S)
    assert node in message_of(release, home, "RDMAReady")
    clients = ClientPods(release, home, POOL, READY_S)
    written = clients.run("writer", *put(0, 1))
    assert clients.run("reader", *get(0, 1)) == written


def test_pool_and_plugin_are_deleted(release: LiveCluster, home: str) -> None:
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={READY_S}s")
    release.kubectl("delete", "pod", "-n", home, "plugin", f"--timeout={READY_S}s")
