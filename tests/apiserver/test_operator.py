"""The operator as it runs, kopf included, on a real API server; kubelets are simulated."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.api_server import MERGE, connect_api_server
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.source import ShardMapSource
from memkv.shardmap import ShardMap
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]


def test_a_pool_becomes_ready_and_its_children_are_owned(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(2)
        await real.make_pool()
        async with real.operator():
            await real.until(real.is_ready)
        pool = await real.pool()
        assert pool["status"]["nodeSummary"] == "2/2"
        found = await real.map()
        assert found is not None
        assert {w.node_name for w in found.workers} == set(real.names)
        core = f"/api/v1/namespaces/{real.namespace}"
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{real.namespace}"
        policies = f"/apis/networking.k8s.io/v1/namespaces/{real.namespace}/networkpolicies"
        for path in (
            f"{core}/configmaps/{POOL}-connection",
            f"{core}/services/{POOL}-metadata",
            f"{core}/serviceaccounts/{POOL}-metadata",
            f"/apis/apps/v1/namespaces/{real.namespace}/deployments/{POOL}-metadata",
            f"/apis/apps/v1/namespaces/{real.namespace}/daemonsets/{POOL}-flash",
            f"{rbac}/roles/{POOL}-metadata",
            f"{policies}/{POOL}-metadata",
            f"{policies}/{POOL}-nodes",
            f"{real.root}/memkvshardmaps/{POOL}",
        ):
            child: Any = await real.get(path)
            assert child is not None, path
            owner = child["metadata"]["ownerReferences"][0]
            assert (owner["uid"], owner["controller"]) == (pool["metadata"]["uid"], True), path
        data: Any = await real.get(f"{core}/configmaps/{POOL}-connection")
        connection = json.loads(data["data"]["connection.json"])
        assert connection == {
            "endpoint": f"{POOL}-metadata.{real.namespace}.svc:7443",
            "pool": f"{real.namespace}/{POOL}",
            "rdma": "off",
        }  # fmt: skip

    on_real_api(test)


def test_looking_again_at_a_ready_pool_writes_nothing(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        search = {"namespaceSelector": {"matchLabels": {"team": "search"}}, "podSelector": {}}
        engines = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
        peers = [search, {"podSelector": engines}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]
        await real.make_pool(networkPolicy={"from": peers, "metricsFrom": [search]})
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
                operator.look_at(f"{real.namespace}/{POOL}")
                return looked() >= wanted

            await real.until(looked_often)
            assert written() == before

    on_real_api(test)


def test_an_update_begins_with_a_canary_and_a_removed_node_goes(on_real_api: OnRealApi) -> None:
    """What is under way is kept by the real schema; the affinity of the DaemonSet is accepted."""

    async def test(real: RealApi) -> None:
        await real.add_nodes(3)
        await real.make_pool(updateStrategy={"minReadySeconds": 0})
        async with real.operator():
            await real.until(real.is_ready)
            image = {"spec": {"image": {"tag": "2"}}}
            await real.api.request("PATCH", f"{real.root}/memkvpools/{POOL}", None, image, MERGE)
            noted: set[str] = set()

            async def updated() -> bool:
                status = (await real.pool())["status"]
                noted.add(status.get("update", {}).get("phase", ""))
                up_to_date = (await real.condition("UpToDate"))["status"] == "True"
                return up_to_date and bool(noted & {"Canary", "Rolling"})

            await real.until(updated)
            gone = real.names[0]
            listed: Any = await real.get(f"{real.root}/memkvnodes")
            node = next(n for n in listed["items"] if n["spec"]["nodeName"] == gone)
            path = f"{real.root}/memkvnodes/{node['metadata']['name']}"
            await real.api.request("PATCH", path, None, {"spec": {"state": "Removed"}}, MERGE)
            pods = f"/api/v1/namespaces/{real.namespace}/pods"

            async def dropped() -> bool:
                found: Any = await real.get(pods)
                return gone not in {pod["spec"]["nodeName"] for pod in found["items"]}

            await real.until(dropped)
            await real.until(real.is_ready)
            assert (await real.pool())["status"]["nodeSummary"] == "2/2"

    on_real_api(test)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "all nodes dead"])
def test_a_deleted_pool_does_not_wait_for_its_nodes(on_real_api: OnRealApi, dead: bool) -> None:
    async def test(real: RealApi) -> None:
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

    on_real_api(test)


def test_a_metadata_process_follows_the_map(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(2)
        heard: list[ShardMap] = []

        async def on_map(shard_map: ShardMap) -> None:
            heard.append(shard_map)

        source = ShardMapSource(
            await connect_api_server(), f"{real.namespace}/{POOL}", on_map, SystemClock()
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

    on_real_api(test)


def test_an_older_map_is_not_swapped_in(on_real_api: OnRealApi) -> None:
    """Two operators that both believe they lead: the API server decides."""

    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        await real.make_pool()
        async with real.operator():
            await real.until(real.is_ready)
            path = f"{real.root}/memkvshardmaps/{POOL}"
            stale: Any = await real.get(path)
            await real.api.request("PATCH", path, None, {"metadata": {"labels": {"a": "b"}}}, MERGE)
            with pytest.raises(Conflict):
                await real.api.request("PUT", path, None, stale)

    on_real_api(test)
