"""Publishes the map of one pool while this operator leads.

A map is stored before anyone can see it: clients get it from the metadata service, which watches
what is stored. Where storing fails, the map waits and the same one is written again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from memkv.clock import Clock
from memkv.errors import CallerError, ConfigError, RetryLater
from memkv.metadata.endpoint import join_endpoint
from memkv.metadata.publisher import Outcome, PublisherState
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import rfc3339
from memkv_operator.kube.leadership import LeadershipLost
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls, Dial
from memkv_operator.nodes.facts import weighted
from memkv_operator.nodes.poller import NodePoller
from memkv_operator.nodes.polling import PollBudget, Target
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.health import MapView
from memkv_operator.plan.heartbeats import Heartbeats, suspects_of
from memkv_operator.plan.membership import Member
from memkv_operator.plan.planner import Plan
from memkv_operator.plan.shards import PoolMaps
from memkv_operator.plan.weights import counted_bytes
from memkv_operator.run.stored_map import StoredMap

log = logging.getLogger("memkv.operator.map")

RETRY_S_MIN, RETRY_S_MAX = 0.25, 10.0
INFORMED_AFTER_S = 5.0  # a node that does not answer at take-over holds nothing up for longer


class PoolPublisher:
    """Polls a pool's nodes and publishes its map. On one event loop."""

    def __init__(
        self,
        pool: Pool,
        objects: Objects,
        dial: Dial,
        transitions: int,
        clock: Clock,
        concerns: Callable[[], None],
        step_s: float,
        heartbeats: Heartbeats,
        met_bug: Callable[[], None] = lambda: None,
        budget: PollBudget | None = None,
    ) -> None:
        """`concerns` is called when the pool should be looked at; `heartbeats` has what was read of
        `suspects`; `met_bug` is called for each error that nobody foresaw. `budget`: of the polls
        of all pools. Nothing runs before `run`."""
        self.view = MapView()
        self._pool = pool
        self._members: Sequence[Member] = ()
        self._may_publish = False
        self._transitions = transitions
        self._clock = clock
        self._concerns = concerns
        self._step_s = step_s
        self._met_bug = met_bug
        self._stored = StoredMap(pool, objects)
        self._poller = NodePoller(pool.key, dial, self._on_seen, budget)
        self._heartbeats = heartbeats
        self._maps: PoolMaps | None = None
        self._faces: dict[str, Face] = {}
        self._unstored: PublisherState | None = None
        self._looked = False
        self._told_nodes = False
        self._started_s = clock.monotonic_ns() / 1e9

    @property
    def seen(self) -> dict[str, NodeSeen]:
        """What polling of each node came to."""
        return self._poller.seen

    @property
    def informed(self) -> bool:
        """Whether the stored map was read and nodes had the time to answer: what is said of the
        pool before that would be wrong, and right again a second later."""
        if not self._looked or not self._told_nodes:
            return False
        waited_s = self._clock.monotonic_ns() / 1e9 - self._started_s
        return waited_s >= INFORMED_AFTER_S or self._poller.all_asked

    @property
    def suspects(self) -> frozenset[str]:
        """Nodes whose kubelets' Leases are to be read."""
        return suspects_of(self.view.shard_map, self._poller.seen)

    def update(self, pool: Pool, decided: Plan, tls: AdminTls | None) -> None:
        """Go by the newest look at the cluster. `tls`: how nodes are reached."""
        members = decided.members
        self._pool, self._members, self._may_publish = pool, members, decided.may_publish
        port = pool.spec.ports.admin
        targets = {
            member.name: Target(join_endpoint(member.pod.ip, port), member.pod.uid, tls)
            for member in members
            if member.pod is not None and member.pod.ip and not member.pod.deleting
        }
        self._poller.set_targets(targets, decided.orders)
        self._told_nodes = True
        if self._maps is not None:
            self._maps.polled_only(targets)
            self._maps.configure(pool, members)

    async def run(self) -> None:
        """Go on until cancelled. LeadershipLost when another operator publishes; no other error
        ends it, for it is one pool's."""
        pause_s = RETRY_S_MIN
        try:
            while True:
                try:
                    if self._maps is None:
                        await self._take_over()
                    else:
                        await self._step(self._maps)
                        pause_s = RETRY_S_MIN
                    await asyncio.sleep(self._step_s)
                    continue
                except LeadershipLost:
                    raise
                except (RetryLater, ConfigError, CallerError) as error:
                    self._say(error)
                except Exception as error:
                    self._say_bug(error)
                    # What is in memory may be half of a step: begin anew with what is stored.
                    self._maps = self._unstored = None
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_S_MAX, 2 * pause_s)
        finally:
            await self._poller.stop()

    async def _take_over(self) -> None:
        state = await self._stored.read()
        maps = PoolMaps(self._pool, state, self._transitions, self._now_ms())
        maps.configure(self._pool, self._members)
        for node, seen in self._poller.seen.items():
            self._feed(maps, node, seen)
        self._maps = maps
        self._looked = True
        # A problem stays said until a step was well.
        self._show(
            MapView(state.shard_map if state is not None else None, problem=self.view.problem)
        )

    async def _step(self, maps: PoolMaps) -> None:
        grace_ms = self._pool.spec.node_lost_grace_s * 1000
        maps.fell_silent(self._heartbeats.silent(self.suspects, grace_ms, self._now_ms()))
        outcome, followed = Outcome(None, self.view.reasons, self.view.slots_waiting), False
        if self._unstored is None and self._may_publish:
            outcome = maps.step(self._now_ms(), self._clock.wall_s())
            self._unstored, followed = outcome.state, maps.has_followed
        if self._unstored is not None:
            await self._store(self._unstored, outcome)
            return
        view = replace(
            self.view,
            reasons=outcome.reasons,
            slots_waiting=outcome.slots_waiting,
            problem="",
            followed=followed,
        )
        if view != self.view:
            self._show(view)

    async def _store(self, state: PublisherState, outcome: Outcome) -> None:
        await self._stored.write(state)
        self._unstored = None
        shard_map = state.shard_map
        log.info(
            "pool %s: map %s (%s): %d workers, %d slots moving, %d waiting",
            self._pool.key,
            shard_map.version,
            ", ".join(reason.value for reason in outcome.reasons),
            len(shard_map.workers),
            len(shard_map.moving),
            outcome.slots_waiting,
        )
        published_at = rfc3339(self._clock.wall_s())
        self._show(MapView(shard_map, published_at, outcome.reasons, outcome.slots_waiting))

    def _show(self, view: MapView) -> None:
        self.view = view
        self._concerns()

    def _say(self, error: Exception) -> None:
        if isinstance(error, RetryLater):
            log.info("pool %s: %s", self._pool.key, error)
            return
        self._looked = True
        if str(error) != self.view.problem:
            log.error("pool %s: %s", self._pool.key, error)
            self._show(replace(self.view, problem=str(error)))

    def _say_bug(self, error: Exception) -> None:
        """Log an error with its traceback, once as long as it stays the same."""
        self._looked = True
        self._met_bug()
        problem = f"a bug in the operator, please report it with its log: {error!r}"
        if problem != self.view.problem:
            log.error(
                "pool %s: publishing its map met a bug in the operator, please report it; other "
                "pools go on",
                self._pool.key,
                exc_info=error,
            )
            self._show(replace(self.view, problem=problem))

    def _on_seen(self, node: str, seen: NodeSeen) -> None:
        if self._maps is not None:
            self._feed(self._maps, node, seen)
        face = face_of(seen)
        if self._faces.get(node) != face:
            self._faces[node] = face
            self._concerns()

    def _feed(self, maps: PoolMaps, node: str, seen: NodeSeen) -> None:
        if seen.problem or seen.facts is None:
            maps.failed(node)
            return
        member = next((member for member in self._members if member.name == node), None)
        group = member.group if member is not None else None
        percent = group.weight_percent if group is not None else 100
        label = self._pool.spec.failure_domain
        kube_node = member.kube_node if member is not None else None
        domain = kube_node.labels.get(label, "") if kube_node is not None else ""
        known = member.memkv_node if member is not None else None
        shares = {
            worker.uuid: counted_bytes(known, worker.uuid, worker.capacity_bytes)
            / worker.capacity_bytes
            for worker in seen.facts.workers
            if worker.capacity_bytes
        }
        reports = [
            weighted(report, percent, domain, shares.get(report.worker.uuid.hex(), 1.0))
            for report in seen.facts.reports
        ]
        maps.answered(node, reports, self._now_ms())

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000


Face: TypeAlias = tuple[object, ...]


def face_of(seen: NodeSeen) -> Face:
    """Return what of a poll is worth a look at the pool when it changes."""
    facts = seen.facts
    if facts is None:
        return seen.pod_uid, seen.problem
    workers = tuple(
        (
            (w.position, w.uuid, w.incarnation, w.phase, w.host, w.port, w.message),
            (w.capacity_bytes, w.flash_guaranteed_bytes_max, w.memory_guaranteed_bytes_max),
        )
        for w in facts.workers
    )
    keys = facts.ticket_keys
    return seen.pod_uid, bool(seen.problem), facts.version, facts.draining, keys, workers
