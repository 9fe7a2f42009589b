"""A whole cluster in one process: an API server in memory, simulated kubelets, real operators.

kopf alone is missing: it needs a real API server, which tests/apiserver has.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from memkv.clock import Clock, SystemClock
from memkv.metadata.kubernetes.api_server import MERGE, ApiServer, Observer
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.listing import Listing
from memkv.metadata.kubernetes.reflector import Reflector
from memkv.metadata.kubernetes.shardmap_object import map_of
from memkv.shardmap import ShardMap
from memkv.testing.api_server import FakeApiServer
from memkv.testing.simulated_kubelets import SimulatedKubelets
from memkv_operator.api.names import Resource
from memkv_operator.api.times import rfc3339
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.run.kopf_watch import BY_KOPF, OnEvent
from memkv_operator.run.process import Operator
from memkv_operator.run.settings import Settings
from memkv_operator.testing.agents import FakeAgent, FakeAgents, FakeDisk
from memkv_operator.testing.tasks import end_task

NAMESPACE = "inference"
POOL = "pool-a"
PATH = f"/apis/memkv.io/v1alpha1/namespaces/{NAMESPACE}"
IN_TIME_S = 240.0  # seconds on an idle machine

LABELS = {"memkv.io/node": "true"}
"""Of nodes that the pool selects."""
SPEC: dict[str, Any] = {
    "nodeGroups": [
        {
            "name": "flash",
            "nodeSelector": {"memkv.io/node": "true"},
            "memory": {"size": "1Gi"},
            "storage": {"file": {"hostPath": "/var/lib/memkv", "size": "20Gi"}},
        }
    ],
    "network": {
        "mode": "PodNetwork", "payloadEncryption": "None", "rdma": {"mode": "Disabled"},
    },
    "sharding": {"slots": 1024, "maxMovingSlotsPercent": 100},
    "metadata": {"replicas": 1, "tls": {"mode": "Disabled"}, "auth": {"mode": "None"}},
    "disruption": {"nodeLostGraceSeconds": 1},
}  # fmt: skip


async def pause(seconds: float) -> None:
    """Let others work for a moment, between two looks at what they did."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


