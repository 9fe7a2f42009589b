"""A leader dies with the node it runs on, and the operator that stood by takes over: real operators
on a cluster in memory, in simulated time.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from memkv.metadata.kubernetes.json_values import Manifest
from memkv.shardmap import unpack_owners
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.api.names import LEASES, NODE_LEASES_NAMESPACE
from memkv_operator.api.pool import read_pool
from memkv_operator.api.times import rfc3339_micro
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.heartbeats import Heartbeats
from memkv_operator.run.process import Operator
from memkv_operator.run.publishing import PoolPublisher
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC, Cluster, pause, ready_pool
from memkv_operator.testing.faulty_api import FAULTS, Fault, FaultyApi

NODES = ("n1", "n2", "n3")
DOOMED = "n3"
GRACE_S = 30
LEASE_MS = 15_000
STEP_S = 0.25
RENEW_S = 10.0
READS = f"/{NODE_LEASES_NAMESPACE}/"


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Kubelets:
    """Renew their nodes' Leases every ten seconds; a dead node's ends that."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._dead: set[str] = set()

    async def run(self) -> None:
        while True:
            for name in set(NODES) - self._dead:
                await self._renew(name)
            await pause(RENEW_S)

    def kill(self, name: str) -> None:
        """Let a node die: its worker and its kubelet are silent from now on."""
        self._dead.add(name)
        self._cluster.kubelets.nodes.of(name).up = False

    async def _renew(self, name: str) -> None:
        path = LEASES.path(NODE_LEASES_NAMESPACE, name)
        spec: Manifest = {
            "renewTime": rfc3339_micro(LoopClock().wall_s()), "leaseDurationSeconds": 40
        }  # fmt: skip
        known = self._cluster.api.objects.get(path)
        if known is not None:
            await self._cluster.api.request("PUT", path, None, {**known, "spec": spec})
            return
        lease: Manifest = {"kind": LEASES.kind, "metadata": {"name": name}, "spec": spec}
        await self._cluster.api.request("POST", path.removesuffix(f"/{name}"), None, lease)


class World:
    """A ready pool, two operators, and a way to end the one that leads."""

    def __init__(self) -> None:
        self.cluster = Cluster(LoopClock(), STEP_S)
        self.kubelets = Kubelets(self.cluster)
        self.leader_is_dead = False
        self.ways = [FaultyApi(self.cluster.api, self._fault), FaultyApi(self.cluster.api)]

    def _fault(self, number: int) -> Fault | None:
        return FAULTS["500"] if self.leader_is_dead else None

    async def live(self, test: Callable[[Operator, Operator], Awaitable[None]]) -> None:
        """Run a test, given who leads and who stands by."""
        renewing = asyncio.create_task(self.kubelets.run())
        await ready_pool(self.cluster, len(NODES), disruption={"nodeLostGraceSeconds": GRACE_S})
        async with self.cluster.operator("a", LEASE_MS, self.ways[0]) as leader:
            await self.cluster.until(self.cluster.is_ready)
            async with self.cluster.operator("b", LEASE_MS, self.ways[1]) as standby:
                await self.pass_time(40)
                assert leader.leads
                assert not standby.leads
                await test(leader, standby)
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)

    async def pass_time(self, seconds: float) -> None:
        until_s = now_s() + seconds
        await self.cluster.until(lambda: now_s() >= until_s)

    def reads(self, way: int) -> int:
        """Return how often an operator asked for Leases of kubelets."""
        return sum(READS in request for request in self.ways[way].requests)

    def owns_slots(self, name: str) -> bool:
        found = self.cluster.map
        return name in {found.workers[index].node_name for index in unpack_owners(found.owners)}


def test_nobody_reads_leases_of_kubelets_at_rest() -> None:
    async def main() -> None:
        world = World()

        async def test(leader: Operator, standby: Operator) -> None:
            before = world.reads(0)
            await world.pass_time(120)
            assert world.reads(0) == before
            assert world.reads(1) == 0

        await world.live(test)

    run_simulated(main())


def test_who_stands_by_reads_leases_of_kubelets_when_the_leader_is_late() -> None:
    async def main() -> None:
        world = World()

        async def test(leader: Operator, standby: Operator) -> None:
            world.leader_is_dead = True
            await world.cluster.until(lambda: world.reads(1) > 0)
            assert not standby.leads
            await world.cluster.until(lambda: standby.leads)
            # All nodes live and answer: nothing bad is said of them meanwhile, and some time after
            # it took over, nobody is suspected.
            until_s = now_s() + 30

            def is_over() -> bool:
                assert world.cluster.is_ready(), world.cluster.condition("Ready")
                return now_s() >= until_s

            await world.cluster.until(is_over)
            before = world.reads(1)
            await world.pass_time(60)
            assert world.reads(1) == before
            assert all(world.owns_slots(name) for name in NODES)

        await world.live(test)

    run_simulated(main())


def test_a_publisher_says_nothing_of_nodes_that_it_was_not_told_of() -> None:
    """It reads the stored map while its pool is looked at for the first time: it has asked all of
    no nodes by then, and knows nothing."""

    async def main() -> None:
        meta: Manifest = {"name": POOL, "namespace": NAMESPACE, "uid": "u"}
        pool = read_pool({"metadata": meta, "spec": SPEC})
        cluster = Cluster(LoopClock(), STEP_S)
        looks: list[float] = []
        publisher = PoolPublisher(
            pool, Objects(cluster.api), cluster.kubelets.nodes.dial, 0, LoopClock(),
            lambda: looks.append(now_s()), STEP_S, Heartbeats(),
        )  # fmt: skip
        running = asyncio.create_task(publisher.run())
        await pause(1)
        assert looks
        assert not publisher.informed
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_simulated(main())


@pytest.mark.parametrize(
    "not_ready_after_s", [18, 20, 50], ids="its Node not ready after {}".format
)
def test_a_node_that_dies_with_the_leader_is_out_in_time(not_ready_after_s: int) -> None:
    """Before the next leader takes over or after it, the cluster may call the Node not ready."""

    async def main() -> None:
        world = World()

        async def test(leader: Operator, standby: Operator) -> None:
            begun_s = now_s()
            world.leader_is_dead = True
            world.kubelets.kill(DOOMED)

            def is_over() -> bool:
                return now_s() - begun_s >= not_ready_after_s or not world.owns_slots(DOOMED)

            await world.cluster.until(is_over)
            await world.cluster.kubelets.set_node_ready(DOOMED, False)
            await world.cluster.until(lambda: not world.owns_slots(DOOMED))
            passed_s = now_s() - begun_s
            assert GRACE_S - RENEW_S <= passed_s <= GRACE_S + 5

        await world.live(test)

    run_simulated(main())
