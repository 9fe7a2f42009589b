"""Objects of a pool's names that somebody else made: they are left alone, and the pool says so."""

from typing import Any

import pytest

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.api.names import CERTIFICATES, DAEMON_SETS, SERVICES
from memkv_operator.api.pool import read_pool
from memkv_operator.plan.strangers import EarlierPool, NameTaken, Whose, check_ours, whose
from memkv_operator.testing.cluster import (
    NAMESPACE,
    PATH,
    POOL,
    SPEC,
    Cluster,
    ready_pool,
    run_on_a_cluster,
)

POOL_OF_TEST = read_pool(
    {"metadata": {"name": POOL, "namespace": NAMESPACE, "uid": "u"}, "spec": SPEC}
)
OUR_LABELS = {"app.kubernetes.io/managed-by": "memkv-operator", "memkv.io/pool": POOL}


def owned_by(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {"ownerReferences": [{"kind": kind, "name": name, "uid": uid}]}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (owned_by("MemKVPool", POOL, "u"), Whose.OURS),
        (owned_by("MemKVPool", POOL, "before"), Whose.EARLIER),
        (owned_by("MemKVPool", "other", "before"), Whose.OTHERS),
        (owned_by("Deployment", POOL, "x"), Whose.OTHERS),
        ({"labels": OUR_LABELS, **owned_by("Deployment", POOL, "x")}, Whose.OTHERS),
        ({"labels": OUR_LABELS}, Whose.OURS),  # its owner was taken away
        ({"labels": {**OUR_LABELS, "memkv.io/pool": "other"}}, Whose.OTHERS),
        ({"labels": {"memkv.io/pool": POOL}}, Whose.OTHERS),
        ({}, Whose.OTHERS),
    ],
)
def test_whose_an_object_is(meta: dict[str, Any], expected: Whose) -> None:
    found: JsonObject = {"metadata": {"name": "x", "namespace": NAMESPACE, **meta}}
    assert whose(POOL_OF_TEST, found) is expected
    error = {Whose.OURS: None, Whose.EARLIER: EarlierPool, Whose.OTHERS: NameTaken}[expected]
    if error is None:
        check_ours(POOL_OF_TEST, SERVICES, found)
        return
    with pytest.raises(error, match=f"{NAMESPACE}/x"):
        check_ours(POOL_OF_TEST, SERVICES, found)


def test_what_somebody_else_made_is_not_taken_over() -> None:
    """Neither one without an owner nor one that another object owns; all the rest is made."""
    service = SERVICES.path(NAMESPACE, f"{POOL}-metadata")
    daemon_set = DAEMON_SETS.path(NAMESPACE, f"{POOL}-flash")

    async def test(cluster: Cluster) -> None:
        mine: JsonObject = {"kind": "Service", "metadata": {"name": f"{POOL}-metadata"}, "spec": {}}
        labels = {"memkv.io/pool": POOL, "app.kubernetes.io/managed-by": "memkv-operator"}
        meta = {"name": f"{POOL}-flash", "labels": labels, **owned_by("Fleet", "boats", "x")}
        theirs: JsonObject = {
            "kind": "DaemonSet", "metadata": meta,
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {}, "spec": {"nodeSelector": {"no": "node"}}},
            },
        }  # fmt: skip
        await cluster.api.request("POST", service.rpartition("/")[0], None, mine)
        await cluster.api.request("POST", daemon_set.rpartition("/")[0], None, theirs)
        before = {path: dict(cluster.api.objects[path]) for path in (service, daemon_set)}
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == "NameTaken")
            said = cluster.condition("ConfigValid")["message"]
            for part in (
                f"Service {NAMESPACE}/{POOL}-metadata is needed by pool {NAMESPACE}/{POOL} and "
                "belongs to nobody",
                f"kubectl delete service -n {NAMESPACE} {POOL}-metadata",
                f"DaemonSet {NAMESPACE}/{POOL}-flash",
                "belongs to Fleet boats",
            ):
                assert part in said
            assert {path: dict(cluster.api.objects[path]) for path in before} == before
            connection = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{POOL}-connection"
            assert connection in cluster.api.objects
            for path in before:
                await cluster.api.request("DELETE", path, None, {})
            await cluster.until(cluster.is_ready)
            assert cluster.condition("ConfigValid")["status"] == "True"

    run_on_a_cluster(test)


def test_a_pool_goes_without_what_it_did_not_make() -> None:
    service = SERVICES.path(NAMESPACE, f"{POOL}-metadata")

    async def test(cluster: Cluster) -> None:
        mine: JsonObject = {"kind": "Service", "metadata": {"name": f"{POOL}-metadata"}, "spec": {}}
        await cluster.api.request("POST", service.rpartition("/")[0], None, mine)
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == "NameTaken")
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: not cluster.api.all_of("daemonsets"))
            assert service in cluster.api.objects

    run_on_a_cluster(test)


def test_an_object_that_lost_its_owner_is_given_it_back() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            service = SERVICES.path(NAMESPACE, f"{POOL}-metadata")
            patch: JsonObject = {"metadata": {"ownerReferences": None}}
            await cluster.api.request("PATCH", service, None, patch, MERGE)
            await cluster.until(
                lambda: bool(cluster.api.objects[service]["metadata"].get("ownerReferences"))
            )

    run_on_a_cluster(test)


def test_a_certificate_of_somebody_else_is_left_alone() -> None:
    """Certificates are asked for apart from other children."""
    name = f"{POOL}-node-tls"
    path = CERTIFICATES.path(NAMESPACE, name)
    tls = {"mode": "CertManager", "issuerRef": {"name": "ca"}}

    async def test(cluster: Cluster) -> None:
        theirs: JsonObject = {"kind": "Certificate", "metadata": {"name": name}, "spec": {"a": 1}}
        await cluster.api.request("POST", path.rpartition("/")[0], None, theirs)
        network = {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}}
        await ready_pool(cluster, 1, metadata={"replicas": 1, "tls": tls}, network=network)
        async with cluster.operator():
            await cluster.until(
                lambda: cluster.condition("CertificatesValid")["reason"] == "NameTaken"
            )
            assert cluster.api.objects[path]["spec"] == {"a": 1}

    run_on_a_cluster(test)
