"""Asks agents for the disks of their nodes, again and again, and tells each what it shall do."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memkv.errors import MemKVError
from memkv_operator.nodes.admin import CALL_TIMEOUT_S, AdminTls
from memkv_operator.nodes.agent_admin import AgentAdmin, DialAgent
from memkv_operator.nodes.agent_facts import agent_facts_of, spec_of
from memkv_operator.plan.disks import AgentFacts, AgentOrders, AgentSeen

log = logging.getLogger("memkv.operator.agents")

POLLS_PER_S_MAX = 100  # of all agents: what a Python process does with a quarter of a core
JITTER = 0.2

OnAgentSeen = Callable[[str, AgentSeen], None]


@dataclass(frozen=True, slots=True)
class AgentTarget:
    """The pod of a node's agent."""

    endpoint: str
    pod_uid: str
    tls: AdminTls


@dataclass(frozen=True, slots=True)
class _Told:
    """What an agent took over, and under which number."""

    generation: int
    orders: AgentOrders


class AgentPoller:
    """Polls all agents. All methods on one event loop."""

    def __init__(self, dial: DialAgent, on_seen: OnAgentSeen, interval_s: float) -> None:
        """`on_seen` is told of every poll: node, and what came of it."""
        self._dial = dial
        self._on_seen = on_seen
        self._interval_s_min = interval_s
        self._tasks: dict[str, tuple[AgentTarget, asyncio.Task[None]]] = {}
        self._told: dict[str, _Told] = {}
        self.seen: dict[str, AgentSeen] = {}
        """What polling came to, of nodes that have an agent's pod."""
        self.orders: dict[str, AgentOrders] = {}
        """What each agent shall do; an agent without orders is told nothing."""

    def set_targets(self, targets: Mapping[str, AgentTarget]) -> None:
        """Poll these from now on. A pod that was replaced is another target."""
        for node in self._tasks.keys() - targets.keys():
            self._drop(node)
        for node, target in targets.items():
            known = self._tasks.get(node)
            if known is not None and known[0] == target:
                continue
            if known is not None:
                self._drop(node, keep=known[0].pod_uid == target.pod_uid)
            self._tasks[node] = (target, asyncio.create_task(self._poll(node, target)))

    @property
    def all_asked(self) -> bool:
        """Whether every agent was polled at least once."""
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
            self._told.pop(node, None)

    async def _poll(self, node: str, target: AgentTarget) -> None:
        admin = self._dial(target.endpoint, target.tls)
        try:
            while True:
                await self._ask(node, target, admin)
                await asyncio.sleep(self._interval_s())
        finally:
            await asyncio.shield(admin.close())

    async def _ask(self, node: str, target: AgentTarget, admin: AgentAdmin) -> None:
        before = self.seen.get(node)
        facts = before.facts if before is not None else None
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                facts = agent_facts_of(await admin.facts(), node)
                await self._tell(node, admin, facts)
            problem = ""
        except (MemKVError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
        seen = AgentSeen(target.pod_uid, facts, problem)
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

    def _interval_s(self) -> float:
        """Grows with the cluster, so that a large one does not eat the operator."""
        interval_s = max(self._interval_s_min, len(self._tasks) / POLLS_PER_S_MAX)
        return interval_s * (1 + JITTER * (random.random() - 0.5))
