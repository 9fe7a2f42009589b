"""Drives from agents to pods, on a cluster in memory: real operators, simulated kubelets."""

import json
import shlex
from typing import Any

import pytest

from memkv_operator.plan.drive_desk import DriveDesk, DriveSnapshot
from memkv_operator.run import agents
from memkv_operator.testing.agents import FakeAgent, FakeDisk
from memkv_operator.testing.cluster import PATH, POOL, SPEC, Cluster, run_on_a_cluster

LABELS = {"memkv.io/node": "true"}


def group(workers: int = 1, **storage: Any) -> dict[str, Any]:
    rules = {"deviceSelector": {"transport": "nvme"}, **storage}
    return {**SPEC["nodeGroups"][0], "workers": workers, "storage": rules}


async def drive_pool(
    cluster: Cluster, *disks: FakeDisk, workers: int = 1, **storage: Any
) -> FakeAgent:
    await cluster.kubelets.add_node("n1", LABELS)
    agent = await cluster.add_agent("n1", *disks)
    await cluster.make_pool(nodeGroups=[group(workers, **storage)])
    return agent


def node_of(cluster: Cluster, pool: str = POOL, node: str = "n1") -> dict[str, Any]:
    return next(
        (
            found
            for found in cluster.api.all_of("memkvnodes")
            if found["spec"]["nodeName"] == node and found["metadata"]["name"].startswith(pool)
        ),
        {},
    )


def states_of(cluster: Cluster, pool: str = POOL, node: str = "n1") -> dict[str, str]:
    drives = node_of(cluster, pool, node).get("status", {}).get("drives", [])
    return {drive["id"]: drive["state"] for drive in drives}


def test_looks_at_pools_decide_on_drives_anew_only_when_something_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[DriveSnapshot] = []

    class CountedDesk(DriveDesk):
        def __init__(self, snapshot: DriveSnapshot) -> None:
            made.append(snapshot)
            super().__init__(snapshot)

    monkeypatch.setattr(agents, "DriveDesk", CountedDesk)

    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(cluster, FakeDisk("a"), FakeDisk("b"), initPolicy="IfBlank")
        await cluster.make_pool("other", ports={"data": 7071, "admin": 9570, "metrics": 9571})
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)

            async def look(times: int) -> None:
                wanted = cluster.reconciles(operator) + times

                def looked() -> bool:
                    operator.look_at("inference/other")
                    return cluster.reconciles(operator) >= wanted

                await cluster.until(looked)

            await look(20)
            before = len(made)
            await look(60)
            assert len(made) - before < 6  # the status of the pool with drives may change
            agent.add(FakeDisk("c"))
            await cluster.until(lambda: "c" in states_of(cluster))
            assert len(made) > before

    run_on_a_cluster(test)


async def run_kubectl_patch(cluster: Cluster, message: str) -> None:
    """Do what the command in a condition says."""
    words = shlex.split(message[message.index("kubectl patch") :])
    assert words[:3] == ["kubectl", "patch", "memkvnode"]
    assert words[4:7] == ["-n", "inference", "--type=merge"]
    path = f"{PATH}/memkvnodes/{words[3]}"
    merge = "application/merge-patch+json"
    await cluster.api.request("PATCH", path, None, json.loads(words[8]), merge)


def test_a_drive_waits_for_the_command_that_its_condition_shows_and_then_serves() -> None:
    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(cluster, FakeDisk("a", "ext4"), FakeDisk("b"))
        async with cluster.operator():
            pending = "DrivePendingApproval"
            await cluster.until(lambda: cluster.condition("DrivesReady")["reason"] == pending)
            await cluster.until(lambda: cluster.condition("NodesReady")["reason"] == pending)
            await cluster.until(
                lambda: states_of(cluster) == {"a": "PendingApproval", "b": "Denied"}
            )
            assert cluster.pool["status"]["drives"]["pendingApproval"] == 1
            assert not agent.erased
            assert agent.applied == 0
            await run_kubectl_patch(cluster, cluster.condition("DrivesReady")["message"])
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: cluster.condition("DrivesReady")["status"] == "True")
            assert [content for _, content in agent.erased] == ["ext4"]
            assert states_of(cluster) == {"a": "Ready", "b": "Denied"}
            assert cluster.pool["status"]["drives"]["ready"] == 1
            worker = cluster.map.workers[0].uuid.hex()
            (used,) = [d for d in node_of(cluster)["status"]["drives"] if d["state"] == "Ready"]
            await cluster.until(
                lambda: node_of(cluster)["status"]["drives"][0].get("workerUUID") == worker
            )
            assert used["position"] == 0
            assert all(cluster.agents.proved)

    run_on_a_cluster(test)


def test_looking_again_at_a_pool_with_drives_writes_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(
            cluster, FakeDisk("a"), FakeDisk("b"), workers=2, initPolicy="IfBlank"
        )
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            settled = cluster.reconciles(operator) + 5
            await cluster.until(lambda: cluster.reconciles(operator) >= settled)
            before = [one for one in cluster.api.writes if "/leases/" not in one.path]
            told, wanted = agent.applied, cluster.reconciles(operator) + 100

            def looked_often() -> bool:
                operator.look_at(f"inference/{POOL}")
                return cluster.reconciles(operator) >= wanted

            await cluster.until(looked_often)
            after = [one for one in cluster.api.writes if "/leases/" not in one.path]
            assert after[len(before) :] == []
            assert agent.applied == told
            assert not agent.erased
        async with cluster.operator("b"):
            await cluster.until(lambda: agent.applied == told + 1)  # it does not know what was told
            await cluster.until(cluster.is_ready)
            assert {d.position for one in agent.spec.assignments for d in one.drives} == {0, 1}

    run_on_a_cluster(test)


