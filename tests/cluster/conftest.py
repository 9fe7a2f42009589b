"""MemKV on a real cluster: installed by Helm, used by pods.

`make test-cluster` starts a cluster on this machine, or takes the one of KUBECONFIG, which must
have no MemKV. It makes namespaces and CRDs, labels nodes and writes below /var/lib/memkv on them,
and takes all of it back:

    KUBECONFIG               the cluster
    MEMKV_TEST_IMAGE         an image of this tree that its nodes have or can pull
    MEMKV_TEST_NEXT_IMAGE    another name of such an image, to upgrade to
    MEMKV_TEST_LOCAL_NODES   1: it is the cluster of deploy/dev/cluster, whose nodes may be killed
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv_operator.testing.crds import Object
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

SYSTEM = "memkv-system"
CHART = str(ROOT / "charts/memkv")
CRD_NAMES = ("memkvpools.memkv.io", "memkvnodes.memkv.io", "memkvshardmaps.memkv.io")
NODE_LABEL = "memkv.io/node"
NODE_FILES = "/var/lib/memkv"
POOL_FILES = ("pool-a", "pool-secure", "pool-groups", "pool-nic")  # folders that tests' pools name
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


def install_values(image: str) -> list[str]:
    """The values of the release for an image."""
    registry, _, rest = image.partition("/")
    repository, _, tag = rest.rpartition(":")
    values = (f"image.registry={registry}", f"image.repository={repository}", f"image.tag={tag}")
    return [word for value in values for word in ("--set", value)]


def remove_files(cluster: LiveCluster) -> None:
    """Remove what pools of the tests left on the nodes."""
    sweepers = "memkv-sweepers"
    cluster.apply("default", namespace(sweepers, "privileged"))
    for node in cluster.nodes():
        container: Object = {
            "name": "sweeper", "image": cluster.image, "securityContext": {"runAsUser": 0},
            "command": ["rm", "-rf", *(f"/swept/{name}" for name in POOL_FILES)],
            "volumeMounts": [{"name": "swept", "mountPath": "/swept"}],
        }  # fmt: skip
        path: Object = {"path": NODE_FILES, "type": "DirectoryOrCreate"}
        spec: Object = {
            "nodeName": node, "restartPolicy": "Never", "containers": [container],
            "volumes": [{"name": "swept", "hostPath": path}],
        }  # fmt: skip
        meta: Object = {"name": f"sweeper-{node}"}
        pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        cluster.apply(sweepers, pod)
    for node in cluster.nodes():
        done = "jsonpath={.status.phase}=Succeeded"
        cluster.wait(sweepers, f"pod/sweeper-{node}", done, INSTALL_S)
    cluster.kubectl("delete", "namespace", sweepers, f"--timeout={INSTALL_S}s")


@pytest.fixture(scope="session")
def system() -> str:
    """The namespace of the release."""
    return SYSTEM


@pytest.fixture(scope="session")
def release(cluster: LiveCluster) -> Iterator[LiveCluster]:
    """The operator, installed by Helm into a namespace that admits only restricted pods."""
    crds = ("delete", "customresourcedefinitions", "--ignore-not-found", *CRD_NAMES)
    found = [
        name for name in CRD_NAMES
        if cluster.try_to("kubectl", "get", "customresourcedefinition", name).returncode == 0
    ]  # fmt: skip
    assert not found, f"the cluster has a MemKV, or what one left: kubectl {' '.join(crds)}"
    cluster.apply("default", namespace(SYSTEM, "restricted"))
    words = install_values(cluster.image)
    done = cluster.try_to("helm", "install", "memkv", CHART, "-n", SYSTEM, *words, *WAIT)
    assert done.returncode == 0, f"{done.stderr}\n{cluster.trouble(SYSTEM)}"
    yield cluster
    cluster.try_to("helm", "uninstall", "memkv", "-n", SYSTEM, "--no-hooks", *WAIT)
    cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", f"--timeout={INSTALL_S}s")
    cluster.kubectl(*crds, f"--timeout={INSTALL_S}s")
    cluster.kubectl("label", "nodes", "--all", f"{NODE_LABEL}-")


@pytest.fixture(scope="session")
def upgrade(release: LiveCluster) -> Callable[[str], None]:
    """Give the release another image."""

    def upgrade_to(image: str) -> None:
        words = install_values(image)
        done = release.try_to("helm", "upgrade", "memkv", CHART, "-n", SYSTEM, *words, *WAIT)
        assert done.returncode == 0, f"{done.stderr}\n{release.trouble(SYSTEM)}"

    return upgrade_to


@pytest.fixture(scope="session")
def uninstall(release: LiveCluster) -> Callable[[], tuple[int, str]]:
    """Try to uninstall the release; return Helm's exit status, and what it and its hook said."""

    def uninstall_release() -> tuple[int, str]:
        done = release.try_to("helm", "uninstall", "memkv", "-n", SYSTEM, *WAIT)
        return done.returncode, done.stdout + done.stderr + release.trouble(SYSTEM)

    return uninstall_release


@pytest.fixture(scope="session")
def pool_namespace(release: LiveCluster) -> Iterator[Callable[[str], str]]:
    """Make namespaces for pools, whose pods lock memory and use paths of their nodes."""
    made: list[str] = []

    def make(name: str) -> str:
        release.apply("default", namespace(name, "privileged"))
        made.append(name)
        return name

    yield make
    for name in made:
        wait = f"--timeout={INSTALL_S}s"
        release.kubectl("delete", "memkvpools", "-n", name, "--all", "--ignore-not-found", wait)
    if made and os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":  # those are thrown away
        remove_files(release)
    for name in made:
        release.kubectl("delete", "namespace", name, "--ignore-not-found", wait)


@pytest.fixture(scope="module")
def restricted_namespace(cluster: LiveCluster) -> Iterator[Callable[[str], str]]:
    """Make namespaces that admit only restricted pods."""
    made: list[str] = []

    def make(name: str) -> str:
        cluster.apply("default", namespace(name, "restricted"))
        made.append(name)
        return name

    yield make
    for name in made:
        cluster.kubectl("delete", "namespace", name, f"--timeout={INSTALL_S}s")


@pytest.fixture(scope="module")
def loop_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], str]]:
    """Make disks of this machine, and so of its nodes, of some bytes, that hold a file system."""
    if os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":
        pytest.skip("MEMKV_TEST_LOCAL_NODES is not 1: other machines get no loop device from here")
    made: list[str] = []

    def make(size_bytes: int) -> str:
        file = tmp_path_factory.mktemp("disk") / "disk.img"
        with file.open("wb") as disk:
            disk.truncate(size_bytes)
            disk.seek(0x438)
            disk.write(b"\x53\xef")  # ext4, as the agent sees it
        words = ["losetup", "--find", "--show", str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "--detach", device], check=False)
