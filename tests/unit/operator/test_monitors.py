"""spec.monitoring.podMonitor: made when asked, deleted when not, and never in the way."""

from collections.abc import Callable
from typing import Any

import pytest

from memkv.errors import MemKVError
from memkv.metadata.kubernetes.api_server import APPLY, MERGE
from memkv.metadata.kubernetes.errors import Away, Forbidden, NotFound
from memkv.testing.api_server import Fault, Request
from memkv_operator.testing.cluster import NAMESPACE, PATH, POOL, Cluster, run_on_a_cluster

LABELS = {"memkv.io/node": "true"}
MONITORS = f"/apis/monitoring.coreos.com/v1/namespaces/{NAMESPACE}/podmonitors"
ON: Any = {"monitoring": {"podMonitor": True}}
OFF: Any = {"spec": {"monitoring": {"podMonitor": False}}}


def refusing(error: MemKVError) -> Fault:
    def fault(request: Request, done: bool) -> Exception | None:
        return error if request.path.startswith(MONITORS) else None

    return fault


def reason_is(cluster: Cluster, reason: str) -> Callable[[], bool]:
    return lambda: cluster.condition("Monitored").get("reason", "") == reason


def no_condition(cluster: Cluster) -> bool:
    return all(one["type"] != "Monitored" for one in cluster.pool["status"]["conditions"])


def test_a_pod_monitor_is_made_mended_and_deleted() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(**ON)
        label: Any = {"metadata": {"labels": {"release": "prometheus"}}}
        await cluster.api.request("PATCH", f"{PATH}/memkvpools/{POOL}", None, label, MERGE)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.until(reason_is(cluster, "PodMonitorMade"))
        (made,) = cluster.api.all_of("podmonitors")
        assert made["metadata"]["labels"]["release"] == "prometheus"
        assert made["metadata"]["ownerReferences"][0]["uid"] == cluster.pool["metadata"]["uid"]
        wanted = made["spec"]["selector"]["matchLabels"].items()
        for pod in cluster.api.all_of("pods"):
            assert wanted <= pod["metadata"]["labels"].items()
        for plural in ("daemonsets", "deployments"):
            (maker,) = cluster.api.all_of(plural)
            template = maker["spec"]["template"]
            assert wanted <= template["metadata"]["labels"].items()
            ports = {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}
            assert made["spec"]["podMetricsEndpoints"][0]["port"] in ports
        spoilt: Any = {"spec": {"podMetricsEndpoints": []}}
        await cluster.api.request("PATCH", f"{MONITORS}/{POOL}", None, spoilt, MERGE)
        async with cluster.operator("b"):  # another leader, which remembers nothing

            def mended() -> bool:
                (found,) = cluster.api.all_of("podmonitors")
                return bool(found["spec"] == made["spec"])

            await cluster.until(mended)
        await cluster.change_pool(OFF)
        async with cluster.operator("c"):
            await cluster.until(lambda: not cluster.api.all_of("podmonitors"))
            await cluster.until(lambda: no_condition(cluster))

    run_on_a_cluster(test)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (NotFound("no such kind"), "install the Prometheus operator"),
        (Forbidden("podmonitors is forbidden"), "metrics.poolPodMonitors.enabled=true"),
        (Away("connection refused"), "connection refused"),
    ],
    ids=["no kind", "no right", "no answer"],
)
def test_a_pod_monitor_that_cannot_be_made_is_said_and_blocks_nothing(
    error: MemKVError, fix: str
) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(**ON)
        cluster.api.fault = refusing(error)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            assert reason_is(cluster, "MonitoringUnavailable")()
            assert fix in cluster.condition("Monitored")["message"]
            assert cluster.condition("ConfigValid")["status"] == "True"
            events = [event["reason"] for event in cluster.api.all_of("events")]
            assert events.count("MonitoringUnavailable") == 1
            cluster.api.fault = lambda request, done: None
            await cluster.until(reason_is(cluster, "PodMonitorMade"))
        assert len(cluster.api.all_of("podmonitors")) == 1

    run_on_a_cluster(test)


def test_without_the_right_what_is_not_wanted_any_more_is_left() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(**ON)
        async with cluster.operator():
            await cluster.until(reason_is(cluster, "PodMonitorMade"))
            await cluster.until(cluster.is_ready)
            cluster.api.fault = refusing(Forbidden("no"))
            await cluster.change_pool(OFF)
            await cluster.until(lambda: no_condition(cluster))
            assert cluster.is_ready()

    run_on_a_cluster(test)


def test_another_pod_monitor_of_the_same_name_is_left_alone() -> None:
    async def test(cluster: Cluster) -> None:
        other: Any = {
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor",
            "metadata": {"name": POOL, "namespace": NAMESPACE}, "spec": {"mine": True},
        }  # fmt: skip
        await cluster.api.request("PATCH", f"{MONITORS}/{POOL}", None, other, APPLY)
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool(**ON)
        async with cluster.operator():
            await cluster.until(reason_is(cluster, "MonitoringUnavailable"))
            assert "delete or rename it" in cluster.condition("Monitored")["message"]
            await cluster.change_pool(OFF)
            await cluster.until(lambda: no_condition(cluster))
        (found,) = cluster.api.all_of("podmonitors")
        assert found["spec"] == {"mine": True}

    run_on_a_cluster(test)


def test_a_pool_that_does_not_ask_costs_no_request() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.make_pool()
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
        assert [r for r in cluster.api.requests if r.path.startswith(MONITORS)] == []

    run_on_a_cluster(test)
