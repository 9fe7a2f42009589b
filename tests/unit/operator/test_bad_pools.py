"""One pool that is wrong in a way of its own: what is said of it, and that others go on."""

from typing import Any

import pytest

from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Invalid
from memkv.metadata.publisher import Outcome, PublisherState
from memkv.testing.api_server import Request
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.api.unread import read_rest
from memkv_operator.plan.shards import PoolMaps
from memkv_operator.run.reconciler import Reconciler
from memkv_operator.testing.agents import FakeDisk
from memkv_operator.testing.cluster import (
    LABELS,
    PATH,
    POOL,
    SPEC,
    Cluster,
    ready_pool,
    run_on_a_cluster,
)

DRIVES: dict[str, Any] = {
    **SPEC["nodeGroups"][0],
    "storage": {"deviceSelector": {"transport": "nvme"}, "initPolicy": "IfBlank"},
}
UNREADABLE: dict[str, Any] = {"podTemplate": {"labels": {"a": 1}}}
WIPE: dict[str, Any] = {
    "deletionPolicy": {"drives": "Wipe", "confirmation": "yes-really-wipe-drives"}
}


def is_not_understood(cluster: Cluster, pool: str = POOL) -> bool:
    found = cluster.api.objects[f"{PATH}/memkvpools/{pool}"].get("status", {})
    return any(c["reason"] == "SpecNotUnderstood" for c in found.get("conditions", ()))


def test_a_bug_about_one_pool_does_not_end_the_work_on_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reconcile = Reconciler.reconcile

    async def reconcile_but_one(self: Reconciler, key: str) -> None:
        if key == "inference/younger":
            raise ZeroDivisionError("nobody foresaw this")
        await reconcile(self, key)

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        await cluster.make_pool("younger")
        async with cluster.operator() as operator:

            def bugs() -> float:
                name, labels = "memkv_operator_reconcile_total", {"result": "bug"}
                return operator.metrics.registry.get_sample_value(name, labels) or 0

            await cluster.until(lambda: cluster.is_ready() and bugs() >= 3)
            assert not cluster.has_ended()
        said = [r for r in caplog.records if "this is a bug" in r.getMessage()]
        assert len(said) == 1
        assert said[0].exc_info

    monkeypatch.setattr(Reconciler, "reconcile", reconcile_but_one)
    run_on_a_cluster(test)


def test_a_bug_about_the_map_of_one_pool_does_not_end_the_work_on_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = PoolMaps.step
    has_bug = True

    def step_but_one(self: PoolMaps, now_ms: int, wall_s: int) -> Outcome:
        if has_bug and self is not maps_of_older:
            raise KeyError("nobody foresaw this")
        return step(self, now_ms, wall_s)

    maps_of_older: PoolMaps | None = None
    take_over = PoolMaps.__init__

    def note(
        self: PoolMaps, pool: Pool, state: PublisherState | None, transitions: int, now_ms: int
    ) -> None:
        nonlocal maps_of_older
        take_over(self, pool, state, transitions, now_ms)
        if pool.meta.name == POOL:
            maps_of_older = self

    def younger(cluster: Cluster) -> dict[str, Any]:
        status = cluster.api.objects[f"{PATH}/memkvpools/younger"].get("status", {})
        return {one["type"]: one for one in status.get("conditions", [])}

    async def main() -> None:
        nonlocal has_bug
        cluster = Cluster(LoopClock(), 0.25)
        await ready_pool(cluster, 1)
        elsewhere = {"file": {"hostPath": "/var/lib/younger", "size": "20Gi"}}
        await cluster.make_pool(
            "younger", nodeGroups=[{**SPEC["nodeGroups"][0], "storage": elsewhere}]
        )
        async with cluster.operator() as operator:

            def bugs() -> float:
                name, labels = "memkv_operator_reconcile_total", {"result": "bug"}
                return operator.metrics.registry.get_sample_value(name, labels) or 0

            await cluster.until(lambda: cluster.is_ready() and bugs() >= 3)
            published = younger(cluster)["ShardMapPublished"]
            assert (published["status"], published["reason"]) == ("False", "PublishFailed")
            assert "KeyError" in published["message"]
            has_bug = False
            await cluster.until(lambda: younger(cluster)["Ready"]["status"] == "True")
            assert not cluster.has_ended()
        said = [r for r in caplog.records if "met a bug" in r.getMessage()]
        assert len(said) == 1
        assert said[0].exc_info

    monkeypatch.setattr(PoolMaps, "step", step_but_one)
    monkeypatch.setattr(PoolMaps, "__init__", note)
    run_simulated(main())


