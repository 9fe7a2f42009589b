"""One wrong answer to an operator, at each place in turn, between it and a real API server: a
request that fails, an event of a watch that is lost, comes twice or too late, a watch that ends.

Each case is a pool that one operator brings from an empty namespace to Ready; many of them at once.
MEMKV_FAULT_CASES says how many cases of each test are run, spread over all of them; "all": all.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from memkv.clock import SystemClock
from memkv_operator.api.names import SHARD_MAPS
from memkv_operator.testing.fault_proxy import FaultProxy
from memkv_operator.testing.fault_script import NthFaults, NthOfAll, RequestFault, WatchFault
from memkv_operator.testing.many_pools import ManyPools, snapshot
from memkv_operator.testing.map_history import Histories, check_history, histories_of
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
BehindProxy = Callable[[Callable[[RealApi, FaultProxy], Awaitable[None]]], None]
Case = TypeVar("Case")
Object = dict[str, Any]

CASES = os.environ.get("MEMKV_FAULT_CASES", "24")
AT_ONCE = 8
STARTS_SHARE = 0.3
NODES = 2
LOOKS = "memkv_operator_reconcile_total"
STEP_S = 0.5
HANGS = WatchFault.HANGS
CONVERGES_S = 240.0  # seconds on an idle machine
TIMEOUT = pytest.mark.timeout(3000 if CASES == "all" else 480)


def chosen(cases: Sequence[Case], share: float = 1.0) -> Sequence[Case]:
    """Return the cases that are run, and say how many they are. `share`: of what is asked for,
    where each takes longer."""
    asked = len(cases) if CASES == "all" else max(1, round(int(CASES) * share))
    count = min(len(cases), asked)
    print(f"\n{count} of {len(cases)} cases; MEMKV_FAULT_CASES=all runs them all")
    return [cases[number * len(cases) // count] for number in range(count)]


@dataclass
class Trial:
    """Pools of one operator behind a proxy."""

    pools: ManyPools
    script: NthFaults
    histories: Histories
    expected: Object = field(default_factory=dict)
    slowest_s: float = 0.0
    met: int = 0
    """Faults that came before their pool had converged."""
    failures: list[str] = field(default_factory=list)

    async def undisturbed(self) -> tuple[int, dict[str, int]]:
        """Make a pool without a fault, and note what comes of it. Return how many requests were
        made, and how many events came of each kind."""
        real = await self.pools.add_namespace()
        await self.pools.make_pool(real)
        await real.until(real.is_ready, CONVERGES_S, STEP_S)
        before = -1

        async def settled() -> bool:
            nonlocal before
            was, before = before, self.script.made[real.namespace]
            self.expected = await snapshot(real)
            return was == before

        await real.until(settled, CONVERGES_S, 2.5)  # its resync is in between
        made = self.script.made[real.namespace]
        heard = {
            kind: n for (where, kind), n in self.script.heard.items() if where == real.namespace
        }
        await self.pools.drop(real)
        return made, heard

    async def run(self, name: str, arm: Callable[[str], None]) -> None:
        """Make a pool with a fault (`arm` is given its namespace) and compare."""
        clock = SystemClock()
        begun_ns = clock.monotonic_ns()
        real = await self.pools.add_namespace()
        arm(real.namespace)
        found: Object = {}

        async def converged() -> bool:
            assert not self.pools.home.has_ended(), "the operator has ended"
            found.clear()
            found.update(await snapshot(real) if await real.is_ready() else {})
            return found == self.expected

        try:
            await self.pools.make_pool(real)
            await real.until(converged, CONVERGES_S, STEP_S)
            self.met += real.namespace in self.script.done
            check_history(self.histories[real.namespace])
        except (TimeoutError, AssertionError) as error:
            self.failures.append(f"{name}: {error!r} {differences(found, self.expected)}")
        self.slowest_s = max(self.slowest_s, (clock.monotonic_ns() - begun_ns) / 1e9)
        await self.pools.drop(real)

    async def run_all(
        self, cases: Sequence[tuple[str, Callable[[str], None]]], share_min: float
    ) -> None:
        """Run cases side by side; AssertionError names those that did not converge. `share_min`:
        of the faults that must come, for what they wait for does not happen each time."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def run(name: str, arm: Callable[[str], None]) -> None:
            async with limit:
                await self.run(name, arm)

        await asyncio.gather(*(run(*case) for case in cases))
        print(f"{self.met} of {len(cases)} faults came; the slowest took {self.slowest_s:.0f} s")
        assert not self.failures, "\n".join(self.failures)
        assert self.met >= share_min * len(cases)


