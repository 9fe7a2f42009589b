"""Asks a pool's nodes for their facts, again and again, each on its own."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from memkv.errors import MemKVError
from memkv_operator.nodes.admin import CALL_TIMEOUT_S, Dial, NodeAdmin
from memkv_operator.nodes.facts import facts_of
from memkv_operator.nodes.orders import spec_of
from memkv_operator.nodes.polling import PollBudget, Poller, Target
from memkv_operator.plan.facts import NodeFacts, NodeSeen
from memkv_operator.plan.orders import Order

log = logging.getLogger("memkv.operator.nodes")

INTERVAL_S_MIN = 0.5

OnSeen = Callable[[str, NodeSeen], None]


class NodePoller(Poller[NodeAdmin, NodeSeen]):
    """Polls the nodes of one pool. All methods on one event loop."""

    def __init__(
        self, pool: str, dial: Dial, on_seen: OnSeen, budget: PollBudget | None = None
    ) -> None:
        """`on_seen` is told of every poll: node, and what came of it. `budget`: as Poller."""
        super().__init__(dial, INTERVAL_S_MIN, budget)
        self._pool = pool
        self._on_seen = on_seen
        self._orders: Mapping[str, Order] = {}
        self._refused: dict[str, str] = {}
        """Revision of the spec that a node does not take, said once."""

    def set_targets(self, targets: Mapping[str, Target], orders: Mapping[str, Order]) -> None:
        """Poll these from now on, and tell each what its order says if that is not in force."""
        self._orders = orders
        self.poll(targets)

    async def ask(self, node: str, target: Target, admin: NodeAdmin) -> None:
        """As Poller."""
        facts = self._last_facts(node)
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                facts = facts_of(await admin.facts(), self._pool, node)
                await self._tell(node, admin, facts)
            problem = ""
        except (MemKVError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
        self._note(node, NodeSeen(target.pod_uid, facts, problem))

    def unanswered(self, node: str, target: Target, problem: str) -> None:
        """As Poller."""
        self._note(node, NodeSeen(target.pod_uid, self._last_facts(node), problem))

    def _last_facts(self, node: str) -> NodeFacts | None:
        before = self.seen.get(node)
        return before.facts if before is not None else None

    def _note(self, node: str, seen: NodeSeen) -> None:
        before = self.seen.get(node)
        if seen.problem and (before is None or not before.problem):
            log.warning("pool %s: node %s: %s", self._pool, node, seen.problem)
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
