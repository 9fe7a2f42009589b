"""One namespace that cannot be read does not keep the others from being looked after."""

import pytest

from memkv.metadata.kubernetes.errors import Forbidden
from memkv.testing.api_server import Request
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.testing.cluster import NAMESPACE, Cluster, ready_pool


def test_a_namespace_that_cannot_be_read_is_left_out_until_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        cluster = Cluster(LoopClock(), 0.25)
        is_gone = True

        def fault(request: Request, was_done: bool) -> Exception | None:
            return Forbidden("403") if is_gone and "/namespaces/gone/" in request.path else None

        cluster.api.fault = fault
        await ready_pool(cluster, 1)
        async with cluster.operator(namespaces=("gone", NAMESPACE)):
            await cluster.until(cluster.is_ready)
            assert not cluster.has_ended()
            is_gone = False
            await cluster.until(lambda: cluster.has_ended())  # kubelet starts it anew
        async with cluster.operator("b", namespaces=("gone", NAMESPACE)):
            await cluster.until(cluster.is_ready)
            is_gone = True  # and goes again
            await cluster.until(lambda: cluster.has_ended())

    run_simulated(main())
    said = [one for one in caplog.records if "kubectl create namespace gone" in one.getMessage()]
    assert len(said) == 2