def test_a_group_without_agents_says_how_to_install_them() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(nodeGroups=[group()])
        async with cluster.operator():
            await cluster.until(
                lambda: cluster.condition("ConfigValid")["reason"] == "AgentMissing"
            )
            assert "--set agent.enabled=true" in cluster.condition("ConfigValid")["message"]
            await cluster.add_agent("n1", FakeDisk("a"))
            await cluster.until(lambda: cluster.condition("ConfigValid")["status"] == "True")

    run_on_a_cluster(test)


def test_a_silent_agent_leaves_the_pod_alone_and_is_named() -> None:
    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(cluster, FakeDisk("a"), initPolicy="IfBlank")
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            before = states_of(cluster)
            agent.up = False
            reason = "AgentUnavailable"
            await cluster.until(lambda: cluster.condition("DrivesReady")["reason"] == reason)
            assert cluster.is_ready()
            assert states_of(cluster) == before == {"a": "Ready"}

    run_on_a_cluster(test)


def test_a_drive_that_moves_to_another_node_takes_its_worker_along() -> None:
    async def test(cluster: Cluster) -> None:
        first = await drive_pool(cluster, FakeDisk("a"), initPolicy="IfBlank")
        await cluster.kubelets.add_node("n2", LABELS)
        second = await cluster.add_agent("n2", FakeDisk("z", transport="sata"))
        async with cluster.operator():
            await cluster.until(lambda: cluster.has_map and states_of(cluster) == {"a": "Ready"})
            await cluster.until(lambda: "workerUUID" in node_of(cluster)["status"]["drives"][0])
            second.add(first.disks.pop("a"))
            await cluster.until(
                lambda: states_of(cluster, node="n2") == {"a": "Ready", "z": "Denied"}
            )
            await cluster.until(lambda: states_of(cluster) == {})
            assert not first.erased
            assert not second.erased

    run_on_a_cluster(test)


def test_the_older_pool_keeps_a_drive_that_both_name() -> None:
    async def test(cluster: Cluster) -> None:
        paths = {"devicePaths": ["/dev/disk/by-id/a"], "initPolicy": "IfBlank"}
        storage = [{**SPEC["nodeGroups"][0], "storage": paths}]
        await cluster.kubelets.add_node("n1", LABELS)
        agent = await cluster.add_agent("n1", FakeDisk("a"))
        await cluster.make_pool(nodeGroups=storage)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            cluster.api.objects[f"{PATH}/memkvpools/{POOL}"]["metadata"]["creationTimestamp"] = (
                "2020-01-01T00:00:00Z"
            )
            await cluster.make_pool("younger", nodeGroups=storage)
            path = f"{PATH}/memkvpools/younger"

            def reason() -> str:
                status = cluster.api.objects[path].get("status", {})
                found = [c for c in status.get("conditions", []) if c["type"] == "ConfigValid"]
                return str(found[0]["reason"]) if found else ""

            await cluster.until(lambda: reason() == "DriveClaimedTwice")
            assert cluster.is_ready()
            assert cluster.condition("ConfigValid")["status"] == "True"
            (assignment,) = agent.spec.assignments
            assert assignment.pool_uid == cluster.pool["metadata"]["uid"]

    run_on_a_cluster(test)


@pytest.mark.parametrize("drives", ["Retain", "Wipe"])
def test_a_deleted_pool_wipes_its_drives_if_it_said_so(drives: str) -> None:
    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(cluster, FakeDisk("a"), initPolicy="IfBlank")
        policy = {"drives": drives, "confirmation": "yes-really-wipe-drives"}
        await cluster.change_pool({"spec": {"deletionPolicy": policy}})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: "workerUUID" in node_of(cluster)["status"]["drives"][0])
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: not cluster.api.all_of("memkvpools"))
            assert bool(agent.disks["a"].content) == (drives == "Retain")
            assert len(agent.wiped) == (drives == "Wipe")  # to its end, and not the ends alone
            await cluster.until(lambda: not agent.spec.assignments)

    run_on_a_cluster(test)


def test_an_operator_that_takes_over_late_still_wipes_a_deleted_pool() -> None:
    """To it, every agent is silent at first, and the deletion is hours old."""

    async def test(cluster: Cluster) -> None:
        agent = await drive_pool(cluster, FakeDisk("a"), initPolicy="IfBlank")
        policy = {"drives": "Wipe", "confirmation": "yes-really-wipe-drives"}
        await cluster.change_pool({"spec": {"deletionPolicy": policy}})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: "workerUUID" in node_of(cluster)["status"]["drives"][0])
        await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
        cluster.pool["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z"
        async with cluster.operator("b"):
            await cluster.until(lambda: not cluster.api.all_of("memkvpools"))
        assert len(agent.wiped) == 1

    run_on_a_cluster(test)


def test_a_pod_whose_drives_changed_is_replaced() -> None:
    async def test(cluster: Cluster) -> None:
        await drive_pool(cluster, FakeDisk("a"), FakeDisk("b"), initPolicy="IfBlank")
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.until(lambda: "workerUUID" in node_of(cluster)["status"]["drives"][0])
            before = node_of(cluster)["status"]["podUID"]
            excluded = [{"path": "/dev/disk/by-id/a"}]
            groups = [group(initPolicy="IfBlank", excludedDevices=excluded)]
            await cluster.change_pool({"spec": {"nodeGroups": groups}})
            await cluster.until(lambda: states_of(cluster) == {"a": "Denied", "b": "Ready"})
            await cluster.until(lambda: node_of(cluster)["status"].get("podUID") != before)
            await cluster.until(cluster.is_ready)

    run_on_a_cluster(test)
