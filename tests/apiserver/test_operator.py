"""The operator as it runs, kopf included, on a real API server; kubelets are simulated."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.api_server import MERGE, ApiServer, connect_api_server
from memkv.metadata.kubernetes.errors import Conflict, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.shardmap_object import map_of
from memkv.metadata.kubernetes.source import ShardMapSource
from memkv.shardmap import ShardMap
from memkv.testing.simulated_kubelets import SimulatedKubelets
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.run.process import Operator
from memkv_operator.run.settings import Settings
from memkv_operator.testing.cluster import POOL, SPEC, pause

ROOT = Path(__file__).resolve().parents[2]
CRDS = sorted((ROOT / "charts/memkv/files/crds").glob("*.yaml"))
IN_TIME_S = 200.0  # a quarter of a minute on an idle machine


class Real:
    """A namespace of a real API server, with simulated kubelets."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.kubelets = SimulatedKubelets(api, namespace)
        self.label = {f"memkv.io/{namespace}": "true"}
        self.root = f"/apis/memkv.io/v1alpha1/namespaces/{namespace}"
        self.names: list[str] = []

    @asynccontextmanager
    async def operator(self, name: str = "a", lease_ms: int = 15_000) -> AsyncIterator[Operator]:
        lease = LeaseConfig(
            self.namespace, "memkv-operator", name, lease_ms, lease_ms * 2 // 3, lease_ms // 10
        )
        settings = Settings(
            lease, "memkv:1", (self.namespace,), "127.0.0.1", 0, resync_s=2.0, step_s=0.1
        )
        operator = Operator(settings, dial=self.kubelets.nodes.dial)
        running = asyncio.create_task(operator.run())
        try:
            yield operator
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(IN_TIME_S):
            while True:
                await self.kubelets.tick()
                found = await self.map()
                if found is not None:
                    self.kubelets.nodes.take_over(found)
                if await holds():
                    return
                await pause(0.1)

    async def add_nodes(self, count: int) -> None:
        for _ in range(count):
            name = f"{self.namespace}-n{len(self.names)}"
            self.names.append(name)
            await self.kubelets.add_node(name, self.label)

    async def make_pool(self, **changes: Any) -> None:
        group = {**SPEC["nodeGroups"][0], "nodeSelector": self.label}
        manifest: dict[str, Any] = {
            "apiVersion": "memkv.io/v1alpha1",
            "kind": "MemKVPool",
            "metadata": {"name": POOL},
            "spec": {
                **SPEC, "nodeGroups": [group], "disruption": {"nodeLostGraceSeconds": 5},
                **changes,
            },
        }  # fmt: skip
        await self.api.request("POST", f"{self.root}/memkvpools", None, manifest)

    async def get(self, path: str) -> JsonObject | None:
        try:
            return await self.api.request("GET", path)
        except NotFound:
            return None

    async def pool(self) -> dict[str, Any]:
        found: Any = await self.get(f"{self.root}/memkvpools/{POOL}")
        return found or {}

    async def condition(self, type_: str) -> dict[str, Any]:
        conditions = (await self.pool()).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {"status": "", "reason": ""})

    async def is_ready(self) -> bool:
        return bool((await self.condition("Ready"))["status"] == "True")

    async def map(self) -> ShardMap | None:
        found = await self.get(f"{self.root}/memkvshardmaps/{POOL}")
        return map_of(found) if found is not None else None


def on(kubeconfig: Path, namespace: str, test: Callable[[Real], Awaitable[None]]) -> None:
    """Run a test in an event loop."""

    async def main() -> None:
        api = await connect_api_server()
        real = Real(api, namespace)
        try:
            await test(real)
        finally:
            for name in real.names:
                await api.request("DELETE", f"/api/v1/nodes/{name}")
            await api.close()

    asyncio.run(main())


@pytest.fixture(scope="session")
def crds(kubectl: list[str]) -> None:
    """The kinds of MemKV."""
    for path in CRDS:
        subprocess.run([*kubectl, "apply", "--server-side", "-f", path], check=True)
    subprocess.run(
        [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", *(
            f"crd/{yaml.safe_load(path.read_text())['metadata']['name']}" for path in CRDS
        )],
        check=True,
    )  # fmt: skip


