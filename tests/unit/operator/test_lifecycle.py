"""Draining, removing, holding and the end of pools, on a cluster in memory with real operators."""

from typing import Any

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.shardmap import ShardMap, unpack_owners
from memkv_operator.testing.cluster import PATH, POOL, Cluster, run_on_a_cluster

LABELS = {"memkv.io/node": "true"}


async def ready_pool(cluster: Cluster, nodes: int, **changes: Any) -> None:
    for number in range(1, nodes + 1):
        await cluster.kubelets.add_node(f"n{number}", LABELS)
    await cluster.make_pool(**changes)


def owners_of(shard_map: ShardMap) -> set[str]:
    return {shard_map.workers[index].node_name for index in unpack_owners(shard_map.owners)}


def node_of(cluster: Cluster, name: str) -> dict[str, Any]:
    nodes = cluster.api.all_of("memkvnodes")
    return next(node for node in nodes if node["spec"]["nodeName"] == name)


def said(cluster: Cluster, name: str, type_: str) -> tuple[str, str]:
    conditions = node_of(cluster, name).get("status", {}).get("conditions", [])
    found = next((c for c in conditions if c["type"] == type_), {"status": "", "reason": ""})
    return found["status"], found["reason"]


async def want(cluster: Cluster, name: str, state: str) -> None:
    path = f"{PATH}/memkvnodes/{node_of(cluster, name)['metadata']['name']}"
    await cluster.api.request("PATCH", path, None, {"spec": {"state": state}}, MERGE)


def nodes_with_pods(cluster: Cluster) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in cluster.api.all_of("pods")}


def test_a_removed_node_is_drained_dropped_and_taken_back() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 3)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            others = {
                p["metadata"]["uid"] for p in cluster.api.all_of("pods")
                if p["spec"]["nodeName"] != "n2"
            }  # fmt: skip
            await want(cluster, "n2", "Removed")
            await cluster.until(lambda: nodes_with_pods(cluster) == {"n1", "n3"})
            assert said(cluster, "n2", "Drained") == ("True", "NothingLeft")
            await cluster.until(lambda: len(cluster.map.workers) == 2 and cluster.is_ready())
            await cluster.until(lambda: said(cluster, "n2", "Ready") == ("False", "Removed"))
            await cluster.until(lambda: cluster.pool["status"]["nodeSummary"] == "2/2")
            assert {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")} == others
            await want(cluster, "n2", "Active")
            await cluster.until(lambda: owners_of(cluster.map) == {"n1", "n2", "n3"})

    run_on_a_cluster(test)


def test_a_cordoned_memkv_node_keeps_its_slots_and_gets_none_of_a_lost_one() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 4)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await want(cluster, "n1", "Cordoned")
            await cluster.until(lambda: node_of(cluster, "n1")["status"]["observedGeneration"] > 1)
            before = [cluster.map.workers[i].node_name for i in unpack_owners(cluster.map.owners)]
            cluster.kubelets.nodes.of("n2").up = False
            await cluster.kubelets.set_node_ready("n2", False)
            await cluster.until(lambda: "n2" not in owners_of(cluster.map))
            after = [cluster.map.workers[i].node_name for i in unpack_owners(cluster.map.owners)]
            had = [slot for slot, name in enumerate(before) if name == "n1"]
            assert had == [slot for slot, name in enumerate(after) if name == "n1"]

    run_on_a_cluster(test)


def test_slots_wait_for_a_cordoned_node_where_a_cordon_does_not_drain() -> None:
    async def test(cluster: Cluster) -> None:
        disruption = {"nodeLostGraceSeconds": 1, "drainOnCordon": False}
        await ready_pool(cluster, 3, disruption=disruption)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            first = bytes(cluster.map.owners)
            await cluster.kubelets.change_node("n3", {"spec": {"unschedulable": True}})
            await cluster.until(lambda: said(cluster, "n3", "Held") == ("True", "Maintenance"))
            cluster.kubelets.nodes.of("n3").up = False
            await cluster.kubelets.set_node_ready("n3", False)
            looked = cluster.reconciles(operator) + 6  # a second each, by resync
            await cluster.until(lambda: cluster.reconciles(operator) >= looked)
            assert bytes(cluster.map.owners) == first
            change = {"disruption": {**disruption, "maintenanceTimeoutSeconds": 1}}
            await cluster.change_pool({"spec": change})
            await cluster.until(lambda: "n3" not in owners_of(cluster.map))
            await cluster.until(lambda: said(cluster, "n3", "Held")[1] == "MaintenanceTimeout")

    run_on_a_cluster(test)


def test_a_small_change_of_capacity_moves_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 3)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            node = cluster.kubelets.nodes.of("n1")

            def counted() -> tuple[int, int]:
                worker = node_of(cluster, "n1")["status"]["workers"][0]
                return worker["capacityBytes"], worker["countedBytes"]

            whole = node.capacity_bytes
            await cluster.until(lambda: counted() == (whole, whole))
            # The publisher goes by what the latest look saw: have it look once more.
            await cluster.change_pool({"spec": {"disruption": {"nodeLostGraceSeconds": 31}}})
            generation = cluster.pool["metadata"]["generation"]
            await cluster.until(lambda: cluster.pool["status"]["observedGeneration"] == generation)
            await cluster.until(lambda: cluster.condition("Rebalanced")["status"] == "True")
            epoch = cluster.map.version.epoch
            node.capacity_bytes = whole * 91 // 100
            await cluster.until(lambda: counted() == (whole * 91 // 100, whole))
            assert cluster.map.version.epoch == epoch
            node.capacity_bytes = whole * 9 // 10
            await cluster.until(lambda: cluster.map.version.epoch > epoch)
            await cluster.until(lambda: counted() == (whole * 9 // 10, whole * 9 // 10))

    run_on_a_cluster(test)


def test_a_pool_that_cannot_be_read_is_let_go() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.change_pool({"spec": {"network": None}})  # by another version
            reason = "SpecNotUnderstood"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == reason)
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: f"{PATH}/memkvpools/{POOL}" not in cluster.api.objects)

    run_on_a_cluster(test)


def test_who_else_keeps_a_pool_is_said() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            finalizers = [*cluster.pool["metadata"]["finalizers"], "example.org/backup"]
            await cluster.change_pool({"metadata": {"finalizers": finalizers}})
            assert cluster.condition("DeletionBlocked")["status"] == ""
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            blocked = "OtherFinalizers"
            await cluster.until(lambda: cluster.condition("DeletionBlocked")["reason"] == blocked)
            assert "example.org/backup" in cluster.condition("DeletionBlocked")["message"]

    run_on_a_cluster(test)
