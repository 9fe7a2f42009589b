"""Every request of the operator fails once, in every way, in every part of a pool's life; watches
lose, double and swap events. What comes of it is what comes without.

`make test` lets each request fail in one way, the ways in turn; `make test-crash` in each of them
(MEMKV_FAULT_CASES=all).
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from memkv.shardmap import unpack_owners
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.plan.pace import NODE_PAUSE_MS
from memkv_operator.run.process import Operator
from memkv_operator.testing.cluster import PATH, POOL, Cluster
from memkv_operator.testing.faulty_api import FAULTS, Disorder, FaultyApi, some_disorder

LABELS = {"memkv.io/node": "true"}
STEP_S = 0.25
AT_ONCE = 12
IN_TURN = "the ways in turn"
WAYS = list(FAULTS) if os.environ.get("MEMKV_FAULT_CASES") == "all" else [IN_TURN]
MARGIN = 3  # requests after the last one of the undisturbed run

Object = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A part of a pool's life."""

    has_pool: bool
    """Whether there is a pool that is ready when it begins."""
    begin: Callable[[Cluster], Awaitable[None]]
    is_over: Callable[[Cluster], bool]


async def make(cluster: Cluster) -> None:
    await cluster.make_pool()


async def grow(cluster: Cluster) -> None:
    await cluster.kubelets.add_node("n3", LABELS)


async def lose(cluster: Cluster) -> None:
    cluster.kubelets.nodes.of("n2").up = False
    await cluster.kubelets.set_node_ready("n2", False)


async def delete(cluster: Cluster) -> None:
    await cluster.api.request("DELETE", f"{PATH}/memkvpools/{POOL}", None, {})


def owners(cluster: Cluster) -> set[str]:
    found = cluster.map
    return {found.workers[index].node_name for index in unpack_owners(found.owners)}


def serves(cluster: Cluster, *names: str) -> bool:
    settled = cluster.condition("Rebalanced")["status"] == "True"
    return cluster.has_map and settled and owners(cluster) == set(names) and is_told(cluster)


def is_told(cluster: Cluster) -> bool:
    """Whether the status speaks of the map that is published."""
    status = cluster.pool["status"]
    told = status.get("shardMap", {}).get("epoch") == cluster.map.version.epoch
    return bool(told and status["capacity"]["total"] != "0")


def is_lost(cluster: Cluster) -> bool:
    return serves(cluster, "n1") and cluster.condition("NodesReady")["reason"] == "NodeLost"


def is_gone(cluster: Cluster) -> bool:
    left = ("memkvpools", "memkvnodes", "memkvshardmaps", "daemonsets", "configmaps")
    return not any(map(cluster.api.all_of, left))


def made(cluster: Cluster) -> bool:
    return cluster.is_ready() and serves(cluster, "n1", "n2")


SCENARIOS = {
    "created": Scenario(False, make, made),
    "grown": Scenario(True, grow, lambda c: c.is_ready() and serves(c, "n1", "n2", "n3")),
    "a node lost": Scenario(True, lose, is_lost),
    "deleted": Scenario(True, delete, is_gone),
}


async def looks(cluster: Cluster, operator: Operator, count: int) -> None:
    """Wait for so many looks at the pool: a second each, by resync."""
    until = cluster.reconciles(operator) + count
    await cluster.until(lambda: cluster.reconciles(operator) >= until)


