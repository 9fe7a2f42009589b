"""Promises of the operator, on a cluster in memory: real operators, simulated kubelets."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Away, Conflict, TooMany
from memkv.shardmap import UNASSIGNED, ShardMap, WorkerState, unpack_owners
from memkv.testing.api_server import Request
from memkv_operator.testing.cluster import (
    LABELS,
    PATH,
    POOL,
    SPEC,
    Cluster,
    ready_pool,
    run_on_a_cluster,
)
from memkv_proto import node_admin_pb2 as pb


def owners_of(shard_map: ShardMap) -> set[str]:
    return {shard_map.workers[index].node_name for index in unpack_owners(shard_map.owners)}


def test_a_pool_becomes_ready() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        await cluster.kubelets.add_node("other", {})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
        assert cluster.pool["metadata"]["finalizers"] == ["memkv.io/pool-protection"]
        assert cluster.pool["status"]["nodeSummary"] == "3/3"
        assert cluster.map.version.epoch == 1
        assert owners_of(cluster.map) == {"n1", "n2", "n3"}
        nodes = {node["spec"]["nodeName"] for node in cluster.api.all_of("memkvnodes")}
        assert nodes == {"n1", "n2", "n3"}
        others = ("MemKVPool", "Lease", "Event", "Pod")
        owned = [
            item
            for path, item in cluster.api.objects.items()
            if "/namespaces/" in path and item["kind"] not in others
        ]
        uid = cluster.pool["metadata"]["uid"]
        assert len(owned) == 12 + 3 + 1
        for item in owned:
            assert item["metadata"]["ownerReferences"][0]["uid"] == uid, item["kind"]

    run_on_a_cluster(test)


def test_looking_again_at_a_ready_pool_writes_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            settled = cluster.reconciles(operator) + 5
            await cluster.until(lambda: cluster.reconciles(operator) >= settled)
            before = [one for one in cluster.api.writes if "/leases/" not in one.path]
            wanted = cluster.reconciles(operator) + 100

            def looked_often() -> bool:
                operator.look_at(f"inference/{POOL}")
                return cluster.reconciles(operator) >= wanted

            await cluster.until(looked_often)
            after = [one for one in cluster.api.writes if "/leases/" not in one.path]
            assert after[len(before) :] == []

    run_on_a_cluster(test)


def test_children_that_somebody_changed_or_deleted_come_back() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            core = "/api/v1/namespaces/inference"
            await cluster.api.request("DELETE", f"{core}/configmaps/{POOL}-connection", None, {})
            deployment = f"/apis/apps/v1/namespaces/inference/deployments/{POOL}-metadata"
            await cluster.api.request(
                "PATCH", deployment, None, {"spec": {"replicas": 7}}, "application/merge-patch+json"
            )

            def mended() -> bool:
                there = f"{core}/configmaps/{POOL}-connection" in cluster.api.objects
                return there and cluster.api.objects[deployment]["spec"]["replicas"] == 1

            await cluster.until(mended)

    run_on_a_cluster(test)


def test_a_lost_node_leaves_the_map_and_regains_its_slots_at_another_address() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 4)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            first = cluster.map
            node = cluster.kubelets.nodes.of("n2")
            node.up = False
            await cluster.kubelets.set_node_ready("n2", False)
            await cluster.until(lambda: "n2" not in owners_of(cluster.map))
            await cluster.until(lambda: cluster.condition("NodesReady")["reason"] == "NodeLost")
            assert cluster.pool["status"]["lostNodes"] == 1
            old_host = node.host
            pod = next(p for p in cluster.api.all_of("pods") if p["spec"]["nodeName"] == "n2")
            path = f"/api/v1/namespaces/inference/pods/{pod['metadata']['name']}"
            await cluster.api.request("DELETE", path, None, {})
            await cluster.kubelets.set_node_ready("n2", True)
            await cluster.until(lambda: "n2" in owners_of(cluster.map) and cluster.is_ready())
            worker = next(w for w in cluster.map.workers if w.node_name == "n2")
            assert worker.host == node.host != old_host
            assert worker.incarnation == 2
            assert bytes(cluster.map.owners) == bytes(first.owners)

    run_on_a_cluster(test)


def test_silent_node_that_its_kubelet_sees_well_keeps_its_slots() -> None:
    """The way between operator and node is cut, and clients go another way."""

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            node = cluster.kubelets.nodes.of("n1")
            del cluster.kubelets.nodes.by_host[node.host]  # nobody answers at its address
            await cluster.until(lambda: not cluster.is_ready())
            silent_until = cluster.reconciles(operator) + 5  # a second each, by resync
            await cluster.until(lambda: cluster.reconciles(operator) >= silent_until)
            assert cluster.map.version.epoch == 1
            assert cluster.condition("NodesReady")["reason"] == "NotAnswering"

    run_on_a_cluster(test)


def test_many_lost_nodes_freeze_the_map_until_a_person_accepts() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 4)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            for name in ("n1", "n2"):
                cluster.kubelets.nodes.of(name).up = False
                await cluster.kubelets.set_node_ready(name, False)
            frozen = "MassLossSuspected"
            await cluster.until(lambda: cluster.condition("ShardMapPublished")["reason"] == frozen)
            assert owners_of(cluster.map) == {"n1", "n2", "n3", "n4"}
            await cluster.change_pool(
                {"metadata": {"annotations": {"memkv.io/accept-mass-loss": "true"}}}
            )
            await cluster.until(lambda: owners_of(cluster.map) == {"n3", "n4"})
            await cluster.until(lambda: not cluster.pool["metadata"]["annotations"])
            said = "the map goes on without n1, n2"
            events = cluster.api.all_of
            await cluster.until(lambda: any(said in one["note"] for one in events("events")))

    run_on_a_cluster(test)


def test_a_selector_that_matches_nothing_keeps_the_last_map_and_the_pods() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            pods = {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}
            groups = [{**SPEC["nodeGroups"][0], "nodeSelector": {"memkv.io/nod": "true"}}]
            await cluster.change_pool({"spec": {"nodeGroups": groups}})
            nothing = "SelectorMatchesNothing"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == nothing)
            looked = cluster.reconciles(operator) + 5
            await cluster.until(lambda: cluster.reconciles(operator) >= looked)
            assert {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")} == pods
            assert cluster.map.version.epoch == 1
            assert owners_of(cluster.map) == {"n1", "n2", "n3"}
            await cluster.change_pool({"spec": {"nodeGroups": SPEC["nodeGroups"]}})
            await cluster.until(cluster.is_ready)
            assert cluster.map.version.epoch == 1

    run_on_a_cluster(test)


def test_nodes_that_all_lose_their_label_lose_their_pods_and_not_the_last_map() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            for name in ("n1", "n2", "n3"):
                change = {"metadata": {"labels": {"memkv.io/node": None}}}
                await cluster.kubelets.change_node(name, change)
            await cluster.until(lambda: not cluster.api.all_of("pods"))
            looked = cluster.reconciles(operator) + 5
            await cluster.until(lambda: cluster.reconciles(operator) >= looked)
            assert owners_of(cluster.map) == {"n1", "n2", "n3"}
            for name in ("n1", "n2", "n3"):
                await cluster.kubelets.change_node(name, {"metadata": {"labels": LABELS}})
            await cluster.until(cluster.is_ready)
            assert UNASSIGNED not in unpack_owners(cluster.map.owners)

    run_on_a_cluster(test)


def test_a_cordoned_node_gives_its_slots_away_and_gets_them_back() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            first = cluster.map
            await cluster.kubelets.change_node("n3", {"spec": {"unschedulable": True}})
            node = cluster.kubelets.nodes.of("n3")
            await cluster.until(lambda: node.spec.state == pb.NODE_STATE_DRAINING)
            await cluster.until(lambda: "n3" not in owners_of(cluster.map))
            state = next(w.state for w in cluster.map.workers if w.node_name == "n3")
            assert state is WorkerState.DRAINING
            await cluster.kubelets.change_node("n3", {"spec": {"unschedulable": None}})
            await cluster.until(lambda: node.spec.state == pb.NODE_STATE_ACTIVE)
            await cluster.until(lambda: bytes(cluster.map.owners) == bytes(first.owners))

    run_on_a_cluster(test)


def test_a_pool_grows_with_the_nodes_that_its_selector_finds() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 2)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.kubelets.add_node("n3", LABELS)
            await cluster.until(lambda: "n3" in owners_of(cluster.map) and cluster.is_ready())
            # The map is published first: for a moment the pool's status still tells of before.
            await cluster.until(lambda: cluster.pool["status"]["nodeSummary"] == "3/3")

    run_on_a_cluster(test)


def test_a_node_that_nothing_selects_any_more_is_forgotten() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 4)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.kubelets.change_node(
                "n4", {"metadata": {"labels": dict.fromkeys(LABELS)}}
            )
            await cluster.until(lambda: len(cluster.map.workers) == 3 and cluster.is_ready())
            await cluster.until(lambda: len(cluster.api.all_of("memkvnodes")) == 3)
            await cluster.until(lambda: cluster.pool["status"]["nodeSummary"] == "3/3")

    run_on_a_cluster(test)


def test_a_new_image_replaces_pods_one_after_the_other() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 3, disruption={"nodeLostGraceSeconds": 60})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            first = {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}
            down_at_once: list[int] = []

            def fault(request: Request, was_done: bool) -> Exception | None:
                if request.method == "DELETE" and "/pods/" in request.path and was_done:
                    down_at_once.append(3 - cluster.ready_pods())
                return None

            cluster.api.fault = fault
            await cluster.change_pool({"spec": {"image": {"tag": "2"}}})

            def replaced() -> bool:
                pods = {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}
                up_to_date = cluster.condition("UpToDate")["status"] == "True"
                return len(pods) == 3 and not pods & first and up_to_date

            await cluster.until(replaced)
            assert len(down_at_once) >= 3
            assert max(down_at_once) == 1
            assert cluster.map.version.epoch > 1  # new addresses
            await cluster.until(cluster.is_ready)

    run_on_a_cluster(test)


def test_evictions_must_leave_all_but_one_node_that_is_not_lost() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 5)
        path = f"/apis/policy/v1/namespaces/inference/poddisruptionbudgets/{POOL}-nodes"
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: cluster.api.objects[path]["spec"]["minAvailable"] == 4)
            cluster.kubelets.nodes.of("n2").up = False
            await cluster.kubelets.set_node_ready("n2", False)
            await cluster.until(lambda: cluster.api.objects[path]["spec"]["minAvailable"] == 3)

    run_on_a_cluster(test)


def test_a_paused_pool_is_left_alone() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.change_pool({"spec": {"paused": True}})
            await cluster.until(lambda: cluster.condition("Paused")["status"] == "True")
            await cluster.kubelets.add_node("n4", LABELS)
            core = f"/api/v1/namespaces/inference/configmaps/{POOL}-connection"
            await cluster.api.request("DELETE", core, None, {})
            await cluster.until(lambda: cluster.pool["status"]["desiredNodes"] == 4)
            assert core not in cluster.api.objects
            assert cluster.map.version.epoch == 1
            await cluster.change_pool({"spec": {"paused": False}})
            await cluster.until(
                lambda: core in cluster.api.objects and "n4" in owners_of(cluster.map)
            )

    run_on_a_cluster(test)


@pytest.mark.parametrize("nodes_dead", [False, True], ids=["alive", "all nodes dead"])
def test_a_deleted_pool_goes_with_everything_it_owns(nodes_dead: bool) -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            if nodes_dead:
                for name in ("n1", "n2", "n3"):
                    cluster.kubelets.nodes.of(name).up = False
                    await cluster.kubelets.set_node_ready(name, False)
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            left = ("memkvpools", "memkvnodes", "memkvshardmaps", "daemonsets", "configmaps")
            await cluster.until(lambda: not any(map(cluster.api.all_of, left)))

    run_on_a_cluster(test)


def test_a_pool_made_anew_under_its_name_gets_a_map_of_its_own() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        cluster.api.collects_garbage = False  # it comes late: the old map is still there
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            before = cluster.map
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: f"{PATH}/memkvpools/{POOL}" not in cluster.api.objects)
            await cluster.make_pool()
            await cluster.until(cluster.is_ready)
            assert not cluster.map.version.same_lineage(before.version)

    run_on_a_cluster(test)


def test_what_this_version_cannot_do_is_said_and_nothing_is_made() -> None:
    async def test(cluster: Cluster) -> None:
        group = {**SPEC["nodeGroups"][0], "storage": {}}
        group["memory"] = {"size": "1Gi", "hugePages": "2Mi"}
        await ready_pool(cluster, 1, nodeGroups=[group])
        async with cluster.operator():
            await cluster.until(
                lambda: cluster.condition("ConfigValid")["reason"] == "HugePagesNeedStorage"
            )
            assert cluster.condition("Ready")["reason"] == "ConfigInvalid"
            assert not cluster.api.all_of("daemonsets")

    run_on_a_cluster(test)


def test_a_namespace_that_forbids_the_pods_is_named_until_it_allows_them() -> None:
    enforce = "pod-security.kubernetes.io/enforce"
    namespace: Any = {
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "inference", "labels": {enforce: "baseline"}},
    }  # fmt: skip

    async def test(cluster: Cluster) -> None:
        await cluster.api.request("POST", "/api/v1/namespaces", None, namespace)
        await ready_pool(cluster, 1)
        async with cluster.operator():
            reason = "PodSecurityForbidsPrivileged"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == reason)
            allowed: Any = {"metadata": {"labels": {enforce: "privileged"}}}
            path = "/api/v1/namespaces/inference"
            merge = "application/merge-patch+json"
            await cluster.api.request("PATCH", path, None, allowed, merge)
            await cluster.until(cluster.is_ready)

    run_on_a_cluster(test)


def test_one_of_two_operators_leads_and_the_other_takes_over() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator("b") as second:
            async with cluster.operator("a") as first:
                await cluster.until(cluster.is_ready)
                assert first.leads != second.leads
                if second.leads:
                    return  # then the other one never gets the chance in this test
            await cluster.until(lambda: second.leads)
            await cluster.until(lambda: cluster.map.version.term > 1)
            assert cluster.is_ready()

    run_on_a_cluster(test)


ERRORS: dict[str, Callable[[], MemKVError]] = {
    "409": lambda: Conflict("409"),
    "429": lambda: TooMany("429", 0.0),
    "500": lambda: Away("500"),
}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after it was done"])
@pytest.mark.parametrize("error", ERRORS)
def test_any_failed_request_delays_a_pool_and_does_not_stop_it(error: str, done: bool) -> None:
    """Every third request fails, so that over a few rounds every call of a reconcile does."""

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 2)

        def fault(request: Request, was_done: bool) -> Exception | None:
            by_kubelet = "/pods" in request.path or "/nodes" in request.path
            if by_kubelet or was_done != done or request.method in ("GET", "WATCH"):
                return None
            return ERRORS[error]() if request.number % 3 == 0 else None

        cluster.api.fault = fault
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
        assert owners_of(cluster.map) == {"n1", "n2"}

    run_on_a_cluster(test)


def test_versions_stay_monotonic_when_leaders_die_in_mid_publish() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 3)
        seen: list[ShardMap] = []
        die = asyncio.Event()
        dies_when_done = False

        def fault(request: Request, was_done: bool) -> Exception | None:
            if die.is_set() and "/leases/" in request.path:
                return Away("a dead process releases nothing")
            if "memkvshardmaps" in request.path and request.method in ("PUT", "POST"):
                if cluster.has_map:
                    seen.append(cluster.map)
                if was_done == dies_when_done:
                    die.set()
                    return Away("killed")
            return None

        for round_ in range(10):
            dies_when_done = round_ % 2 == 1
            die.clear()
            async with cluster.operator(f"operator-{round_}", lease_ms=6000):
                cluster.api.fault = fault
                await cluster.until(lambda: die.is_set() or cluster.has_ended())
            cluster.api.fault = lambda request, was_done: None
        assert cluster.has_map
        versions = [(m.version.term, m.version.epoch) for m in seen]
        assert versions == sorted(versions)
        assert len({m.version.lineage for m in seen}) == 1
        assert len({m.version.term for m in seen}) > 3
        digests = {(m.version.term, m.version.epoch, m.digest) for m in seen}
        assert len({(term, epoch) for term, epoch, _ in digests}) == len(digests)
        assert all(UNASSIGNED not in unpack_owners(m.owners) for m in seen)

    run_on_a_cluster(test)
