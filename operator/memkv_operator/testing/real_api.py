"""The operator, kopf included, on a real API server that has neither kubelets nor controllers."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from memkv.errors import RetryLater
from memkv.metadata.kubernetes.api_server import APPLY, MERGE, ApiServer, connect_api_server
from memkv.metadata.kubernetes.errors import NotFound
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.shardmap_object import map_of
from memkv.shardmap import ShardMap
from memkv.testing.simulated_kubelets import SimulatedKubelets
from memkv_operator.api.names import MEMKV_NODES, POOLS, SHARD_MAPS, Resource
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.run.process import Connect, Operator
from memkv_operator.run.settings import Settings
from memkv_operator.testing.cluster import POOL, SPEC, pause
from memkv_operator.testing.tasks import end_task

IN_TIME_S = 240.0  # a quarter of a minute on an idle machine
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class RealApi:
    """A namespace of a real API server, with simulated kubelets and the operator as it runs."""

    def __init__(self, api: ApiServer, namespace: str, network: str = "10.1") -> None:
        """`network`: the first half of the addresses of its pods."""
        self.api = api
        self.namespace = namespace
        self.kubelets = SimulatedKubelets(api, namespace, network)
        self.label = {f"memkv.io/{namespace}": "true"}
        self.root = f"/apis/memkv.io/v1alpha1/namespaces/{namespace}"
        self.names: list[str] = []
        self.has_ended: Callable[[], bool] = lambda: True
        """Whether the operator that was started last has ended, as one does that lost its Lease."""
        self._running: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def operator(
        self, name: str = "a", lease_ms: int = 30_000, **changes: Any
    ) -> AsyncIterator[Operator]:
        """Run one operator process; the rest as `make_operator`."""
        operator = self.make_operator(name, lease_ms, **changes)
        async with self.running(operator):
            yield operator

    def make_operator(
        self,
        name: str,
        lease_ms: int,
        connect: Connect = connect_api_server,
        authority_grace_s: float = 900.0,
        ticket_overlap_s: float = 86_400.0,
        metadata_binding: str = "",
    ) -> Operator:
        """Return one operator process of this namespace, which nobody runs yet.
        `authority_grace_s`: between the phases in which an authority or the key of tickets is
        replaced; `ticket_overlap_s`: how long the old key is taken; `metadata_binding`: in which it
        enters metadata pods."""
        lease = LeaseConfig(
            self.namespace, "memkv-operator", name, lease_ms, lease_ms * 2 // 3, lease_ms // 10
        )
        settings = Settings(
            lease, "memkv:1", (self.namespace,), "127.0.0.1", 0, resync_s=2.0, step_s=0.1,
            authority_grace=timedelta(seconds=authority_grace_s),
            ticket_overlap=timedelta(seconds=ticket_overlap_s),
            metadata_binding=metadata_binding,
        )  # fmt: skip
        return Operator(
            settings, dial=self.kubelets.nodes.dial, connect=connect,
            lease_aside=connect is connect_api_server,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self, operator: Operator) -> AsyncIterator[None]:
        """Run an operator meanwhile."""
        running = asyncio.create_task(operator.run())
        self.has_ended = running.done
        self._running.append(running)
        try:
            yield
        finally:
            self._running.remove(running)
            await end_task(running)

    async def until(
        self,
        holds: Callable[[], Awaitable[bool]],
        within_s: float = IN_TIME_S,
        step_s: float = 0.1,
    ) -> None:
        """Let kubelets work until something holds. TimeoutError when it does not in time, and what
        ended an operator when one did: nothing would come of waiting."""
        async with asyncio.timeout(within_s):
            while True:
                for ended in filter(asyncio.Task.done, self._running):
                    ended.result()
                await self.kubelets.tick()
                found = await self.map()
                if found is not None:
                    self.kubelets.nodes.take_over(found)
                if await holds():
                    return
                await pause(step_s)

    async def add_nodes(self, count: int) -> None:
        for _ in range(count):
            name = f"{self.namespace}-n{len(self.names)}"
            self.names.append(name)
            await self.kubelets.add_node(name, self.label)

    async def make_pool(self, **changes: Any) -> None:
        group = {**SPEC["nodeGroups"][0], "nodeSelector": self.label}
        manifest: dict[str, Any] = {
            "apiVersion": "memkv.io/v1alpha1",
            "kind": "MemKVPool",
            "metadata": {"name": POOL},
            "spec": {
                **SPEC, "nodeGroups": [group], "disruption": {"nodeLostGraceSeconds": 5},
                **changes,
            },
        }  # fmt: skip
        await self.api.request("POST", f"{self.root}/memkvpools", None, manifest)

    async def get(self, path: str) -> JsonObject | None:
        try:
            return await self.api.request("GET", path)
        except NotFound:
            return None

    async def pool(self) -> dict[str, Any]:
        found: Any = await self.get(f"{self.root}/memkvpools/{POOL}")
        return found or {}

    async def condition(self, type_: str) -> dict[str, Any]:
        conditions = (await self.pool()).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {"status": "", "reason": ""})

    async def annotate(self, name: str, value: str) -> None:
        """Annotate the pool, as a person does."""
        patch: JsonObject = {"metadata": {"annotations": {name: value}}}
        await self.api.request("PATCH", f"{self.root}/memkvpools/{POOL}", None, patch, MERGE)

    async def is_ready(self) -> bool:
        return bool((await self.condition("Ready"))["status"] == "True")

    async def map(self) -> ShardMap | None:
        found = await self.get(f"{self.root}/memkvshardmaps/{POOL}")
        return map_of(found) if found is not None else None

    async def prepare(self, crds: Sequence[JsonObject]) -> None:
        """Make the kinds of MemKV, the namespace, and the account that pods run as."""
        for crd in crds:
            meta: Any = crd["metadata"]
            await self.api.request(
                "PATCH", f"{CRDS}/{meta['name']}", {"fieldManager": "test", "force": "true"},
                crd, APPLY,
            )  # fmt: skip
        await self.make_namespace()
        async with asyncio.timeout(IN_TIME_S):
            for resource in (POOLS, MEMKV_NODES, SHARD_MAPS):
                while not await self._serves(resource):
                    await pause(0.1)

    async def make_namespace(self) -> None:
        """Make the namespace, and the account that pods run as."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        namespace: JsonObject = {"metadata": {"name": self.namespace, "labels": labels}}
        await self.api.request("POST", "/api/v1/namespaces", None, namespace)
        accounts = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        await self.api.request("POST", accounts, None, {"metadata": {"name": "default"}})

    async def drop_pools(self) -> None:
        """Delete the pools that are left. No controller ends the namespace: they would stay for
        ever, for every operator that looks at all namespaces."""
        listed: Any = await self.get(f"{self.root}/memkvpools")
        for pool in listed["items"] if listed is not None else ():
            path = f"{self.root}/memkvpools/{pool['metadata']['name']}"
            with contextlib.suppress(NotFound):
                released: JsonObject = {"metadata": {"finalizers": None}}
                await self.api.request("PATCH", path, None, released, MERGE)
                await self.api.request("DELETE", path)

    async def _serves(self, resource: Resource) -> bool:
        try:
            return await self.get(resource.path()) is not None
        except RetryLater:  # "storage is (re)initializing"
            return False


def run_on_a_real_api(
    crds: Sequence[JsonObject], test: Callable[[RealApi], Awaitable[None]]
) -> None:
    """Run a test in an event loop, in a namespace of its own; KUBECONFIG says where."""

    async def main() -> None:
        api = await connect_api_server()
        real = RealApi(api, f"test-{uuid.uuid4().hex[:8]}")
        try:
            await real.prepare(crds)
            await test(real)
        finally:
            await real.drop_pools()
            for name in real.names:
                await api.request("DELETE", f"/api/v1/nodes/{name}")
            await api.request("DELETE", f"/api/v1/namespaces/{real.namespace}")
            await api.close()

    asyncio.run(main())


async def install_kind(real: RealApi, crd: dict[str, Any], resource: Resource) -> None:
    """Make a kind of somebody else's, and wait until it is served."""
    query = {"fieldManager": "test", "force": "true"}
    await real.api.request("PATCH", f"{CRDS}/{crd['metadata']['name']}", query, crd, APPLY)
    async with asyncio.timeout(IN_TIME_S):
        while True:
            with contextlib.suppress(NotFound, RetryLater):
                await real.api.request("GET", resource.path(real.namespace))
                return
            await pause(0.1)
