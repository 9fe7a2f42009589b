"""A real API server for every test of this folder, and a namespace of its own for each.

    KUBEBUILDER_ASSETS=DIR                        binaries from there (as envtest unpacks them)
    MEMKV_TEST_EXISTING_CLUSTER=1 KUBECONFIG=...  a cluster that runs; nothing is started
    neither                                       what deploy/dev/cluster/build.sh has built

Run it with `make test-apiserver`.
"""

import os
import subprocess
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from memkv.testing.control_plane import ControlPlane, missing_binaries
from memkv_operator.testing.helm import find_helm
from memkv_operator.testing.real_api import RealApi, run_on_a_real_api

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "deploy/dev/cluster/build.sh"
CRDS = sorted((ROOT / "charts/memkv/files/crds").glob("*.yaml"))
OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]


def binaries() -> Path:
    """Return the folder of the control plane's binaries; skip where there are none."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        folder = Path(given)
        hint = "unpack envtest's binaries there"
    else:
        where = subprocess.run([BUILD, "where"], capture_output=True, text=True, check=True)
        folder = Path(where.stdout.strip())
        hint = "run deploy/dev/cluster/build.sh, or set KUBEBUILDER_ASSETS"
    missing = missing_binaries(folder)
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder}: {hint}")
    return folder


def existing() -> Path | None:
    """Return the kubeconfig of a cluster that the user asked to test on."""
    if os.environ.get("MEMKV_TEST_EXISTING_CLUSTER") != "1":
        return None
    path = os.environ.get("KUBECONFIG", "")
    if not path:
        pytest.fail("MEMKV_TEST_EXISTING_CLUSTER=1 needs KUBECONFIG to say which cluster")
    return Path(path)


@pytest.fixture(scope="session")
def plane_binaries() -> Path:
    """The folder of a control plane's binaries; skips where there are none."""
    return binaries()


@pytest.fixture(scope="session")
def helm() -> str:
    """The path of Helm; skips where there is none."""
    path = find_helm()
    if path is None:
        pytest.skip("no helm: install it, or run deploy/dev/cluster/build.sh")
    return path


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The server that these tests started; skips on an existing cluster."""
    if existing():
        pytest.skip("this test needs a control plane of its own")
    with ControlPlane(binaries(), tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest) -> Path:
    """A kubeconfig file with the rights of a cluster administrator."""
    found = existing()
    if found is not None:
        return found
    plane: ControlPlane = request.getfixturevalue("control_plane")
    return plane.kubeconfig


@pytest.fixture(scope="session")
def controllers(request: pytest.FixtureRequest) -> None:
    """Kubernetes' own controllers run: owners are collected, namespaces end."""
    if existing() is None:
        plane: ControlPlane = request.getfixturevalue("control_plane")
        if not (plane.binaries / "kube-controller-manager").exists():
            pytest.skip(f"no kube-controller-manager in {plane.binaries}")
        plane.start_controllers()


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> list[str]:
    """The command line that speaks to the server: `[*kubectl, "get", ...]`."""
    own = [] if existing() else [str(binaries() / "kubectl")]
    return [*(own or ["kubectl"]), f"--kubeconfig={kubeconfig}"]


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """The Python client, as cluster administrator."""
    file = str(kubeconfig)
    made = config.new_client_from_config(file)  # type: ignore[no-untyped-call]  # theirs is untyped
    with made:
        yield made


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace of this test alone, deleted (not waited for) at its end."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    yield name
    core.delete_namespace(name)


@pytest.fixture(scope="session")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server without controllers for ever: simulated kubelets play them."""
    if existing():
        pytest.skip("this test needs a control plane of its own")
    with ControlPlane(binaries(), tmp_path_factory.mktemp("own-plane")) as plane:
        yield plane


@pytest.fixture
def on_real_api(own_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> OnRealApi:
    """Runs a test of the operator in an event loop, in a namespace of its own."""
    monkeypatch.setenv("KUBECONFIG", str(own_plane.kubeconfig))
    crds = [yaml.safe_load(path.read_text()) for path in CRDS]
    return partial(run_on_a_real_api, crds)
