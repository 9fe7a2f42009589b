"""The agents of this release: where they are, what they say, and what they are told."""

import asyncio
import logging
from collections.abc import Callable

from memkv.clock import Clock
from memkv.errors import ConfigError, MemKVError
from memkv.metadata.endpoint import join_endpoint
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.metadata.kubernetes.listing import Listing
from memkv.metadata.kubernetes.reflector import Reflector
from memkv_operator.api.cluster import AgentPod, read_agent_pod
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import AGENT_SELECTOR, PODS
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.api.unread import read_rest
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls
from memkv_operator.nodes.agent_admin import DialAgent
from memkv_operator.nodes.agent_poller import AgentPoller
from memkv_operator.nodes.polling import Target
from memkv_operator.plan.agent_set import why_none_runs
from memkv_operator.plan.claims import wants_drives
from memkv_operator.plan.disks import AgentSeen
from memkv_operator.plan.drive_desk import DriveDesk, DriveSnapshot
from memkv_operator.plan.pod_trouble import OF_AGENT, explained
from memkv_operator.run.agent_sets import AgentSets
from memkv_operator.run.agents_identity import AgentsIdentity
from memkv_operator.run.view import ClusterView

log = logging.getLogger("memkv.operator.agents")

STEP_S = 0.5
INFORMED_AFTER_S = 5.0  # an agent that does not answer at take-over holds nothing up for longer