@pytest.mark.parametrize("unreadable", [UNREADABLE, {"network": 1}], ids=["in part", "as a whole"])
def test_a_pool_that_was_never_readable_does_not_keep_others_from_their_drives(
    unreadable: dict[str, Any],
) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.make_pool("bad", **unreadable)
        await cluster.kubelets.add_node("n1", LABELS)
        await cluster.add_agent("n1", FakeDisk("a"))
        async with cluster.operator():
            await cluster.until(lambda: is_not_understood(cluster, "bad"))
            await cluster.make_pool(nodeGroups=[DRIVES])
            await cluster.until(cluster.is_ready)

    run_on_a_cluster(test)


def test_a_pool_that_is_not_readable_any_more_keeps_its_drives_and_is_wiped_as_it_says() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.kubelets.add_node("n1", LABELS)
        agent = await cluster.add_agent("n1", FakeDisk("a"))
        await cluster.make_pool(nodeGroups=[DRIVES], **WIPE)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            await cluster.change_pool({"spec": UNREADABLE})
            await cluster.until(lambda: is_not_understood(cluster))
            assert agent.spec.assignments
        # One who never read it lets it go all the same, and wipes what it has.
        async with cluster.operator("b"):
            erased = len(agent.erased)
            await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})
            await cluster.until(lambda: not cluster.api.all_of("memkvpools"))
            assert len(agent.erased) > erased

    run_on_a_cluster(test)


def test_what_is_known_of_a_pool_that_cannot_be_read() -> None:
    meta = {"name": POOL, "uid": "u"}
    before = read_pool({"metadata": meta, "spec": {**SPEC, "paused": False}})
    bad = {"metadata": meta, "spec": {**SPEC, **UNREADABLE, **WIPE}}
    for known in (before, None):
        rest = read_rest(bad, known)
        assert rest.spec.paused
        assert rest.spec.wipes_drives
        assert rest.spec.groups == before.spec.groups
    earlier = read_pool({"metadata": {**meta, "uid": "earlier"}, "spec": {}})
    assert read_rest(bad, earlier).spec.groups == before.spec.groups
    for spec in (1, {"nodeGroups": 1}, {"deletionPolicy": 1}):
        rest = read_rest({"metadata": meta, "spec": spec}, None)
        assert rest.spec.groups == ()
        assert not rest.spec.wipes_drives


def test_children_that_the_server_refuses_are_said_and_hide_nothing() -> None:
    """More of them than failures that make a server unwell."""
    refused = ("networkpolicies", "poddisruptionbudgets", "services", "serviceaccounts")

    async def test(cluster: Cluster) -> None:
        words = "Forbidden: exceeded quota: none-of-these"

        def refuse(request: Request, done: bool) -> MemKVError | None:
            made = request.method == "PATCH" and any(f"/{one}/" in request.path for one in refused)
            return Invalid(words) if made and not done else None

        cluster.api.fault = refuse
        await ready_pool(cluster, 1)
        async with cluster.operator():
            reason = "ApplyFailed"
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == reason)
            message = cluster.condition("ConfigValid")["message"]
            assert message.count(words) >= 4
            assert f"ServiceAccount {POOL}-" in message
            assert cluster.condition("Ready")["status"] == "False"
            await cluster.until(lambda: cluster.condition("NodesReady")["status"] == "True")
            await cluster.until(lambda: bool(cluster.api.all_of("memkvnodes")[0].get("status")))
            cluster.api.fault = lambda request, done: None
            await cluster.until(cluster.is_ready)
            assert cluster.condition("ConfigValid")["status"] == "True"

    run_on_a_cluster(test)


def test_no_pod_is_replaced_while_the_server_refuses_the_daemon_set_it_would_come_from() -> None:
    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster)
        async with cluster.operator() as operator:
            await cluster.until(cluster.is_ready)
            pods = {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}

            def refuse(request: Request, done: bool) -> MemKVError | None:
                made = request.method == "PATCH" and "/daemonsets/" in request.path
                return Invalid("a webhook says no") if made and not done else None

            cluster.api.fault = refuse
            await cluster.change_pool({"spec": {"image": {"tag": "2"}}})
            await cluster.until(lambda: cluster.condition("ConfigValid")["reason"] == "ApplyFailed")
            looks = len(cluster.api.requests)
            operator.look_at(f"inference/{POOL}")
            await cluster.until(lambda: len(cluster.api.requests) > looks + 100)
            assert {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")} == pods
            up_to_date = cluster.condition("UpToDate")
            assert (up_to_date["status"], up_to_date["reason"]) == ("False", "WaitingForDaemonSet")
            cluster.api.fault = lambda request, done: None
            await cluster.until(lambda: cluster.condition("UpToDate")["status"] == "True")
            after = {pod["metadata"]["uid"] for pod in cluster.api.all_of("pods")}
            assert not after & pods

    run_on_a_cluster(test)
