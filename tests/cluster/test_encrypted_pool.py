"""A pool with certificates, tokens and payload under TLS, and its upgrade, on a real cluster.

In order: each test begins where the last one ended.
"""

import os
import time
from collections.abc import Callable

import pytest

from memkv_operator.testing.client_pods import ClientPods, get, put
from memkv_operator.testing.crds import Object, child, objects, read_all_yaml, read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

POOL = "pool-secure"
LABEL = "memkv.io/node=true"
# What is promised on a machine with time for it; three times that fails.
READY_S = 3 * 60
DELETED_S = 3 * 60


@pytest.fixture(scope="module")
def home(release: LiveCluster, pool_namespace: Callable[[str], str]) -> str:
    """A namespace for the pool."""
    return pool_namespace("memkv-secure")


@pytest.fixture
def clients(release: LiveCluster, home: str) -> ClientPods:
    """Pods of the ServiceAccount that the sample gives the right to connect."""
    return ClientPods(release, home, POOL, READY_S, account="engine")


def pool_pods(cluster: LiveCluster, home: str) -> list[Object]:
    selector = f"memkv.io/pool={POOL},app.kubernetes.io/component=node"
    return list(cluster.list(home, "pod", "-l", selector))


def images(pods: list[Object]) -> set[str]:
    return {str(c["image"]) for pod in pods for c in objects(child(pod, "spec"), "containers")}


def test_pool_becomes_ready(release: LiveCluster, home: str) -> None:
    for node in release.nodes():
        release.kubectl("label", "node", node, LABEL, "--overwrite")
    begun = time.monotonic()
    release.apply(home, read_yaml(ROOT / "deploy/samples/secure.yaml"))
    release.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    print(f"pool with certificates Ready {time.monotonic() - begun:.1f} s after apply")


def test_data_plane_pods_hold_no_token_of_the_api_server(release: LiveCluster, home: str) -> None:
    pods = pool_pods(release, home)
    assert pods
    for pod in pods:
        assert child(pod, "spec")["automountServiceAccountToken"] is False
        for volume in objects(child(pod, "spec"), "volumes"):
            for source in objects(child(volume, "projected"), "sources"):
                token = child(source, "serviceAccountToken")
                assert not token or token["audience"] == "memkv-metadata"


def test_keys_in_pods_are_for_their_process_alone(release: LiveCluster, home: str) -> None:
    """As kubelet writes them, and each process has read its own, or the pool were not Ready."""
    look = ("stat", "-L", "-c", "%a %u %g", "/etc/memkv/identity/tls.key")
    for component, expected in (("node", "400 0 0"), ("metadata", "440 0 65532")):
        selector = f"memkv.io/pool={POOL},app.kubernetes.io/component={component}"
        pods = release.list(home, "pod", "-l", selector)
        assert pods
        for pod in pods:
            name = str(child(pod, "metadata")["name"])
            assert release.kubectl("exec", "-n", home, name, "--", *look).strip() == expected


def test_sample_client_puts_and_gets(release: LiveCluster, home: str) -> None:
    for manifest in read_all_yaml(ROOT / "deploy/samples/clients/engine.yaml"):
        if manifest["kind"] == "Job":
            (container,) = objects(child(manifest, "spec", "template", "spec"), "containers")
            container["image"] = release.image
        release.apply(home, manifest)
    release.wait(home, "job/first-block", "condition=Complete", READY_S)


def test_pods_of_the_account_share_blocks(clients: ClientPods) -> None:
    written = clients.run("writer", *put(0, 1, 2, 3))
    assert len(set(written)) == 4
    assert clients.run("reader", *get(0, 1, 2, 3)) == written


def test_account_without_the_right_is_refused(release: LiveCluster, home: str) -> None:
    stranger: Object = {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger"}
    }  # fmt: skip
    release.apply(home, stranger)
    pods = ClientPods(release, home, POOL, READY_S, account="stranger")
    succeeded, logs = pods.outcome("stranger", "memkv get block-0 -o /tmp/found 2>&1")
    assert not succeeded
    assert "memkvpools/connect" in logs, logs
    assert "refuses this client" in logs, logs
    pods = ClientPods(release, home, POOL, READY_S)
    succeeded, logs = pods.outcome("nobody", "memkv get block-0 -o /tmp/found 2>&1")
    assert not succeeded
    assert "token" in logs, logs


def test_upgrade_keeps_the_blocks(
    release: LiveCluster, home: str, clients: ClientPods, upgrade: Callable[[str], None]
) -> None:
    """A new image for the release: the operator is replaced, then each node of the pool."""
    image = os.environ.get("MEMKV_TEST_NEXT_IMAGE", "")
    if not image:
        pytest.skip("MEMKV_TEST_NEXT_IMAGE is not set: it names the image to upgrade to")
    before = pool_pods(release, home)
    written = clients.run("reader-before", *get(0, 1, 2, 3))
    begun = time.monotonic()
    upgrade(image)
    try:
        for pod in before:
            # DaemonSets with OnDelete have no rollout that could be waited for.
            release.wait(home, f"pod/{child(pod, 'metadata')['name']}", "delete", READY_S)
        release.wait(home, f"memkvpool/{POOL}", "condition=UpToDate", READY_S)
        release.wait(home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
        print(f"{len(before)} nodes upgraded {time.monotonic() - begun:.1f} s after helm upgrade")
        assert images(pool_pods(release, home)) == {image}
        assert clients.run("reader-after", *get(0, 1, 2, 3)) == written
    finally:
        upgrade(release.image)


def test_pool_and_its_namespace_end(release: LiveCluster, home: str) -> None:
    begun = time.monotonic()
    release.kubectl("delete", "memkvpool", "-n", home, POOL, f"--timeout={DELETED_S}s")
    release.kubectl("delete", "namespace", home, f"--timeout={DELETED_S}s")
    print(f"pool and namespace gone after {time.monotonic() - begun:.1f} s")
    for node in release.nodes():
        release.kubectl("label", "node", node, f"{LABEL.partition('=')[0]}-")
