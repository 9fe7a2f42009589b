"""One pool that is wrong in a way of its own: what is said of it, and that others go on."""

import pytest

from memkv_operator.run.reconciler import Reconciler
from memkv_operator.testing.cluster import Cluster, ready_pool, run_on_a_cluster


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
