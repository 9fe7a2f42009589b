"""A pool's PodMonitor on a real API server, by the chart's rights alone."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.testing.control_plane import ControlPlane
from memkv_operator.api.names import POD_MONITORS
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.pod_monitor_kind import install_pod_monitors
from memkv_operator.testing.real_api import RealApi, run_on_a_real_api
from memkv_operator.testing.rights import as_operator, give_rights, refused

CRDS = sorted((Path(__file__).resolve().parents[2] / "charts/memkv/files/crds").glob("*.yaml"))
ALLOWED = ("--set", "metrics.poolPodMonitors.enabled=true")
async def ask_for_one(real: RealApi, wanted: bool) -> None:
    patch: Any = {"spec": {"monitoring": {"podMonitor": wanted}}}
    await real.api.request("PATCH", f"{real.root}/memkvpools/{POOL}", None, patch, MERGE)


def says(real: RealApi, *parts: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        found = await real.condition("Monitored")
        said = f"{found['reason']} {found.get('message', '')}"
        return all(part in said for part in parts)

    return holds


def test_a_pool_is_monitored_when_it_asks_and_the_cluster_can(
    helm: str, own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right, without the kind, with both; then not asked any more."""
    monkeypatch.setenv("KUBECONFIG", str(own_plane.kubeconfig))
    kubectl = [str(own_plane.binaries / "kubectl"), f"--kubeconfig={own_plane.kubeconfig}"]

    @contextmanager
    def rights(real: RealApi, *flags: str) -> Iterator[None]:
        give_rights(helm, kubectl, real.namespace, *flags)
        account = as_operator(kubectl, own_plane.kubeconfig, real.namespace, tmp_path / "account")
        with monkeypatch.context() as inner:
            inner.setenv("KUBECONFIG", str(account))
            yield

    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        await real.make_pool(monitoring={"podMonitor": True})
        path = POD_MONITORS.path(real.namespace, POOL)
        with rights(real):
            async with real.operator():
                await real.until(
                    says(real, "MonitoringUnavailable", "metrics.poolPodMonitors.enabled=true")
                )
                await real.until(real.is_ready)
        with rights(real, *ALLOWED):
            async with real.operator("b") as operator:
                await real.until(
                    says(real, "MonitoringUnavailable", "install the Prometheus operator")
                )
                await install_pod_monitors(real)
                await real.until(says(real, "PodMonitorMade"))
                made: Any = await real.get(path)
                pool = await real.pool()
                assert made["metadata"]["ownerReferences"][0]["uid"] == pool["metadata"]["uid"]
                version = made["metadata"]["resourceVersion"]
                await ask_for_one(real, False)

                async def gone() -> bool:
                    return await real.get(path) is None

                await real.until(gone)

                async def forgotten() -> bool:
                    return not (await real.condition("Monitored"))["reason"]

                await real.until(forgotten)
                await ask_for_one(real, True)
                await real.until(says(real, "PodMonitorMade"))
                again: Any = await real.get(path)
                assert again["metadata"]["resourceVersion"] != version
                assert await real.is_ready()
                assert refused(operator) == []

    run_on_a_real_api([yaml.safe_load(path.read_text()) for path in CRDS], test)