async def run_through(
    scenario: Scenario, arm: Callable[[FaultyApi], None], expected: Object | None = None
) -> tuple[Object, int]:
    """Run a scenario until there is what is expected, or until it is over and settled; `arm` is
    given the operator's connection when it begins.

    Return what there is at its end, and how many requests the operator made in it.
    """
    cluster = Cluster(LoopClock(), STEP_S)
    way = FaultyApi(cluster.api)
    for name in ("n1", "n2"):
        await cluster.kubelets.add_node(name, LABELS)
    async with cluster.operator(api=way) as operator:
        await cluster.until(lambda: operator.leads)
        if scenario.has_pool:
            await cluster.make_pool()
            await cluster.until(lambda: made(cluster))
        before = len(way.requests)
        arm(way)
        await scenario.begin(cluster)
        await cluster.until(lambda: scenario.is_over(cluster))
        if expected is not None:
            await cluster.until(lambda: snapshot(cluster) == expected)
        elif not is_gone(cluster):
            await looks(cluster, operator, 3)
        count = len(way.requests) - before
        if expected is None and not is_gone(cluster):
            # What is told of a node may be held back so long; only its status is written then.
            await looks(cluster, operator, NODE_PAUSE_MS // 1000)
        way.fault = lambda number: None
        way.disorder = lambda: None
    return snapshot(cluster), count


PASSING = ("leases", "events", "pods", "nodes", "memkvshardmaps")
"""Kinds whose objects differ from run to run, or are others'."""


def snapshot(cluster: Cluster) -> Object:
    """Return what there is, without what differs between two runs that went the same way."""
    found: Object = {}
    for path, item in cluster.api.objects.items():
        if path.split("/")[-2] not in PASSING:
            meta = {k: item["metadata"].get(k) for k in ("labels", "annotations", "finalizers")}
            status = without_chance(item.get("status", {}))
            found[path] = {**item, "metadata": without_chance(meta), "status": status}
    if cluster.has_map:
        shard_map = cluster.map
        found["workers"] = {(w.node_name, w.state.name) for w in shard_map.workers}
        found["owners"] = [shard_map.workers[i].node_name for i in unpack_owners(shard_map.owners)]
    return found


CHANCE = frozenset(
    {
        "lastTransitionTime", "lineage", "term", "epoch", "digest", "publishedAt", "host", "podIP",
        "podUID", "appliedEpoch", "incarnation", "message", "memkv.io/spec-hash",
    }
)  # fmt: skip


def without_chance(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_chance(one) for key, one in value.items() if key not in CHANCE}
    return [without_chance(one) for one in value] if isinstance(value, list) else value


@pytest.mark.timeout(900)  # dozens of clusters, on whatever is left of the machine
@pytest.mark.parametrize("fault", WAYS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_one_request_may_fail(scenario: str, fault: str) -> None:
    """The first, the second, and so on to the last of all that the operator makes."""

    async def test() -> None:
        undisturbed, count = await run_through(SCENARIOS[scenario], lambda way: None)
        faults = list(FAULTS.values()) if fault == IN_TURN else [FAULTS[fault]]
        limit = asyncio.Semaphore(AT_ONCE)
        failed: list[int] = []

        async def fail(number: int) -> None:
            def arm(way: FaultyApi) -> None:
                at = len(way.requests) + number
                way.fault = lambda made: faults[number % len(faults)] if made == at else None
                ways.append(way)

            ways: list[FaultyApi] = []
            async with limit:
                await run_through(SCENARIOS[scenario], arm, undisturbed)
            failed.append(ways[0].failed)

        await asyncio.gather(*(fail(number) for number in range(1, count + MARGIN)))
        print(f"{scenario}: each of {count} requests failed with {fault}")
        assert sum(failed) >= count // 2  # the last ones are not made each time

    run_simulated(test())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_watches_may_lie(scenario: str, seed: int) -> None:
    """A third of all events is lost, comes twice or too early, or ends its watch with 410."""

    async def test() -> None:
        undisturbed, _ = await run_through(SCENARIOS[scenario], lambda way: None)
        disturbed: list[Disorder] = []

        def arm(way: FaultyApi) -> None:
            chance = some_disorder(seed, 33)

            def disorder() -> Disorder | None:
                found = chance()
                if found is not None:
                    disturbed.append(found)
                return found

            way.disorder = disorder

        await run_through(SCENARIOS[scenario], arm, undisturbed)
        assert disturbed

    run_simulated(test())
