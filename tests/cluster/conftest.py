"""MemKV on a real cluster: installed by Helm, used by pods.

`make test-cluster` starts a cluster on this machine, or takes the one of KUBECONFIG:

    KUBECONFIG               the cluster
    MEMKV_TEST_IMAGE         an image of this tree that its nodes have or can pull
    MEMKV_TEST_LOCAL_NODES   1: it is the cluster of deploy/dev/cluster, whose nodes may be killed
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv_operator.testing.live_cluster import ROOT, LiveCluster

SYSTEM = "memkv-system"
POOLS = "memkv-pools"
INSTALL_S = 300
WAIT = ("--wait", f"--timeout={INSTALL_S}s")


@pytest.fixture(scope="session")
def cluster() -> LiveCluster:
    """The cluster under test; skips where `make test-cluster` did not say which one."""
    kubeconfig, image = os.environ.get("KUBECONFIG"), os.environ.get("MEMKV_TEST_IMAGE")
    if not kubeconfig or not image:
        pytest.skip("no cluster: KUBECONFIG and MEMKV_TEST_IMAGE are not set (make test-cluster)")
    for command in ("kubectl", "helm"):
        if shutil.which(command) is None:
            pytest.skip(f"no {command} on PATH")
    return LiveCluster(Path(kubeconfig), image)


def namespace(name: str, level: str) -> dict[str, object]:
    """A namespace that admits pods of a Pod Security level."""
    labels = {"pod-security.kubernetes.io/enforce": level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@pytest.fixture(scope="session")
def release(cluster: LiveCluster) -> Iterator[LiveCluster]:
    """The operator, installed by Helm into a namespace that admits only restricted pods."""
    registry, _, rest = cluster.image.partition("/")
    repository, _, tag = rest.rpartition(":")
    cluster.apply("default", namespace(SYSTEM, "restricted"))
    images = (f"image.registry={registry}", f"image.repository={repository}", f"image.tag={tag}")
    values = [word for value in images for word in ("--set", value)]
    chart = str(ROOT / "charts/memkv")
    done = cluster.try_to("helm", "install", "memkv", chart, "-n", SYSTEM, *values, *WAIT)
    assert done.returncode == 0, f"{done.stderr}\n{cluster.trouble(SYSTEM)}"
    yield cluster
    cluster.run("helm", "uninstall", "memkv", "-n", SYSTEM, *WAIT)
    cluster.kubectl("delete", "namespace", SYSTEM, f"--timeout={INSTALL_S}s")


@pytest.fixture(scope="module")
def home(release: LiveCluster) -> Iterator[str]:
    """A namespace for pools, whose pods lock memory and use paths of their nodes."""
    release.apply("default", namespace(POOLS, "privileged"))
    yield POOLS
    wait = f"--timeout={INSTALL_S}s"
    release.kubectl("delete", "namespace", POOLS, "--ignore-not-found", wait)
