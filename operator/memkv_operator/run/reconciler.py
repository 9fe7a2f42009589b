"""Looks at one pool and does what its plan says. Level-triggered: what was heard does not matter,
only what is there."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from memkv.clock import Clock
from memkv.errors import ConfigError, MemKVError
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.conditions import Condition, condition, merged, read_conditions
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import POOLS
from memkv_operator.api.node import MemKVNode
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.api.times import rfc3339
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import Dial
from memkv_operator.nodes.polling import PollBudget
from memkv_operator.plan.actions import (
    Action,
    ApplyChild,
    Event,
    WritePoolStatus,
    record_of,
    side_by_side,
)
from memkv_operator.plan.claims import NAME_CLAIMED, claim_findings, drive_findings, wants_drives
from memkv_operator.plan.figures import FigureTurns
from memkv_operator.plan.heartbeats import Heartbeats
from memkv_operator.plan.identity import Fault, IdentityView
from memkv_operator.plan.pace import Paced, PoolPace
from memkv_operator.plan.planner import Observed, Plan, plan
from memkv_operator.plan.preflight import Finding, Preflight
from memkv_operator.plan.refusals import refusal_of
from memkv_operator.plan.strangers import EarlierPool
from memkv_operator.plan.ticket_keys import KeyPhase, keys_said
from memkv_operator.plan.wiping import Quiet
from memkv_operator.run import reviewers
from memkv_operator.run.agents import Agents
from memkv_operator.run.carry_out import Hands
from memkv_operator.run.events import EventPoster
from memkv_operator.run.identities import (
    LOOK_AGAIN_S,
    Identities,
    PoolIdentity,
    Said,
    Show,
    Unavailable,
)
from memkv_operator.run.monitors import AGAIN_S as MONITORS_AGAIN_S
from memkv_operator.run.monitors import Monitors
from memkv_operator.run.preflight import AGAIN_S, Preflights, is_wrong
from memkv_operator.run.publishing import INFORMED_AFTER_S, PoolPublisher
from memkv_operator.run.reviewers import Reviewers
from memkv_operator.run.settings import Settings
from memkv_operator.run.view import ClusterView
from memkv_operator.run.wipe_watch import WipeWatch

log = logging.getLogger("memkv.operator")

FAILURES_MAX = 3  # of one look; then the API server is unwell: the status alone is still tried
WIPE_LOOK_S = 1.0
EARLIER_POOL_S = 1.0  # its objects are collected meanwhile
SOON_S = 0.1  # changes that come together are one look


class Reconciler:
    """All pools of a leading operator."""

    def __init__(
        self,
        settings: Settings,
        view: ClusterView,
        objects: Objects,
        agents: Agents,
        dial: Dial,
        transitions: int,
        clock: Clock,
        enqueue: Callable[[str, float], None],
        heartbeats: Heartbeats,
        show_ends: Show = lambda pool, ends: None,
        met_bug: Callable[[], None] = lambda: None,
    ) -> None:
        """`transitions`: of the Lease. `enqueue` has a pool looked at after some seconds.
        `heartbeats` has what was read of `suspects`. `show_ends` is told when the certificates of a
        pool end; `met_bug` of each error of a publisher that nobody foresaw."""
        self._settings = settings
        self._view = view
        self._objects = objects
        self._agents = agents
        self._dial = dial
        self._transitions = transitions
        self._clock = clock
        self._enqueue = enqueue
        self._met_bug = met_bug
        self._heartbeats = heartbeats
        self._budget = PollBudget()
        self._hands = Hands(objects, view)
        self._identities = Identities(
            objects, clock, settings.authority_grace, show_ends, settings.ticket_overlap
        )
        self._preflights = Preflights(objects, clock)
        self._monitors = Monitors(objects, clock)
        self._reviewers = Reviewers(objects, clock, settings.metadata_binding)
        self._wipes = WipeWatch(clock)
        self._events = EventPoster(objects, settings.lease.identity, clock)
        self._publishers: dict[str, tuple[str, PoolPublisher, asyncio.Task[None]]] = {}
        self._figures: dict[str, FigureTurns] = {}
        self._paces: dict[str, PoolPace] = {}
        self._refused: dict[str, list[Finding]] = {}
        """Key of a pool -> what is said of children that could not be written in the last look."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the error that ended a publisher: leadership lost."""

    async def reconcile(self, key: str) -> None:
        """Bring one pool a step nearer to its spec."""
        manifest = self._view.pools.get(key)
        if manifest is None:
            await self._stop_publisher(key)
            self._view.forget_pool(key)
            self._agents.decide()  # its drives are nobody's now
            self._preflights.forget(key)
            self._monitors.forget(key)
            self._refused.pop(key, None)
            self._paces.pop(key, None)
            self._wipes.forget(key)
            return
        try:
            pool = read_pool(manifest)
        except ConfigError as error:
            if not read_meta(Reader(manifest)).deleting:
                await self._write_not_understood(manifest, str(error))
                return
            pool = self._agents.read(manifest)  # little of the spec is needed to let it go
        if pool.meta.deleting:
            await self._stop_publisher(key)
            self._identities.forget(pool)
            await self._reviewers.leave(pool)
            await self._carry_out(pool, await self._plan_deletion(pool))
            return
        publisher = await self._publisher_of(pool)
        claims = claim_findings(pool, self._agents.pools(), self._view.kube_nodes)
        said: Said | None = None
        if pool.has_tls and publisher.informed:
            said = keys_said(publisher.seen, publisher.view.shard_map)
        identity, view = await self._identity_of(pool, claims, said)
        preflight = await self._preflights.look(pool, self._view.children_of(pool.key))
        if is_wrong(preflight):
            self._enqueue(pool.key, AGAIN_S)
        monitored = await self._monitors.look(pool)
        if monitored is not None and not monitored.holds:
            self._enqueue(pool.key, MONITORS_AGAIN_S)
        claims = [*claims, *await self._review_findings(pool)]
        decided = await self._decide(pool, publisher, view, preflight, monitored, claims)
        tls = identity.admin if identity is not None else None
        publisher.update(pool, decided, tls)
        if not publisher.informed or not self._agents.informed:
            self._enqueue(pool.key, INFORMED_AFTER_S)
        if decided.under_way:
            self._enqueue(pool.key, self._settings.under_way_s)
        await self._carry_out(pool, decided)

    @property
    def suspects(self) -> frozenset[str]:
        """Nodes of maps that do not answer: whose kubelets' Leases are to be read."""
        publishers = (publisher for _, publisher, _ in self._publishers.values())
        return frozenset().union(*(publisher.suspects for publisher in publishers))

    async def prune(self) -> None:
        """Undo what was done for pools that went while no operator ran. MemKVError when that
        cannot be done now."""
        await self._reviewers.prune(self._view.pools.keys(), self._settings.namespaces)

    async def stop(self) -> None:
        """Stop publishing."""
        for key in list(self._publishers):
            await self._stop_publisher(key)

    # --- inside ------------------------------------------------------------------------------

    async def _identity_of(
        self, pool: Pool, claims: Sequence[Finding], said: Said | None
    ) -> tuple[PoolIdentity | None, IdentityView]:
        """Return the pool's identity, None without TLS or while there is none; and what of it is
        said to people. `said`: of keys of tickets, by the nodes."""
        if not pool.has_tls:
            self._identities.forget(pool)  # its Secrets stay, for the day when it has TLS again
            return None, IdentityView()
        found = self._identities.known(pool)
        try:
            if pool.spec.paused or any(one.reason == NAME_CLAIMED for one in claims):
                found = found or await self._identities.read(pool)
                return found, found.view if found is not None else IdentityView()
            found = await self._identities.ensure(pool, said)
        except Unavailable as error:
            self._enqueue(pool.key, LOOK_AGAIN_S)
            return None, IdentityView(faults=error.faults)
        except ConfigError as error:
            faults = (Fault("CertificatesUnavailable", str(error)),)
            if found is not None:  # what was in force goes on being so
                return found, replace(found.view, faults=faults)
            return None, IdentityView(faults=faults)
        view = found.view
        if view.faults or view.phase or view.tickets.phase is not KeyPhase.STEADY:
            pause_ns = found.look_again_ns - self._clock.monotonic_ns()
            self._enqueue(pool.key, max(0.0, pause_ns / 1e9))
        return found, view

    async def _review_findings(self, pool: Pool) -> list[Finding]:
        """Have the pool's metadata pods check tokens; say why they cannot."""
        if pool.spec.paused:
            return []
        if not pool.has_tls or pool.spec.auth_mode != "ServiceAccount":
            await self._reviewers.leave(pool)
            return []
        problem = await self._reviewers.enter(pool)
        if not problem:
            return []
        self._enqueue(pool.key, reviewers.LOOK_AGAIN_S)
        return [Finding("TokenReviewsForbidden", problem, False)]

    async def _decide(
        self,
        pool: Pool,
        publisher: PoolPublisher,
        identity: IdentityView,
        preflight: Preflight,
        monitored: Condition | None,
        claims: Sequence[Finding],
    ) -> Plan:
        drives = self._agents.decide().of_pool(pool)
        no_agents = await self._agents.why_none() if wants_drives(pool) else None
        if no_agents is not None:
            self._enqueue(pool.key, AGAIN_S)
        informed = publisher.informed and (self._agents.informed or not wants_drives(pool))
        memkv_nodes = self._view.memkv_nodes_of(pool.key)
        turn = self._figures_turn(pool, memkv_nodes) if informed else None
        observed = Observed(
            pool,
            dict(self._view.kube_nodes),
            self._view.pods_of(pool.key),
            memkv_nodes,
            self._view.children_of(pool.key),
            self._view.metadata_rollout(pool.key),
            dict(publisher.seen),
            publisher.view,
            informed,
            turn is not None,
            turn or (),
            identity,
            drives,
            [
                *claims,
                *drive_findings(pool, drives, no_agents),
                *self._refused.get(pool.key, ()),
            ],
            preflight=preflight,
            needed_elsewhere=(
                self._view.nodes_others_need(pool.key) if self._settings.annotates_nodes else None
            ),
            monitored=monitored,
            operator_namespace=self._settings.lease.namespace,
        )
        return await self._plan(observed)

    def _figures_turn(self, pool: Pool, memkv_nodes: Sequence[MemKVNode]) -> Collection[str] | None:
        turns = self._figures.setdefault(pool.key, FigureTurns(self._settings.resync_s))
        names = [node.node_name for node in memkv_nodes]
        return turns.take(names, self._clock.monotonic_ns())

    async def _plan_deletion(self, pool: Pool) -> Plan:
        """While drives are wiped, the end is looked at again and again: time decides, too."""
        drives = self._agents.decide().of_pool(pool)
        quiet: Mapping[str, Quiet] = {}
        if pool.spec.wipes_drives:
            self._enqueue(pool.key, WIPE_LOOK_S)
            quiet = self._wipes.look(pool, drives, self._view.kube_nodes)
        observed = Observed(
            pool,
            dict(self._view.kube_nodes),
            self._view.pods_of(pool.key),
            self._view.memkv_nodes_of(pool.key),
            self._view.children_of(pool.key),
            drives=drives,
            quiet=quiet,
        )
        return await self._plan(observed)

    async def _plan(self, observed: Observed) -> Plan:
        """Plan beside the event loop: for hundreds of nodes it takes so long that the Lease must
        not wait for it. What is observed must not change meanwhile."""
        wall_s = self._clock.wall_s()
        return await asyncio.to_thread(plan, observed, self._settings.own_image, wall_s)

    async def _carry_out(self, pool: Pool, decided: Plan) -> None:
        """Do all actions; one that fails does not keep the others back. Raises the first error."""
        first: MemKVError | None = None
        failures = 0
        refused: list[Finding] = []
        paced = self._paced(pool, decided.actions)
        unwritten = set(paced.held)
        for together in side_by_side(paced.actions):
            if failures >= FAILURES_MAX and not isinstance(together[0], WritePoolStatus):
                unwritten |= {record_of(action) for action in together}
                continue
            ends = await asyncio.gather(*(self._try(pool, action) for action in together))
            for action, error in zip(together, ends, strict=True):
                if error is None:
                    continue
                unwritten.add(record_of(action))
                if isinstance(error, Conflict):
                    # Read again, by the watch; the rest of the plan still holds.
                    self._enqueue(pool.key, SOON_S)
                    continue
                if isinstance(error, EarlierPool):
                    self._enqueue(pool.key, EARLIER_POOL_S)
                    continue
                first = first or error
                said = refusal_of(action.child, error) if isinstance(action, ApplyChild) else None
                if said is not None:
                    refused.append(said)
                else:
                    failures += 1
        self._refused[pool.key] = refused  # the next look says so
        # What is not written is planned again, and would be told people again and again.
        await self._tell(pool, [e for e in decided.events if e.record not in unwritten])
        if first is not None:
            raise first

    def _paced(self, pool: Pool, actions: Sequence[Action]) -> Paced:
        nodes = {node.meta.name: node.status for node in self._view.memkv_nodes_of(pool.key)}
        pace = self._paces.setdefault(pool.key, PoolPace())
        paced = pace.statuses.paced(actions, pool.status, nodes, self._now_ms())
        if paced.wait_ms:
            self._enqueue(pool.key, paced.wait_ms / 1000)
        return paced

    async def _tell(self, pool: Pool, events: Sequence[Event]) -> None:
        pace = self._paces.setdefault(pool.key, PoolPace())
        now, wait_ms = pace.events.paced(events, self._now_ms())
        if wait_ms:
            self._enqueue(pool.key, wait_ms / 1000)
        await self._events.post(pool, now)

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000

    async def _try(self, pool: Pool, action: Action) -> MemKVError | None:
        """Carry out one action. Return its error."""
        try:
            await self._hands.do(pool, action)
        except MemKVError as error:
            return error
        return None

    async def _publisher_of(self, pool: Pool) -> PoolPublisher:
        known = self._publishers.get(pool.key)
        if known is not None and known[0] == pool.meta.uid:
            return known[1]
        await self._stop_publisher(pool.key)
        publisher = PoolPublisher(
            pool,
            self._objects,
            self._dial,
            self._transitions,
            self._clock,
            lambda: self._enqueue(pool.key, SOON_S),
            self._settings.step_s,
            self._heartbeats,
            self._met_bug,
            self._budget,
        )
        task = asyncio.create_task(publisher.run())
        task.add_done_callback(self._publisher_ended)
        self._publishers[pool.key] = pool.meta.uid, publisher, task
        return publisher

    def _publisher_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.broken.done():
            return
        error = task.exception()
        if error is not None:
            self.broken.set_exception(error)

    async def _stop_publisher(self, key: str) -> None:
        _, _, task = self._publishers.pop(key, (None, None, None))
        self._figures.pop(key, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _write_not_understood(self, manifest: JsonObject, message: str) -> None:
        """The schema took a spec that this version cannot read: say so, and touch nothing."""
        meta = read_meta(Reader(manifest))
        status = Reader(manifest).object("status")
        conditions = [
            condition("ConfigValid", False, "SpecNotUnderstood", message),
            condition("Ready", False, "ConfigInvalid", message),
            condition("Stalled", True, "SpecNotUnderstood", "operator and CRD differ in version"),
        ]
        time = rfc3339(self._clock.wall_s())
        before = read_conditions(status)
        wanted: Manifest = {
            "observedGeneration": meta.generation,
            "conditions": merged(before, conditions, meta.generation, time),
        }
        if status.value != wanted:
            live = await self._objects.write_status(POOLS, meta.namespace, meta.name, wanted)
            self._view.changed(POOLS, live)
