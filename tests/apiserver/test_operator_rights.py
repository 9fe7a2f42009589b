"""The operator with nothing but the rights that the chart gives it, on a real API server."""

import asyncio
from pathlib import Path
from typing import cast

import pytest
import yaml

from memkv.testing.control_plane import ControlPlane
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.crds import Object, objects
from memkv_operator.testing.helm import run
from memkv_operator.testing.real_api import RealApi, run_on_a_real_api
from memkv_operator.testing.rights import ACCOUNT, as_operator, give_rights, refused

CRDS = sorted((Path(__file__).resolve().parents[2] / "charts/memkv/files/crds").glob("*.yaml"))


def test_rights_of_the_chart_suffice_for_the_life_of_a_pool(
    helm: str, own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, Ready, grown, a node lost and back, deleted: and never a forbidden request."""
    admin = own_plane.kubeconfig
    kubectl = [str(own_plane.binaries / "kubectl"), f"--kubeconfig={admin}"]
    monkeypatch.setenv("KUBECONFIG", str(admin))

    async def test(real: RealApi) -> None:
        give_rights(helm, kubectl, real.namespace)
        account = as_operator(kubectl, admin, real.namespace, tmp_path / "operator")
        monkeypatch.setenv("KUBECONFIG", str(account))
        await real.add_nodes(2)
        await real.make_pool()
        async with real.operator() as operator:
            await real.until(real.is_ready)
            await real.add_nodes(1)

            async def grown() -> bool:
                found = await real.map()
                return found is not None and len(found.workers) == 3

            await real.until(grown)
            gone = real.names[0]
            real.kubelets.nodes.of(gone).up = False
            await real.kubelets.set_node_ready(gone, False)

            async def lost() -> bool:
                return bool((await real.pool())["status"].get("lostNodes") == 1)

            await real.until(lost)
            real.kubelets.nodes.of(gone).up = True
            await real.kubelets.set_node_ready(gone, True)
            await real.until(real.is_ready)
            await real.api.request("DELETE", f"{real.root}/memkvpools/{POOL}")

            async def deleted() -> bool:
                return not await real.pool()

            await real.until(deleted)
            assert refused(operator) == []
        events = await real.api.request(
            "GET", f"/apis/events.k8s.io/v1/namespaces/{real.namespace}/events"
        )
        assert objects(cast(Object, dict(events)), "items"), "it could not post events"

    crds = [yaml.safe_load(path.read_text()) for path in CRDS]
    run_on_a_real_api(crds, test)


def test_without_these_rights_it_stands_by_and_says_so(
    helm: str, own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the other test would see a right that is missing."""
    admin = own_plane.kubeconfig
    kubectl = [str(own_plane.binaries / "kubectl"), f"--kubeconfig={admin}"]
    monkeypatch.setenv("KUBECONFIG", str(admin))

    async def test(real: RealApi) -> None:
        run([*kubectl, "create", "serviceaccount", ACCOUNT, "-n", real.namespace])
        account = as_operator(kubectl, admin, real.namespace, tmp_path / "operator")
        monkeypatch.setenv("KUBECONFIG", str(account))
        async with real.operator() as operator, asyncio.timeout(120):
            while not refused(operator):
                await asyncio.sleep(0)
            assert not operator.leads

    crds = [yaml.safe_load(path.read_text()) for path in CRDS]
    run_on_a_real_api(crds, test)