class ReflectedWatch:
    """An EventWatch without kopf."""

    def __init__(self, api: ApiServer, on_event: OnEvent, clock: Clock) -> None:
        self._reflectors = [
            Reflector(api, kind.path(), {}, _Listener(kind, on_event), clock) for kind in BY_KOPF
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self.alive = True

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(one.run()) for one in self._reflectors]
        for one in self._reflectors:
            await one.synced.wait()

    async def ended(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass
class _Listener:
    kind: Resource
    on_event: OnEvent

    def replaced(self, listing: Listing) -> None:
        for item in listing.items:
            self.on_event(self.kind, None, item)

    def changed(self, item: JsonObject) -> None:
        self.on_event(self.kind, "MODIFIED", item)

    def deleted(self, item: JsonObject) -> None:
        self.on_event(self.kind, "DELETED", item)


class Cluster:
    """An API server, kubelets, and operators."""

    def __init__(self, clock: Clock | None = None, step_s: float = 0.02) -> None:
        """`clock`: of everybody in it. `step_s`: between two looks at what changes all the time."""
        self._clock = clock or SystemClock()
        self._step_s = step_s
        self.api = FakeApiServer()
        self.kubelets = SimulatedKubelets(self.api, NAMESPACE)
        self.api.now = lambda: rfc3339(self._clock.wall_s())
        self.agents = FakeAgents()
        self.kubelets.hand_drives = self.agents.hand_drives
        self._decoded: tuple[object, ShardMap] | None = None
        """The stored map that was asked for last, and what is in it."""
        self.has_ended: Callable[[], bool] = lambda: True
        """Whether the operator that was started last has ended, as one does that lost its Lease."""
        self._running: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def operator(
        self,
        name: str = "a",
        lease_ms: int = 30_000,
        api: ApiServer | None = None,
        namespaces: tuple[str, ...] = (),
    ) -> AsyncIterator[Operator]:
        """Run one operator process beside the kubelets. `api`: its own way to the API server.
        `namespaces`: that it looks at; none: all."""
        way = api or self.api
        lease = LeaseConfig(
            NAMESPACE, "memkv-operator", name, lease_ms, lease_ms * 2 // 3, lease_ms // 10
        )
        settings = Settings(
            lease,
            "memkv:1",
            namespaces=namespaces,
            http_host="127.0.0.1",
            http_port=0,
            metadata_binding="memkv-metadata",
            resync_s=1.0,
            step_s=self._step_s,
            agent_interval_s=0.05,
            list_again_s=2.0,
        )

        async def connect(observer: Observer) -> ApiServer:
            return way

        operator = Operator(
            settings,
            clock=self._clock,
            dial=self.kubelets.nodes.dial,
            dial_agent=self.agents.dial,
            connect=connect,
            make_event_watch=lambda namespaces, on_event: ReflectedWatch(
                way, on_event, self._clock
            ),
        )
        running = asyncio.create_task(operator.run())
        self.has_ended = running.done
        self._running.append(running)
        try:
            yield operator
        finally:
            self._running.remove(running)
            await end_task(running)

    async def until(self, holds: Callable[[], bool | Awaitable[bool]]) -> None:
        """Let kubelets work until something holds. TimeoutError when it does not in time, and what
        ended the last operator when none is left."""
        async with asyncio.timeout(IN_TIME_S):
            while True:
                await self.kubelets.tick()
                if self.has_map:
                    self.kubelets.nodes.take_over(self.map)
                found = holds()
                if found if isinstance(found, bool) else await found:
                    return
                if self._running and all(map(asyncio.Task.done, self._running)):
                    self._running[-1].result()  # nothing would come of waiting
                await pause(self._step_s)

    async def add_agent(self, node: str, *disks: FakeDisk) -> FakeAgent:
        """Run an agent on a node, in the operator's own namespace."""
        agent = FakeAgent(node)
        agent.add(*disks)
        host = f"10.9.0.{len(self.agents.by_host) + 1}"
        self.agents.by_host[host] = agent
        await self.api.request("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", None, {
            "kind": "Pod",
            "metadata": {
                "name": f"agent-{node}",
                "labels": {
                    "app.kubernetes.io/component": "agent", "app.kubernetes.io/part-of": "memkv",
                },
            },
            "spec": {
                "nodeName": node,
                "containers": [{"ports": [{"name": "admin", "containerPort": 9472}]}],
            },
            "status": {"podIP": host},
        })  # fmt: skip
        return agent

    async def make_pool(self, name: str = POOL, **changes: Any) -> None:
        manifest: dict[str, Any] = {
            "kind": "MemKVPool", "metadata": {"name": name}, "spec": {**SPEC, **changes},
        }  # fmt: skip
        await self.api.request("POST", f"{PATH}/memkvpools", None, manifest)

    async def change_pool(self, patch: JsonObject) -> None:
        """Change the pool as a person would."""
        path = f"{PATH}/memkvpools/{POOL}"
        await self.api.request("PATCH", path, None, patch, MERGE)

    def ready_pods(self) -> int:
        """Return how many data-plane pods are ready and stay."""
        return sum(
            any(c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
            and "deletionTimestamp" not in pod["metadata"]
            for pod in self.api.all_of("pods")
        )

    def reconciles(self, operator: Operator) -> int:
        """Return how often an operator looked at a pool and ended well."""
        found = operator.metrics.registry.get_sample_value(
            "memkv_operator_reconcile_total", {"result": "ok"}
        )
        return int(found or 0)

    @property
    def pool(self) -> dict[str, Any]:
        return self.api.objects[f"{PATH}/memkvpools/{POOL}"]

    def condition(self, type_: str) -> dict[str, Any]:
        conditions = self.pool.get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {"status": "", "reason": ""})

    def is_ready(self) -> bool:
        return bool(self.condition("Ready")["status"] == "True")

    @property
    def has_map(self) -> bool:
        return f"{PATH}/memkvshardmaps/{POOL}" in self.api.objects

    @property
    def map(self) -> ShardMap:
        stored = self.api.objects[f"{PATH}/memkvshardmaps/{POOL}"]
        if self._decoded is None or self._decoded[0] is not stored:
            self._decoded = stored, map_of(stored)
        return self._decoded[1]


async def ready_pool(cluster: Cluster, nodes: int = 3, **changes: Any) -> None:
    """Make nodes n1, n2, ... that the pool selects, and the pool."""
    for number in range(1, nodes + 1):
        await cluster.kubelets.add_node(f"n{number}", LABELS)
    await cluster.make_pool(**changes)


def run_on_a_cluster(test: Callable[[Cluster], Awaitable[None]]) -> None:
    """Run a test in an event loop, on a cluster of its own."""

    async def main() -> None:
        await test(Cluster())

    asyncio.run(main())
