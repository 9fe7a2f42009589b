"""Polls of pods go on, whatever one of them ends with."""

import asyncio

import pytest

from memkv.shardmap import unpack_owners
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.nodes.admin import AdminTls
from memkv_operator.nodes.facts import facts_of
from memkv_operator.nodes.polling import JITTER, POLLS_PER_S_MAX, PollBudget, Poller, Target
from memkv_operator.plan.facts import NodeFacts
from memkv_operator.testing.cluster import Cluster, pause, ready_pool
from memkv_proto import node_admin_pb2 as pb

TARGET = Target("10.0.0.1:9470", "uid")


class Silent:
    """An admin service that has nothing to say."""

    async def close(self) -> None:
        """As Admin."""


class Fragile(Poller[Silent, str]):
    """Its polls end as they are told to."""

    def __init__(
        self,
        errors: list[Exception | None],
        interval_s: float = 1.0,
        budget: PollBudget | None = None,
    ) -> None:
        super().__init__(self.dial, interval_s, budget)
        self.errors = errors
        self.asked = 0
        self.notes = True
        self.refuses_to_dial = False

    def dial(self, endpoint: str, tls: AdminTls | None) -> Silent:
        if self.refuses_to_dial:
            raise ValueError("no such certificate")
        return Silent()

    async def ask(self, node: str, target: Target, admin: Silent) -> None:
        self.asked += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.seen[node] = "well"

    def unanswered(self, node: str, target: Target, problem: str) -> None:
        if not self.notes:
            raise RuntimeError(problem)
        self.seen[node] = problem


def test_a_poll_that_ends_with_a_bug_counts_as_no_answer_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        fragile = Fragile([KeyError("x"), KeyError("x"), None])
        fragile.poll({"n1": TARGET})
        await pause(0.5)
        assert "KeyError('x')" in fragile.seen["n1"]
        await pause(5)
        assert fragile.seen["n1"] == "well"
        fragile.refuses_to_dial = True
        fragile.poll({"n2": TARGET})
        await pause(0.5)
        assert "no such certificate" in fragile.seen["n2"]
        fragile.refuses_to_dial = False
        await pause(5)
        assert fragile.seen["n2"] == "well"
        await fragile.stop()

    run_simulated(main())
    said = [one for one in caplog.records if "n1" in one.getMessage() and one.exc_info]
    assert len(said) == 1


def test_pollers_of_20_pools_share_what_one_may_ask() -> None:
    nodes, pools, seconds = 100, 20, 60

    async def main() -> None:
        budget = PollBudget()
        pollers = [Fragile([], 0.5, budget) for _ in range(pools)]
        for number, poller in enumerate(pollers):
            poller.poll({f"n{number}-{node}": TARGET for node in range(nodes)})
        await pause(seconds)
        asked = sum(poller.asked for poller in pollers)
        # Each is asked once at once; jitter comes on top.
        assert asked <= nodes * pools + POLLS_PER_S_MAX * seconds * (1 + JITTER)
        assert all(poller.all_asked for poller in pollers)
        for poller in pollers[1:]:
            await poller.stop()
        # Who is left has all of it.
        await pause(nodes * pools / POLLS_PER_S_MAX * (1 + JITTER))
        before = pollers[0].asked
        await pause(seconds)
        assert pollers[0].asked - before >= POLLS_PER_S_MAX * seconds * (1 - JITTER)
        await pollers[0].stop()
        assert budget.interval_s_min == 0

    run_simulated(main())


def test_a_poll_that_has_ended_all_the_same_is_begun_again() -> None:
    async def main() -> None:
        fragile = Fragile([KeyError("x")])
        fragile.notes = False
        fragile.poll({"n1": TARGET})
        await pause(5)
        assert fragile.asked == 1
        fragile.poll({"n1": TARGET})
        await pause(5)
        assert fragile.seen["n1"] == "well"
        await fragile.stop()

    run_simulated(main())


def test_a_node_whose_answer_met_a_bug_is_still_found_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    misread: list[str] = []

    def facts_but_once(answer: pb.GetFactsResponse, pool: str, node: str) -> NodeFacts:
        if node == "n1" and not misread:
            misread.append(node)
            raise ValueError("one answer that nobody foresaw")
        return facts_of(answer, pool, node)

    async def main() -> None:
        cluster = Cluster(LoopClock(), 0.25)
        await ready_pool(cluster, 4, disruption={"nodeLostGraceSeconds": 5})
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            monkeypatch.setattr("memkv_operator.nodes.poller.facts_of", facts_but_once)
            await cluster.until(lambda: bool(misread) and cluster.is_ready())
            cluster.kubelets.nodes.of("n1").up = False
            await cluster.kubelets.set_node_ready("n1", False)

            def left() -> bool:
                owners = {
                    cluster.map.workers[i].node_name for i in unpack_owners(cluster.map.owners)
                }
                return owners == {"n2", "n3", "n4"}

            async with asyncio.timeout(30):
                await cluster.until(left)

    run_simulated(main())
