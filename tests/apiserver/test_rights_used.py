"""The operator uses every right that the chart gives it, and asks for nothing else.

Seen in the audit log of an API server that also lets nobody block the deletion of an owner whose
finalizers he may not set (OwnerReferencesPermissionEnforcement), as some clusters do.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.clock import SystemClock
from memkv.errors import ConfigError
from memkv.metadata.kubernetes.api_server import MERGE, connect_api_server
from memkv.metadata.kubernetes.json_values import Reader
from memkv.testing.control_plane import ControlPlane
from memkv_operator.api.meta import owner_reference, read_meta
from memkv_operator.api.names import (
    AGENTS_AUTHORITY,
    AGENTS_IDENTITY,
    CHILDREN,
    COMPONENT_NODE,
    DEPLOYMENTS,
    POD_MONITORS,
    POOLS,
    Resource,
    memkv_node_name,
    pool_labels,
)
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.kube.objects import Objects
from memkv_operator.run.uninstall import UninstallSettings, prepare_uninstall
from memkv_operator.testing.agents import FakeAgent, FakeDisk
from memkv_operator.testing.audit import (
    LOG,
    Right,
    asked,
    audit_flags,
    given,
    roles_of,
    uncovered,
    unused,
)
from memkv_operator.testing.cluster import POOL, SPEC
from memkv_operator.testing.helm import documents, template
from memkv_operator.testing.pod_monitor_kind import install_pod_monitors
from memkv_operator.testing.real_api import RealApi, run_on_a_real_api
from memkv_operator.testing.rights import ACCOUNT, as_operator, give_rights, scope_flags
from memkv_operator.testing.served_agents import serving

CRDS = sorted((Path(__file__).resolve().parents[2] / "charts/memkv/files/crds").glob("*.yaml"))
MONITORS = ("--set", "metrics.poolPodMonitors.enabled=true")

# Rights that no request of this test shows, and why they are given.
ASKED_BY_THE_SERVER = {
    Right(
        "memkv.io", "memkvpools/finalizers", "update"
    ): "as children of it are made",
    Right(
        "memkv.io", "memkvshardmaps", "list"
    ): "as metadata pods are given it",
    Right("memkv.io", "memkvshardmaps", "watch"): "as metadata pods are given it",
}
ASKED_IN_OTHER_CASES = {
    Right("", "secrets", "patch", AGENTS_AUTHORITY): "as the agents' authority is replaced",
    Right("", "secrets", "patch", AGENTS_IDENTITY): "as the agents' certificates are renewed",
    Right("memkv.io", "memkvshardmaps", "delete"): "of a map whose pool was made anew",
    Right("coordination.k8s.io", "leases", "list"): "where more than eight nodes are silent",
    Right("events.k8s.io", "events", "list"): "where a DaemonSet's pods are refused",
}


@pytest.fixture
def audited(plane_binaries: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A server that writes down who asks for what."""
    flags = audit_flags(tmp_path / "audit")
    flags.append("--enable-admission-plugins=OwnerReferencesPermissionEnforcement")
    with ControlPlane(plane_binaries, tmp_path / "plane", flags) as plane:
        yield plane


