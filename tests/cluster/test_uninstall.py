"""The release as a whole: what `helm test` says of it, and how it ends."""

from collections.abc import Callable

import pytest

from memkv_operator.testing.crds import read_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

HOUSE = "memkv-left-behind"
DELETE_S = 120
CRDS = ("memkvpools.memkv.io", "memkvnodes.memkv.io", "memkvshardmaps.memkv.io")


@pytest.fixture
def home(release: LiveCluster, pool_namespace: Callable[[str], str]) -> str:
    """A namespace for a pool."""
    return pool_namespace(HOUSE)


def test_helm_test_passes(release: LiveCluster, system: str) -> None:
    release.run("helm", "test", "memkv", "-n", system)


def test_uninstall_is_refused_while_there_is_a_pool_and_works_without(
    release: LiveCluster, home: str, system: str, uninstall: Callable[[], tuple[int, str]]
) -> None:
    release.apply(home, read_yaml(ROOT / "deploy/samples/pool.yaml"))
    status, said = uninstall()
    assert status != 0, said
    assert f"there are pools: {home}/pool-a" in said, said
    # The operator is still there and looks after the pool: deleting it works.
    release.kubectl("delete", "memkvpool", "-n", home, "--all", f"--timeout={DELETE_S}s")
    status, said = uninstall()
    assert status == 0, said
    release.kubectl("delete", "namespace", home, f"--timeout={DELETE_S}s")
    release.kubectl("delete", "namespace", system, f"--timeout={DELETE_S}s")
    for name in CRDS:
        release.get("", "customresourcedefinition", name)  # kept, with all that depends on them