def differences(found: Object, expected: Object) -> str:
    """Return which objects differ, for people."""
    differing = {
        key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
    }
    return "; ".join(f"{k}: {found.get(k)} is not {expected.get(k)}" for k in sorted(differing))


@pytest.fixture
def behind_proxy(
    on_real_api: OnRealApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Callable[[RealApi, FaultProxy], Awaitable[None]]], None]:
    """Runs a test in a namespace with nodes; operators that it starts meet the proxy's faults."""

    def run(test: Callable[[RealApi, FaultProxy], Awaitable[None]]) -> None:
        async def with_proxy(real: RealApi) -> None:
            await real.add_nodes(NODES)
            async with FaultProxy(Path(os.environ["KUBECONFIG"]), NthFaults()) as proxy:
                proxy.write_kubeconfig(tmp_path / "kubeconfig")
                monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
                await test(real, proxy)

        on_real_api(with_proxy)

    return run


@pytest.fixture
def on_trial(behind_proxy: BehindProxy) -> Callable[[Callable[[Trial], Awaitable[None]]], None]:
    """Runs a test with the operator of many pools."""

    def run(test: Callable[[Trial], Awaitable[None]]) -> None:
        async def with_operator(real: RealApi, proxy: FaultProxy) -> None:
            pools, script = ManyPools(real), NthFaults()
            proxy.script = script
            async with (
                histories_of(real.api, SHARD_MAPS.path()) as histories,
                pools.operator(),
            ):
                await test(Trial(pools, script, histories))
                assert not real.has_ended(), "the operator has ended"

        behind_proxy(with_operator)

    return run


OnTrial = Callable[[Callable[[Trial], Awaitable[None]]], None]


@TIMEOUT
def test_any_one_request_of_a_reconcile_may_fail(on_trial: OnTrial) -> None:
    async def test(trial: Trial) -> None:
        count, _ = await trial.undisturbed()
        cases = [(number, fault) for number in range(1, count + 1) for fault in RequestFault]
        print(f"{count} requests of a reconcile, {len(RequestFault)} faults")

        def case(number: int, fault: RequestFault) -> tuple[str, Callable[[str], None]]:
            def arm(namespace: str) -> None:
                trial.script.requests[namespace] = number, fault

            return f"request {number}: {fault.value}", arm

        await trial.run_all([case(*one) for one in chosen(cases)], share_min=0.7)

    on_trial(test)


@TIMEOUT
def test_any_one_event_of_a_watch_may_be_wrong(on_trial: OnTrial) -> None:
    async def test(trial: Trial) -> None:
        _, counts = await trial.undisturbed()
        cases = [
            (kind, number, fault)
            for kind in sorted(counts)
            for number in range(1, counts[kind] + 1)
            for fault in WatchFault
        ]
        print(f"{sum(counts.values())} events of {len(counts)} kinds, {len(WatchFault)} faults")

        def case(kind: str, number: int, fault: WatchFault) -> tuple[str, Callable[[str], None]]:
            def arm(namespace: str) -> None:
                trial.script.events[namespace] = kind, number, fault

            return f"event {number} of {kind}: {fault.value}", arm

        # All pools share the streams: a listing after the end of one tells what its events would.
        few = sorted(chosen(cases), key=lambda one: (one[2].ends_stream, one[2] is HANGS))
        await trial.run_all([case(*one) for one in few], share_min=0.4)

    on_trial(test)


@TIMEOUT
def test_any_one_request_of_an_operators_start_may_fail(behind_proxy: BehindProxy) -> None:
    """Discovery, lists, watches and the Lease, kopf's among them: it leads, and does not end."""

    async def test(real: RealApi, proxy: FaultProxy) -> None:
        pools = ManyPools(real)
        of_pool = await pools.add_namespace()
        await pools.make_pool(of_pool)

        async def start(script: NthOfAll) -> None:
            proxy.script = script
            async with pools.operator() as operator:

                async def looked() -> bool:
                    assert not real.has_ended(), f"request {script.number}: {script.fault}"
                    result = {"result": "ok"}
                    found = operator.metrics.registry.get_sample_value(LOOKS, result)
                    return bool(found) and await of_pool.is_ready()

                await of_pool.until(looked, CONVERGES_S)

        undisturbed = NthOfAll()
        await start(undisturbed)  # the pool is made by it
        undisturbed = NthOfAll()
        await start(undisturbed)
        numbers = range(1, undisturbed.made + 1)
        print(f"{undisturbed.made} requests of a start, {len(RequestFault)} faults")
        for number, fault in chosen(
            [(n, fault) for n in numbers for fault in RequestFault], STARTS_SHARE
        ):
            await start(NthOfAll(number, fault))

    behind_proxy(test)