class Agents:
    """All agents, while this operator leads. On one event loop."""

    def __init__(
        self,
        api: ApiServer,
        namespace: str,
        dial: DialAgent,
        clock: Clock,
        view: ClusterView,
        concerns: Callable[[str], None],
        interval_s: float,
    ) -> None:
        """`namespace`: the operator's own. `concerns` is told the key of each pool that should be
        looked at. Nothing runs before `run`."""
        self._view = view
        self._clock = clock
        self._concerns = concerns
        self._identity = AgentsIdentity(Objects(api), namespace, clock)
        self._sets = AgentSets(Objects(api), namespace, clock)
        self._poller = AgentPoller(dial, self._on_seen, interval_s)
        self._pods: dict[str, AgentPod] = {}
        self._problem = ""
        self._last: dict[str, AgentSeen] = {}
        self._pools: dict[str, tuple[JsonObject, Pool]] = {}
        self._decided: tuple[DriveSnapshot, DriveDesk] | None = None
        """The last decision, and what it went by."""
        self._started_s = clock.monotonic_ns() / 1e9
        self._reflector = Reflector(
            api, PODS.path(namespace), {"labelSelector": AGENT_SELECTOR}, self, clock
        )

    # --- answers -----------------------------------------------------------------------------

    async def why_none(self) -> tuple[str, str] | None:
        """Return (reason, message) of why no agent runs; None: there are pods of agents."""
        if self._pods:
            return None
        try:
            found = await self._sets.look()
        except MemKVError as error:
            return "AgentMissing", (
                f"no pod of one is there, and why cannot be asked ({error}): kubectl get daemonset "
                f"-A -l {AGENT_SELECTOR}; without any, helm upgrade RELEASE memkv --reuse-values "
                "--set agent.enabled=true"
            )
        return why_none_runs(found, self._view.kube_nodes.values())

    @property
    def informed(self) -> bool:
        """Whether agents had the time to answer: what is said of drives before that would be
        wrong, and right again a second later."""
        if not self._reflector.synced.is_set():
            return False
        waited_s = self._clock.monotonic_ns() / 1e9 - self._started_s
        targets = {pod.node_name for pod in self._pods.values()}
        return waited_s >= INFORMED_AFTER_S or targets <= self._poller.seen.keys()

    def decide(self) -> DriveDesk:
        """Decide on the drives of all nodes by what is known now, and have agents told. Asked at
        each look at any pool, so the decision before is given again while it still holds."""
        snapshot = self._snapshot()
        if self._decided is not None and self._decided[0] == snapshot:
            return self._decided[1]
        desk = DriveDesk(snapshot)
        self._decided = snapshot, desk
        for node in self._poller.seen:
            orders = desk.orders_of(node)
            if orders is not None:
                self._poller.orders[node] = orders
            else:
                self._poller.orders.pop(node, None)
        return desk

    def _snapshot(self) -> DriveSnapshot:
        """Return all that is decided by. What does not change is the same objects each time, so
        that comparing is cheap."""
        pools = self.pools()
        with_drives = [pool for pool in pools if wants_drives(pool)]
        return DriveSnapshot(
            with_drives,
            dict(self._view.kube_nodes) if with_drives else {},
            {pool.key: self._view.memkv_nodes_of(pool.key) for pool in with_drives},
            self._seen(),
            frozenset(
                (pool.key, pod.node_name)
                for pool in with_drives
                for pod in self._view.pods_of(pool.key)
            ),
            {
                pool.key: self._view.memkv_nodes_of(pool.key)
                for pool in pools
                if not pool.spec.groups
            },
        )

    def pools(self) -> list[Pool]:
        """Return all pools; of those that cannot be read, what is known of them."""
        self._pools = {
            key: (manifest, self.read(manifest)) for key, manifest in self._view.pools.items()
        }
        return [pool for _, pool in self._pools.values()]

    def read(self, manifest: JsonObject) -> Pool:
        """Return a pool; of one that cannot be read, what is known of it."""
        known, before = self._pools.get(read_meta(Reader(manifest)).key, (None, None))
        if before is not None and known is manifest:
            return before
        try:
            return read_pool(manifest)
        except ConfigError:
            return read_rest(manifest, before)  # its reconcile says so

    # --- running -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Go on until cancelled. No error of the API server ends it."""
        reflecting = asyncio.create_task(self._reflector.run())
        try:
            while not reflecting.done():
                await self._step()
                await asyncio.sleep(STEP_S)
            reflecting.result()
        finally:
            reflecting.cancel()
            await asyncio.gather(reflecting, return_exceptions=True)
            await self._poller.stop()

    async def _step(self) -> None:
        """Poll the pods there are. Their identity is made when the first one waits for it."""
        if not self._pods:
            self._poller.poll({})
            return
        try:
            tls = await self._identity.ensure()
        except MemKVError as error:
            if str(error) != self._problem:
                level = logging.ERROR if isinstance(error, ConfigError) else logging.INFO
                log.log(level, "the agents' identity: %s", error)
            self._problem = str(error)
            return
        self._problem = ""
        self._poller.poll(
            {pod.node_name: self._target(pod, tls) for pod in self._pods.values() if pod.ip}
        )

    def _target(self, pod: AgentPod, tls: AdminTls) -> Target:
        return Target(join_endpoint(pod.ip, pod.port), pod.uid, tls)

    def _seen(self) -> dict[str, AgentSeen]:
        """Return what is known of each agent there is, also of one that cannot be asked."""
        seen = {
            pod.node_name: AgentSeen(
                pod.uid, None, self._problem or _trouble_of(pod) or "its pod is starting"
            )
            for pod in self._pods.values()
        }
        return {**seen, **self._poller.seen}

    def _on_seen(self, node: str, seen: AgentSeen) -> None:
        before = self._last.get(node)
        if before is not None and _same(before, seen):
            return
        self._last[node] = seen
        self._concern_all()

    def _concern_all(self) -> None:
        for pool in self.pools():
            if wants_drives(pool):
                self._concerns(pool.key)

    # --- as a reflector's listener -----------------------------------------------------------

    def replaced(self, listing: Listing) -> None:
        """These are the agents' pods."""
        self._pods = {}
        for item in listing.items:
            self._note(item)
        self._concern_all()

    def changed(self, item: JsonObject) -> None:
        """A pod is new or has changed."""
        before = dict(self._pods)
        self._note(item)
        if self._pods != before:
            self._concern_all()

    def deleted(self, item: JsonObject) -> None:
        """A pod is gone."""
        self._pods.pop(read_meta(Reader(item)).name, None)
        self._concern_all()

    def _note(self, item: JsonObject) -> None:
        pod = read_agent_pod(item)
        if pod.node_name and not pod.deleting:
            self._pods[pod.name] = pod
        else:
            self._pods.pop(pod.name, None)


def _trouble_of(pod: AgentPod) -> str:
    return explained(pod, OF_AGENT)[1] if pod.trouble else ""


def _same(before: AgentSeen, now: AgentSeen) -> bool:
    return (before.pod_uid, before.facts, before.reachable) == (
        now.pod_uid, now.facts, now.reachable,
    )  # fmt: skip
