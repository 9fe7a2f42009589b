"""Tenants of a pool, on a cluster in memory: real operators, simulated kubelets."""

import json
from typing import Any

from memkv.tenant import tenant_tag
from memkv_operator.testing.cluster import POOL, Cluster, run_on_a_cluster

LABELS = {"memkv.io/node": "true"}
GIB = 1 << 30
SEARCH = {"name": "search", "flashQuota": "20Gi", "memoryQuota": "1Gi"}
BATCH = {"name": "batch", "flashQuota": "10Gi"}
TLS = {"metadata": {"replicas": 1, "tls": {"mode": "SelfSigned"}, "auth": {"mode": "MTLS"}}}


async def pool_of_two(cluster: Cluster, *tenants: dict[str, Any], **changes: Any) -> None:
    for number in (1, 2):
        await cluster.kubelets.add_node(f"n{number}", LABELS)
    await cluster.make_pool(tenants=list(tenants), **changes)


def in_force(cluster: Cluster, node: str) -> dict[str, tuple[int, int]]:
    quotas = cluster.kubelets.nodes.of(node).spec.quotas
    return {q.tenant: (q.flash_bytes // GIB, q.memory_bytes * 2 // GIB) for q in quotas}


def generations(cluster: Cluster) -> dict[bytes, int]:
    return dict(cluster.map.tenant_generations)


def pod_uids(cluster: Cluster) -> set[str]:
    return {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}


def test_quotas_reach_every_node_and_change_without_a_new_pod() -> None:
    async def test(cluster: Cluster) -> None:
        await pool_of_two(cluster, SEARCH, BATCH)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            wanted = {"search": (10, 1), "batch": (5, 0)}
            await cluster.until(lambda: in_force(cluster, "n1") == wanted)
            await cluster.until(lambda: in_force(cluster, "n2") == wanted)
            await cluster.until(lambda: cluster.condition("QuotasGuaranteed")["status"] == "True")
            shown = {"name": "search", "flashGuaranteed": "20Gi", "memoryGuaranteed": "1Gi"}
            await cluster.until(
                lambda: shown.items() <= cluster.pool["status"]["tenants"][0].items()
            )
            pods = pod_uids(cluster)
            await cluster.change_pool({"spec": {"tenants": [{**SEARCH, "flashQuota": "30Gi"}]}})
            await cluster.until(lambda: in_force(cluster, "n1") == {"search": (15, 1)})
            await cluster.change_pool({"spec": {"tenants": [{**SEARCH, "flashQuota": "80Gi"}]}})
            await cluster.until(
                lambda: cluster.condition("QuotasGuaranteed")["reason"] == "QuotasExceedCapacity"
            )
            assert "80Gi" in cluster.condition("QuotasGuaranteed")["message"]
            await cluster.until(lambda: in_force(cluster, "n2") == {"search": (20, 1)})
            assert cluster.is_ready()  # a promise that cannot be kept stops nobody
            assert pod_uids(cluster) == pods

    run_on_a_cluster(test)


def test_another_operator_tells_nodes_nothing_that_is_in_force_and_writes_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        await pool_of_two(cluster, SEARCH, **TLS)
        async with cluster.operator("a"):
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: in_force(cluster, "n1") == {"search": (10, 1)})
            await cluster.until(lambda: in_force(cluster, "n2") == {"search": (10, 1)})
        specs = [cluster.kubelets.nodes.of(name).spec for name in ("n1", "n2")]
        assert all(len(spec.ticket_keys) == 1 for spec in specs)
        async with cluster.operator("b") as second:
            await cluster.until(lambda: second.leads and cluster.reconciles(second) > 5)
            await cluster.until(lambda: cluster.map.version.term > 1)
            settled = cluster.reconciles(second) + 20

            def looked_often() -> bool:
                second.look_at(f"inference/{POOL}")
                return cluster.reconciles(second) >= settled

            await cluster.until(looked_often)
            before = [one for one in cluster.api.writes if "/leases/" not in one.path]
            settled += 50
            await cluster.until(looked_often)
            after = [one for one in cluster.api.writes if "/leases/" not in one.path]
            assert after[len(before) :] == []
        assert [cluster.kubelets.nodes.of(name).spec for name in ("n1", "n2")] == specs

    run_on_a_cluster(test)


def test_a_tenant_that_is_named_no_more_is_dropped_in_two_rounds_and_once() -> None:
    async def test(cluster: Cluster) -> None:
        await pool_of_two(cluster, SEARCH, BATCH)
        async with cluster.operator("a"):
            await cluster.until(cluster.is_ready)
            assert generations(cluster) == {}
        tag = tenant_tag("batch")
        await cluster.change_pool({"spec": {"tenants": [SEARCH]}})
        async with cluster.operator("b"):  # it hears of the tenant from the stored map alone
            await cluster.until(lambda: generations(cluster) == {tag: 2})
            epoch = cluster.map.version.epoch
            await cluster.change_pool({"spec": {"tenants": [SEARCH, BATCH]}})
            await cluster.until(lambda: cluster.map.version.epoch > epoch)
            await cluster.until(lambda: "batch" in in_force(cluster, "n1"))
            assert generations(cluster) == {tag: 2}
            await cluster.change_pool({"spec": {"tenants": []}})
            await cluster.until(lambda: generations(cluster) == {tag: 4, tenant_tag("search"): 2})

    run_on_a_cluster(test)


def test_a_subject_of_two_tenants_is_said_and_belongs_to_the_first() -> None:
    async def test(cluster: Cluster) -> None:
        subject = {"namespace": "a", "name": "engine"}
        other = {"namespace": "a", "name": "job"}
        await pool_of_two(
            cluster,
            {"name": "one", "subjects": [subject]},
            {"name": "two", "subjects": [subject, other]},
            **TLS,
        )
        async with cluster.operator():
            await cluster.until(
                lambda: cluster.condition("ConfigValid")["reason"] == "DuplicateSubject"
            )
            message = cluster.condition("ConfigValid")["message"]
            assert "a/engine stands in tenants one, two" in message
            await cluster.until(lambda: cluster.has_map)
            name = f"/api/v1/namespaces/inference/configmaps/{POOL}-metadata"
            told = json.loads(cluster.api.objects[name]["data"]["tenants.json"])
            assert told["tenants"] == [
                {"name": "one", "subjects": [subject]},
                {"name": "two", "subjects": [other]},
            ]

    run_on_a_cluster(test)
