"""Asks agents for the disks of their nodes, again and again, and tells each what it shall do."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from memkv.errors import MemKVError
from memkv_operator.nodes.admin import CALL_TIMEOUT_S
from memkv_operator.nodes.agent_admin import AgentAdmin, DialAgent
from memkv_operator.nodes.agent_facts import agent_facts_of, spec_of
from memkv_operator.nodes.polling import Poller, Target
from memkv_operator.plan.disks import AgentFacts, AgentOrders, AgentSeen

log = logging.getLogger("memkv.operator.agents")

OnAgentSeen = Callable[[str, AgentSeen], None]


@dataclass(frozen=True, slots=True)
class _Told:
    """What an agent took over, and under which number."""

    generation: int
    orders: AgentOrders


class AgentPoller(Poller[AgentAdmin, AgentSeen]):
    """Polls all agents. All methods on one event loop."""

    def __init__(self, dial: DialAgent, on_seen: OnAgentSeen, interval_s: float) -> None:
        """`on_seen` is told of every poll: node, and what came of it."""
        super().__init__(dial, interval_s)
        self._on_seen = on_seen
        self._told: dict[str, _Told] = {}
        self.orders: dict[str, AgentOrders] = {}
        """What each agent shall do; an agent without orders is told nothing."""

    def forget(self, node: str) -> None:
        """As Poller."""
        super().forget(node)
        self._told.pop(node, None)

    async def ask(self, node: str, target: Target, admin: AgentAdmin) -> None:
        """As Poller."""
        facts = self._last_facts(node)
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                facts = agent_facts_of(await admin.facts(), node)
                await self._tell(node, admin, facts)
            problem = ""
        except (MemKVError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
        self._note(node, AgentSeen(target.pod_uid, facts, problem))

    def unanswered(self, node: str, target: Target, problem: str) -> None:
        """As Poller."""
        self._note(node, AgentSeen(target.pod_uid, self._last_facts(node), problem))

    def _last_facts(self, node: str) -> AgentFacts | None:
        before = self.seen.get(node)
        return before.facts if before is not None else None

    def _note(self, node: str, seen: AgentSeen) -> None:
        self.seen[node] = seen
        self._on_seen(node, seen)

    async def _tell(self, node: str, admin: AgentAdmin, facts: AgentFacts) -> None:
        """Have the agent do what it shall, if that is not what it was told last. A refusal is no
        sign of death: the next poll tries again."""
        orders, told = self.orders.get(node), self._told.get(node)
        if orders is None or told == _Told(facts.spec_generation, orders):
            return
        if orders == AgentOrders() and not facts.spec_generation:
            return
        try:
            generation = await admin.apply(spec_of(orders, facts.spec_generation + 1))
        except MemKVError as error:
            log.warning("the agent of node %s does not take its orders: %s", node, error)
            return
        self._told[node] = _Told(generation, orders)
