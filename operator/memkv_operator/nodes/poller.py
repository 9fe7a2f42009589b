"""Asks a pool's nodes for their facts, again and again, each on its own."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memkv.errors import MemKVError
from memkv_operator.nodes.admin import CALL_TIMEOUT_S, AdminTls, Dial, NodeAdmin
from memkv_operator.nodes.facts import facts_of
from memkv_operator.nodes.orders import spec_of
from memkv_operator.plan.facts import NodeFacts, NodeSeen
from memkv_operator.plan.orders import Order

log = logging.getLogger("memkv.operator.nodes")

INTERVAL_S_MIN = 0.5
POLLS_PER_S_MAX = 100  # of one pool: what a Python process does with a quarter of a core
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """A node's pod, and how it is reached."""

    endpoint: str
    pod_uid: str
    tls: AdminTls | None = None


OnSeen = Callable[[str, NodeSeen], None]


class NodePoller:
    """Polls the nodes of one pool. All methods on one event loop."""

    def __init__(self, pool: str, dial: Dial, on_seen: OnSeen) -> None:
        """`on_seen` is told of every poll: node, and what came of it."""
        self._pool = pool
        self._dial = dial
        self._on_seen = on_seen
        self._tasks: dict[str, tuple[Target, asyncio.Task[None]]] = {}
        self._orders: Mapping[str, Order] = {}
        self._refused: dict[str, str] = {}
        """Revision of the spec that a node does not take, said once."""
        self.seen: dict[str, NodeSeen] = {}
        """What polling came to, of nodes that have a target."""

    def set_targets(self, targets: Mapping[str, Target], orders: Mapping[str, Order]) -> None:
        """Poll these from now on, and tell each what its order says if that is not in force. A pod
        that was replaced is another target."""
        self._orders = orders
        for node in self._tasks.keys() - targets.keys():
            self._drop(node)
        for node, target in targets.items():
            known = self._tasks.get(node)
            if known is not None and known[0] == target:
                continue
            if known is not None:
                same_pod = known[0].pod_uid == target.pod_uid
                self._drop(node, keep=same_pod)
            poll = self._poll(node, target)
            self._tasks[node] = (target, asyncio.create_task(poll))

    @property
    def all_asked(self) -> bool:
        """Whether every target was polled at least once."""
        return self._tasks.keys() <= self.seen.keys()

    async def stop(self) -> None:
        """Stop polling."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def _drop(self, node: str, *, keep: bool = False) -> None:
        _, task = self._tasks.pop(node)
        task.cancel()
        if not keep:
            self.seen.pop(node, None)

    async def _poll(self, node: str, target: Target) -> None:
        admin = self._dial(target.endpoint, target.tls)
        try:
            while True:
                await self._ask(node, target, admin)
                await asyncio.sleep(self._interval_s())
        finally:
            await asyncio.shield(admin.close())

    async def _ask(self, node: str, target: Target, admin: NodeAdmin) -> None:
        before = self.seen.get(node)
        facts = before.facts if before is not None else None
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                facts = facts_of(await admin.facts(), self._pool, node)
                await self._tell(node, admin, facts)
            problem = ""
        except (MemKVError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
        seen = NodeSeen(target.pod_uid, facts, problem)
        if problem and (before is None or not before.problem):
            log.warning("pool %s: node %s: %s", self._pool, node, problem)
        self.seen[node] = seen
        self._on_seen(node, seen)

    async def _tell(self, node: str, admin: NodeAdmin, facts: NodeFacts) -> None:
        """Tell the node what to be, if it is not. A refusal is no sign of death: the next poll
        tries again. An answer that is lost is made up for by what the next poll finds in force."""
        order = self._orders.get(node)
        if order is None:
            return
        spec = spec_of(order)
        if facts.spec_revision == spec.revision:
            self._refused.pop(node, None)
            return
        spec.generation = facts.spec_generation + 1
        try:
            await admin.apply(spec)
        except MemKVError as error:
            if self._refused.get(node) != spec.revision:
                self._refused[node] = spec.revision
                log.warning("pool %s: node %s does not take its spec: %s", self._pool, node, error)

    def _interval_s(self) -> float:
        """Grows with the pool, so that a large one does not eat the operator."""
        interval_s = max(INTERVAL_S_MIN, len(self._tasks) / POLLS_PER_S_MAX)
        return interval_s * (1 + JITTER * (random.random() - 0.5))
