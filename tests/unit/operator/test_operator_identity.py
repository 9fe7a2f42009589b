"""What the operator does with a pool's certificates and Secrets, on a cluster in memory."""

import asyncio
import json
from typing import Any

import pytest

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.metadata.kubernetes.errors import Forbidden
from memkv.testing.api_server import FakeApiServer
from memkv.testing.clock import ManualClock
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.api.pool import read_pool
from memkv_operator.kube.objects import Objects
from memkv_operator.run import reviewers
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


def test_a_pool_whose_metadata_pods_may_not_check_tokens_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reviewers, "LOOK_AGAIN_S", 0.2)

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1, **TLS)
        async with cluster.operator():
            reason = "TokenReviewsForbidden"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == reason)
            message = cluster.condition("ConfigValid")["message"]
            assert "rbac.create=true" in message
            assert f"{POOL}-metadata" in message
            binding = {"metadata": {"name": "memkv-metadata"}}
            await cluster.api.request("POST", BINDING.rpartition("/")[0], None, binding)
            await cluster.until(cluster.is_ready)
            assert len(cluster.api.objects[BINDING]["subjects"]) == 1

    run_on_a_cluster(test)


def test_who_was_taken_out_of_the_binding_is_entered_again() -> None:
    async def test() -> None:
        api, clock = FakeApiServer(), ManualClock()
        binding = {"metadata": {"name": "memkv-metadata"}}
        await api.request("POST", BINDING.rpartition("/")[0], None, binding)
        pool = read_pool({"metadata": {"name": POOL, "namespace": "inference", "uid": "u"}})
        entering = reviewers.Reviewers(Objects(api), clock, "memkv-metadata")
        assert await entering.enter(pool) == ""
        entered = api.objects[BINDING]["subjects"]
        assert [one["name"] for one in entered] == [f"{POOL}-metadata"]
        await api.request("PATCH", BINDING, None, {"subjects": []}, MERGE)
        assert await entering.enter(pool) == ""
        assert api.objects[BINDING]["subjects"] == []
        clock.advance_ms(int(reviewers.LOOK_S * 1000))
        assert await entering.enter(pool) == ""
        assert api.objects[BINDING]["subjects"] == entered

    asyncio.run(test())


def test_a_pool_whose_tls_is_turned_off_leaves_the_binding_and_has_no_certificates() -> None:
    async def main() -> None:
        cluster = Cluster(LoopClock(), 0.25)
        await ready_pool(cluster, 1, **TLS)
        binding = {"metadata": {"name": "memkv-metadata"}}
        await cluster.api.request("POST", BINDING.rpartition("/")[0], None, binding)
        async with cluster.operator() as operator:

            def certificates() -> int:
                name = "memkv_tls_cert_expiry_timestamp_seconds"
                found = [f for f in operator.metrics.registry.collect() if f.name == name]
                return sum(len(family.samples) for family in found)

            await cluster.until(cluster.is_ready)
            assert certificates()
            assert cluster.api.objects[BINDING]["subjects"]
            plain: dict[str, Any] = {"tls": {"mode": "Disabled"}, "auth": {"mode": "None"}}
            spec = {"metadata": plain, "network": {"payloadEncryption": "None"}}
            await cluster.change_pool({"spec": spec})
            await cluster.until(
                lambda: not certificates() and not cluster.api.objects[BINDING]["subjects"]
            )

    run_simulated(main())


def test_a_new_leader_takes_pools_that_are_gone_out_of_the_binding() -> None:
    def subject(namespace: str, name: str, kind: str = "ServiceAccount") -> dict[str, Any]:
        return {"kind": kind, "namespace": namespace, "name": name}

    async def test() -> None:
        api, clock = FakeApiServer(), ManualClock()
        there, gone = subject("a", "there-metadata"), subject("a", "gone-metadata")
        others = [subject("b", "x-metadata"), subject("a", "somebody"), subject("", "u", "User")]
        subjects = [there, gone, *others]
        binding: dict[str, Any] = {"metadata": {"name": "memkv-metadata"}, "subjects": subjects}
        await api.request("POST", BINDING.rpartition("/")[0], None, binding)
        entered = reviewers.Reviewers(Objects(api), clock, "memkv-metadata")
        await entered.prune({"a/there"}, ("a",))
        assert api.objects[BINDING]["subjects"] == [there, *others]
        await entered.prune({"a/there"}, ())
        assert api.objects[BINDING]["subjects"] == [there, *others[1:]]

    asyncio.run(test())
