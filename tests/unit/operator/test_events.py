"""What people are told, and how often."""

import asyncio
from typing import Any

from memkv.metadata.kubernetes.errors import Away
from memkv.testing.api_server import Request
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.testing.cluster import Cluster, ready_pool


def events_of(cluster: Cluster, reason: str) -> list[dict[str, Any]]:
    return [event for event in cluster.api.all_of("events") if event["reason"] == reason]


def test_events_wait_until_the_status_that_remembers_them_is_written() -> None:
    unwell = False

    def fault(request: Request, was_done: bool) -> Exception | None:
        is_status = request.path.endswith("/status") and "/memkvpools/" in request.path
        return Away("500") if unwell and is_status and not was_done else None

    async def main() -> None:
        nonlocal unwell
        cluster = Cluster(LoopClock(), 0.25)
        await ready_pool(cluster, 3, disruption={"nodeLostGraceSeconds": 300})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            cluster.api.fault = fault
            unwell = True
            cluster.kubelets.nodes.of("n1").up = False
            loop = asyncio.get_running_loop()
            until_s = loop.time() + 120
            await cluster.until(lambda: loop.time() > until_s)
            assert not events_of(cluster, "NotAnswering")
            unwell = False
            await cluster.until(lambda: not cluster.is_ready())
            until_s = loop.time() + 60
            await cluster.until(lambda: loop.time() > until_s)
            assert len(events_of(cluster, "NotAnswering")) == 1

    run_simulated(main())
