"""What the operator does with a pool's certificates and Secrets, on a cluster in memory."""

import json
from typing import Any

from memkv.metadata.kubernetes.errors import Forbidden
from memkv_operator.testing.cluster import PATH, POOL, Cluster, ready_pool, run_on_a_cluster

TLS = {
    "metadata": {"replicas": 1},
    "network": {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}},
}
BINDING = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/memkv-metadata"


def test_a_pool_with_its_own_authority_gets_secrets_that_stay() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 2, **TLS)
        await cluster.api.request(
            "POST", BINDING.rpartition("/")[0], None, {"metadata": {"name": "memkv-metadata"}}
        )
        core = "/api/v1/namespaces/inference"
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            assert all(dialled for dialled in cluster.kubelets.nodes.proved)
            first = {
                name: cluster.api.objects[f"{core}/secrets/{POOL}-{name}"]["data"]
                for name in ("identity", "node-identity", "metadata-identity")
            }
            connection = cluster.api.objects[f"{core}/configmaps/{POOL}-connection"]
            document = json.loads(connection["data"]["connection.json"])
            assert document["ca"].startswith("-----BEGIN CERTIFICATE")
            assert document["payload_encryption"] == "TLS"
            assert cluster.api.objects[BINDING]["subjects"] == [
                {"kind": "ServiceAccount", "name": f"{POOL}-metadata", "namespace": "inference"}
            ]
        async with cluster.operator("b"):
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: cluster.map.version.term > 1)
            for name, data in first.items():
                assert cluster.api.objects[f"{core}/secrets/{POOL}-{name}"]["data"] == data
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: not cluster.api.all_of("secrets"))
            await cluster.until(lambda: not cluster.api.objects[BINDING]["subjects"])

    run_on_a_cluster(test)


def test_a_damaged_identity_is_said_and_nothing_is_made_from_it() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1, **{**TLS, "metadata": {"auth": {"mode": "None"}}})
        owner = {"uid": cluster.pool["metadata"]["uid"]}
        secret: dict[str, Any] = {
            "kind": "Secret",
            "metadata": {"name": f"{POOL}-identity", "ownerReferences": [owner]},
            "data": {"ca.crt": ""},
        }
        await cluster.api.request("POST", "/api/v1/namespaces/inference/secrets", None, secret)
        async with cluster.operator():
            reason = "CertificatesUnavailable"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == reason)
            assert not cluster.api.all_of("daemonsets")

    run_on_a_cluster(test)


def test_a_pool_goes_on_when_its_secrets_are_forbidden_later() -> None:
    """Its nodes are asked with the certificate that was good before."""

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1, **{**TLS, "metadata": {"auth": {"mode": "None"}}})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            cluster.api.fault = lambda request, done: (
                Forbidden("secrets is forbidden") if "/secrets" in request.path else None
            )
            rotation = {"metadata": {"annotations": {"memkv.io/rotate-ca": "now"}}}
            await cluster.change_pool(rotation)
            reason = "CertificatesUnavailable"
            await cluster.until(lambda: cluster.condition("CertificatesValid")["reason"] == reason)
            await cluster.until(cluster.is_ready)
            assert all(cluster.kubelets.nodes.proved)

    run_on_a_cluster(test)


def test_a_paused_pool_stays_ready_under_a_new_leader() -> None:
    """Who leads next has no certificate yet, and reads what is needed for one."""

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1, **{**TLS, "metadata": {"auth": {"mode": "None"}}})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.change_pool({"spec": {"paused": True}})
            await cluster.until(lambda: cluster.condition("Paused")["status"] == "True")
        async with cluster.operator("b") as operator:
            await cluster.until(lambda: cluster.reconciles(operator) > 3)
            await cluster.until(cluster.is_ready)
            assert all(cluster.kubelets.nodes.proved)

    run_on_a_cluster(test)
