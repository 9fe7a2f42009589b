"""Why no agent runs is said by its true cause: not installed is only one of them."""

import asyncio
from typing import Any

import pytest

from memkv.metadata.kubernetes.errors import Forbidden
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.testing.api_server import FakeApiServer
from memkv_operator.api.cluster import KubeNode, read_agent_pod
from memkv_operator.api.names import AGENT_SELECTOR
from memkv_operator.plan.agent_set import AgentSet, why_none_runs
from memkv_operator.plan.pod_trouble import OF_AGENT, explained
from memkv_operator.testing.agents import FakeDisk
from memkv_operator.testing.cluster import (
    IN_TIME_S,
    LABELS,
    NAMESPACE,
    Cluster,
    pause,
    run_on_a_cluster,
)
from memkv_operator.testing.faulty_api import FaultyApi
from memkv_operator.testing.passing_api import Call

SELECTOR = {"kubernetes.io/os": "linux", "memkv.io/node": "true"}
CHOSEN = KubeNode("n1", {**SELECTOR}, True, False, {})
OTHER = KubeNode("n2", {"kubernetes.io/os": "linux"}, True, False, {})
FORBIDDEN = (
    'pods "memkv-agent-x" is forbidden: violates PodSecurity "restricted:latest": privileged '
    '(container "agent" must not set securityContext.privileged=true)'
)
DAEMON_SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
EVENTS = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"


def agents(wanted: int, failed_create: str = "") -> AgentSet:
    return AgentSet("memkv-agent", "memkv-system", wanted, SELECTOR, failed_create)


@pytest.mark.parametrize(
    ("found", "nodes", "reason", "says"),
    [
        (None, [CHOSEN], "AgentMissing", "--set agent.enabled=true"),
        (agents(0), [OTHER], "AgentNotScheduled", "kubectl label node NODE memkv.io/node=true, or"),
        (agents(0), [CHOSEN, OTHER], "AgentNotScheduled", "n1 have its labels, and taints"),
        (
            agents(2, FORBIDDEN), [CHOSEN], "PodSecurityForbidsAgent",
            "kubectl label --overwrite namespace memkv-system "
            "pod-security.kubernetes.io/enforce=privileged",
        ),
        (
            agents(2, "exceeded quota: pods"), [CHOSEN], "AgentCreateFailed",
            "exceeded quota: pods; kubectl describe daemonset -n memkv-system memkv-agent",
        ),
        (agents(2), [CHOSEN], "AgentPending", "kubectl describe daemonset -n memkv-system"),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_reason_and_command(
    found: AgentSet | None, nodes: list[KubeNode], reason: str, says: str
) -> None:
    told, message = why_none_runs(found, nodes)
    assert told == reason
    assert says in message


def agent_pod(status: Any, **spec: Any) -> Any:
    return {"metadata": {"name": "agent-x", "namespace": "memkv-system"}, "spec": spec,
            "status": status}  # fmt: skip


def test_an_image_that_cannot_be_pulled_is_said_of_the_chart() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    pod = read_agent_pod(agent_pod({"containerStatuses": [{"state": waiting}]}, nodeName="n1"))
    reason, message = explained(pod, OF_AGENT)
    assert reason == "ImagePullFailed"
    assert "check image and imagePullSecrets of the chart" in message
    assert "kubectl describe pod -n memkv-system agent-x" in message


def test_an_agent_that_waits_for_room_on_its_node_is_there() -> None:
    """It has no spec.nodeName; it counted as none, and people were told to install agents."""
    fields = [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]
    term = {"nodeSelectorTerms": [{"matchFields": fields}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pod = read_agent_pod(agent_pod({"conditions": [scheduled]}, affinity=affinity))
    assert (pod.node_name, pod.trouble) == ("n1", "Unschedulable")


async def make_set(api: FakeApiServer, wanted: int) -> None:
    labels = {"app.kubernetes.io/component": "agent", "app.kubernetes.io/part-of": "memkv"}
    await api.request("POST", DAEMON_SETS, None, {
        "kind": "DaemonSet",
        "metadata": {"name": "memkv-agent", "labels": labels},
        "spec": {"template": {"spec": {"nodeSelector": dict(SELECTOR)}}},
        "status": {"desiredNumberScheduled": wanted, "currentNumberScheduled": 0},
    })  # fmt: skip


async def until_said(cluster: Cluster, reason: str) -> str:
    """Wait, without kubelets, until the pool gives this reason; return its message."""
    async with asyncio.timeout(IN_TIME_S):
        while cluster.condition("ConfigValid")["reason"] != reason:
            await pause(0.05)
    return str(cluster.condition("ConfigValid")["message"])


GROUP: dict[str, Any] = {
    "name": "flash", "nodeSelector": LABELS, "memory": {"size": "1Gi"},
    "storage": {"devicePaths": ["/dev/disk/by-id/d"]},
}  # fmt: skip


def test_a_pool_says_that_pod_security_forbids_its_agents() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await make_set(cluster.api, 1)
        regarding = {"kind": "DaemonSet", "name": "memkv-agent", "namespace": NAMESPACE}
        event: Any = {"metadata": {"name": "e"}, "reason": "FailedCreate", "note": FORBIDDEN,
                      "regarding": regarding}  # fmt: skip
        await cluster.api.request("POST", EVENTS, None, event)
        await cluster.make_pool(nodeGroups=[GROUP])
        async with cluster.operator():
            assert "enforce=privileged" in await until_said(cluster, "PodSecurityForbidsAgent")

    run_on_a_cluster(test)


class WithoutTheRight(FaultyApi):
    """A connection that may not list the agents' DaemonSet."""

    async def send(self, call: Call) -> JsonObject:
        """As PassingApi."""
        selector = (call.query or {}).get("labelSelector", "")
        if call.path == DAEMON_SETS and AGENT_SELECTOR in selector:
            raise Forbidden("daemonsets is forbidden")
        return await super().send(call)


def test_what_cannot_be_asked_names_both_commands_until_an_agent_is_there() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(nodeGroups=[GROUP])
        async with cluster.operator(api=WithoutTheRight(cluster.api)):
            message = await until_said(cluster, "AgentMissing")
            assert "daemonsets is forbidden" in message
            assert "kubectl get daemonset -A" in message
            assert "agent.enabled=true" in message
            await cluster.add_agent("n1", FakeDisk("d"))
            await until_said(cluster, "Valid")

    run_on_a_cluster(test)