class Scene:
    """One pool's life, for the account of the operator."""

    def __init__(self, real: RealApi) -> None:
        self.real = real
        self.second = {f"memkv.io/{real.namespace}-second": "true"}
        self.agent = FakeAgent("")

    async def change(self, spec: dict[str, Any]) -> None:
        path = f"{self.real.root}/memkvpools/{POOL}"
        await self.real.api.request("PATCH", path, None, {"spec": spec}, MERGE)

    async def make_pool(self) -> None:
        """With TLS, tokens, drives, tenants and a monitor; a node of drives and one of a file."""
        real = self.real
        await real.add_nodes(1)
        self.agent = FakeAgent(real.names[0])
        self.agent.add(FakeDisk("nvme-a"))
        real.kubelets.hand_drives = lambda name, resource: self.agent.hand_over(resource)
        real.names.append(f"{real.namespace}-second")
        await real.kubelets.add_node(real.names[1], self.second)
        file = {**SPEC["nodeGroups"][0], "nodeSelector": self.second}
        storage = {"deviceSelector": {}, "initPolicy": "IfBlank"}
        drives = {**file, "name": "drives", "nodeSelector": real.label, "storage": storage}
        await real.make_pool(
            nodeGroups=[file, drives],
            network={"mode": "PodNetwork", "rdma": {"mode": "Disabled"}},
            metadata={"replicas": 1},
            tenants=[{"name": "search", "flashQuota": "1Gi"}],
            monitoring={"podMonitor": True},
        )

    async def leave_old_children(self) -> None:
        """As an operator of an older version: one of each kind, which nothing wants any more."""
        real = self.real
        owner = read_meta(Reader(await real.pool()))
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "old"}
        labels = {"old": "true"}
        template = {
            "metadata": {"labels": labels},
            "spec": {
                "nodeSelector": labels,  # no node has it: no pod is made
                "containers": [{"name": "old", "image": "old:1"}],
            },
        }
        apps = {"spec": {"selector": {"matchLabels": labels}, "template": template}}
        contents: dict[str, dict[str, Any]] = {
            "RoleBinding": {"roleRef": role},
            "Service": {"spec": {"ports": [{"port": 1}]}},
            "Deployment": apps, "DaemonSet": apps,
            "PodDisruptionBudget": {"spec": {"minAvailable": 0}},
            "NetworkPolicy": {"spec": {"podSelector": {"matchLabels": labels}}},
        }  # fmt: skip
        for resource in CHILDREN:
            manifest = {
                "metadata": {
                    "name": "old", "labels": pool_labels(POOL, COMPONENT_NODE),
                    "ownerReferences": [owner_reference(POOLS, owner)],
                },
                **contents.get(resource.kind, {}),
            }  # fmt: skip
            await real.api.request("POST", resource.path(real.namespace), None, manifest)

    def gone(self, *resources: Resource, name: str) -> Callable[[], Any]:
        async def holds() -> bool:
            paths = [resource.path(self.real.namespace, name) for resource in resources]
            return not [path for path in paths if await self.real.get(path)]

        return holds

    async def is_monitored(self) -> bool:
        return bool((await self.real.condition("Monitored"))["reason"] == "PodMonitorMade")

    async def live(self) -> None:
        """Ready, pruned, updated, a node lost, a node that leaves, deleted."""
        real = self.real
        await real.until(real.is_ready)
        await real.until(self.is_monitored)
        await self.leave_old_children()
        await real.until(self.gone(*CHILDREN, name="old"))
        await self.change({"monitoring": {"podMonitor": False}})
        await real.until(self.gone(POD_MONITORS, name=POOL))
        await self.change({"podTemplate": {"labels": {"new": "true"}}})

        async def updated() -> bool:
            return (await real.pool())["status"].get("updatedNodes") == 2 and await real.is_ready()

        await real.until(updated)
        lost = real.names[1]
        real.kubelets.nodes.of(lost).up = False
        await real.kubelets.set_node_ready(lost, False)

        async def is_lost() -> bool:
            return bool((await real.pool())["status"].get("lostNodes") == 1)

        await real.until(is_lost)
        real.kubelets.nodes.of(lost).up = True
        await real.kubelets.set_node_ready(lost, True)
        await real.until(real.is_ready)
        node = f"{real.root}/memkvnodes/{memkv_node_name(POOL, lost)}"
        assert await real.get(node)
        away: Any = {"metadata": {"labels": dict.fromkeys(self.second)}}
        await real.kubelets.change_node(lost, away)

        async def has_left() -> bool:
            return await real.get(node) is None

        await real.until(has_left)
        await real.api.request("DELETE", f"{real.root}/memkvpools/{POOL}")
        await real.until(self.gone(POOLS, name=POOL))


async def uninstall(real: RealApi, force: bool) -> None:
    """As the hook of `helm uninstall`."""
    lease = LeaseConfig(real.namespace, "memkv-operator", "hook", 15_000, 10_000, 1_500)
    settings = UninstallSettings(lease, "memkv-operator", (real.namespace,), force)
    api = await connect_api_server()
    try:
        await prepare_uninstall(Objects(api), settings, SystemClock())
    finally:
        await api.close()


def test_every_right_is_used_and_no_other_is_asked_for(
    helm: str, audited: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = audited.kubeconfig
    kubectl = [str(audited.binaries / "kubectl"), f"--kubeconfig={admin}"]
    monkeypatch.setenv("KUBECONFIG", str(admin))
    namespaces: list[str] = []

    async def test(real: RealApi) -> None:
        namespaces.append(real.namespace)
        give_rights(helm, kubectl, real.namespace, *MONITORS)
        account = as_operator(kubectl, admin, real.namespace, tmp_path / "operator")
        monkeypatch.setenv("KUBECONFIG", str(account))
        await install_pod_monitors(real)
        scene = Scene(real)
        await scene.make_pool()
        binding = f"{real.namespace}-memkv-metadata"
        async with (
            real.operator(metadata_binding=binding),
            serving(real, real.names[0], scene.agent),
        ):
            await scene.live()
        labels = {"app": "memkv"}
        template: Any = {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "operator", "image": "memkv:1"}]},
        }
        spec: Any = {"selector": {"matchLabels": labels}, "template": template}
        deployment: Any = {"metadata": {"name": "memkv-operator"}, "spec": spec}
        await real.api.request("POST", DEPLOYMENTS.path(real.namespace), None, deployment)
        await real.make_pool()
        with pytest.raises(ConfigError, match="there are pools"):
            await uninstall(real, force=False)
        await uninstall(real, force=True)

    run_on_a_real_api([yaml.safe_load(path.read_text()) for path in CRDS], test)
    (namespace,) = namespaces
    manifests = documents(template(helm, *scope_flags(namespace), *MONITORS))
    rights = given(roles_of(manifests, ACCOUNT))
    requests = asked(tmp_path / "audit" / LOG, f"system:serviceaccount:{namespace}:{ACCOUNT}")
    assert len(requests) > len(rights) / 2, "the audit log says nothing of the operator"
    assert uncovered(rights, requests) == []
    bind = Right("rbac.authorization.k8s.io", "clusterroles", "bind", f"{namespace}-memkv-metadata")
    by_server = {*ASKED_BY_THE_SERVER, bind}
    assert unused(rights - by_server - ASKED_IN_OTHER_CASES.keys(), requests) == []
    assert rights >= by_server | ASKED_IN_OTHER_CASES.keys(), "given no more: take it from the list"
