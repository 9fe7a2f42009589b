"""Nodes that serve over TCP where RDMA is asked for: what an operator tells of them, and unsays."""

import pytest

from memkv_operator.testing.cluster import Cluster, ready_pool, run_on_a_cluster


@pytest.mark.parametrize("mode", ["Required", "Preferred"])
def test_a_pool_that_asks_for_rdma_serves_over_tcp_and_says_so(mode: str) -> None:
    network = {
        "mode": "DRA", "resourceClaimTemplateName": "nic", "payloadEncryption": "None",
        "rdma": {"mode": mode},
    }  # fmt: skip
    wanted = "RDMAUnavailable" if mode == "Required" else "Ready"

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1, network=network)
        async with cluster.operator():
            await cluster.until(lambda: cluster.condition("Ready")["reason"] == wanted)
            assert cluster.condition("RDMAReady")["status"] == "False"
            assert cluster.has_map
            assert cluster.ready_pods() == 1

    run_on_a_cluster(test)


def test_nodes_that_fall_back_to_tcp_are_told_each_time_and_when_they_are_back() -> None:
    network = {
        "mode": "DRA", "resourceClaimTemplateName": "nic", "payloadEncryption": "None",
        "rdma": {"mode": "Required"},
    }  # fmt: skip
    down = "mlx5_0/1: it is DOWN"

    async def test(cluster: Cluster) -> None:
        async def becomes(reason: str, ready: str, fallback: int) -> None:
            await cluster.until(lambda: cluster.condition("RDMAReady")["reason"] == reason)
            await cluster.until(lambda: cluster.condition("Ready")["reason"] == ready)
            await cluster.until(lambda: cluster.pool["status"]["fallbackNodes"] == fallback)

        def set_rails(*names: str) -> None:
            for node in ("n1", "n2"):
                simulated = cluster.kubelets.nodes.of(node)
                simulated.rails = () if node in names else ("mlx5_0/1",)
                simulated.rdma_problem = down if node in names else ""

        await ready_pool(cluster, 2, network=network)
        async with cluster.operator():
            await cluster.until(lambda: cluster.ready_pods() == 2)
            set_rails()
            await becomes("AllNodesServeRDMA", "Ready", 0)
            for _ in range(2):
                set_rails("n2")
                await becomes("RDMAUnavailable", "RDMAUnavailable", 1)
                assert f"n2: {down}" in cluster.condition("RDMAReady")["message"]
                set_rails()
                await becomes("AllNodesServeRDMA", "Ready", 0)
            said = {event["reason"]: event["type"] for event in cluster.api.all_of("events")}
            assert said["RDMAUnavailable"] == "Warning"
            assert said["AllNodesServeRDMA"] == "Normal"

    run_on_a_cluster(test)