@pytest.fixture
def place(
    kubeconfig: Path,
    crds: None,
    namespace: str,
    kubectl: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A namespace in which pods can be made."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    account = ["create", "serviceaccount", "default", "-n", namespace]
    subprocess.run([*kubectl, *account], check=False, capture_output=True)
    subprocess.run(
        [*kubectl, "label", "namespace", namespace,
         "pod-security.kubernetes.io/enforce=privileged"],
        check=True,
    )  # fmt: skip
    return namespace


def test_a_pool_becomes_ready_and_its_children_are_owned(kubeconfig: Path, place: str) -> None:
    async def test(real: Real) -> None:
        await real.add_nodes(2)
        await real.make_pool()
        async with real.operator():
            await real.until(real.is_ready)
        pool = await real.pool()
        assert pool["status"]["nodeSummary"] == "2/2"
        found = await real.map()
        assert found is not None
        assert {w.node_name for w in found.workers} == set(real.names)
        core = f"/api/v1/namespaces/{place}"
        for path in (
            f"{core}/configmaps/{POOL}-connection",
            f"{core}/services/{POOL}-metadata",
            f"{core}/serviceaccounts/{POOL}-metadata",
            f"/apis/apps/v1/namespaces/{place}/deployments/{POOL}-metadata",
            f"/apis/apps/v1/namespaces/{place}/daemonsets/{POOL}-flash",
            f"/apis/rbac.authorization.k8s.io/v1/namespaces/{place}/roles/{POOL}-metadata",
            f"{real.root}/memkvshardmaps/{POOL}",
        ):
            child: Any = await real.get(path)
            assert child is not None, path
            owner = child["metadata"]["ownerReferences"][0]
            assert (owner["uid"], owner["controller"]) == (pool["metadata"]["uid"], True), path
        data: Any = await real.get(f"{core}/configmaps/{POOL}-connection")
        connection = json.loads(data["data"]["connection.json"])
        assert connection == {
            "endpoint": f"{POOL}-metadata.{place}.svc:7443", "pool": f"{place}/{POOL}",
        }  # fmt: skip

    on(kubeconfig, place, test)


def test_looking_again_at_a_ready_pool_writes_nothing(kubeconfig: Path, place: str) -> None:
    async def test(real: Real) -> None:
        await real.add_nodes(1)
        await real.make_pool()
        async with real.operator() as operator:
            await real.until(real.is_ready)

            def count(name: str, labels: dict[str, str]) -> float:
                return operator.metrics.registry.get_sample_value(name, labels) or 0

            def looked() -> float:
                return count("memkv_operator_reconcile_total", {"result": "ok"})

            def written() -> dict[str, float]:
                metric = next(
                    m for m in operator.metrics.registry.collect()
                    if m.name == "memkv_operator_api_requests"
                )  # fmt: skip
                return {
                    sample.labels["verb"]: sample.value
                    for sample in metric.samples
                    if sample.labels["verb"] in ("PATCH", "POST", "DELETE")
                    and sample.name.endswith("_total")
                }

            settled = looked() + 5

            async def has_settled() -> bool:
                return looked() >= settled

            await real.until(has_settled)
            before, wanted = written(), looked() + 100

            async def looked_often() -> bool:
                operator.look_at(f"{place}/{POOL}")
                return looked() >= wanted

            await real.until(looked_often)
            assert written() == before

    on(kubeconfig, place, test)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "all nodes dead"])
def test_a_deleted_pool_does_not_wait_for_its_nodes(
    kubeconfig: Path, place: str, dead: bool
) -> None:
    async def test(real: Real) -> None:
        await real.add_nodes(2)
        await real.make_pool()
        async with real.operator():
            await real.until(real.is_ready)
            if dead:
                for name in real.names:
                    real.kubelets.nodes.of(name).up = False
                    await real.kubelets.set_node_ready(name, False)
            await real.api.request("DELETE", f"{real.root}/memkvpools/{POOL}")

            async def gone() -> bool:
                return not await real.pool()

            await real.until(gone)

    on(kubeconfig, place, test)


def test_a_metadata_process_follows_the_map(kubeconfig: Path, place: str) -> None:
    async def test(real: Real) -> None:
        await real.add_nodes(2)
        heard: list[ShardMap] = []

        async def on_map(shard_map: ShardMap) -> None:
            heard.append(shard_map)

        source = ShardMapSource(
            await connect_api_server(), f"{place}/{POOL}", on_map, SystemClock()
        )
        following = asyncio.create_task(source.run())
        try:
            await real.make_pool()
            async with real.operator():
                await real.until(real.is_ready)
                await real.add_nodes(1)

                async def grown() -> bool:
                    return bool(heard) and len(heard[-1].workers) == 3

                await real.until(grown)
                assert {w.node_name for w in heard[-1].workers} == set(real.names)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        versions = [(m.version.term, m.version.epoch) for m in heard]
        assert versions == sorted(set(versions))

    on(kubeconfig, place, test)


def test_an_older_map_is_not_swapped_in(kubeconfig: Path, place: str) -> None:
    """Two operators that both believe they lead: the API server decides."""

    async def test(real: Real) -> None:
        await real.add_nodes(1)
        await real.make_pool()
        async with real.operator():
            await real.until(real.is_ready)
            path = f"{real.root}/memkvshardmaps/{POOL}"
            stale: Any = await real.get(path)
            await real.api.request("PATCH", path, None, {"metadata": {"labels": {"a": "b"}}}, MERGE)
            with pytest.raises(Conflict):
                await real.api.request("PUT", path, None, stale)

    on(kubeconfig, place, test)
