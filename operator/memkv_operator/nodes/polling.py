"""Asks pods for what they know, again and again, each on its own: nodes of a pool, or agents."""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from memkv_operator.bugs import BugLog
from memkv_operator.nodes.admin import AdminTls

log = logging.getLogger("memkv.operator.nodes")

POLLS_PER_S_MAX = 100  # of all who share a budget: a quarter of a core of a Python process
JITTER = 0.2


class Admin(Protocol):
    """A connection to a pod's admin service."""

    async def close(self) -> None:
        """Close the connection."""


AnyAdmin = TypeVar("AnyAdmin", bound=Admin)
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Target:
    """A pod on a node, and how it is reached."""

    endpoint: str
    pod_uid: str
    tls: AdminTls | None = None


class PollBudget:
    """What pollers may ask together, so that many targets do not eat the operator: those of the
    nodes of all pools share one, and the poller of all agents has another."""

    def __init__(self) -> None:
        self._targets: dict[object, int] = {}

    def share(self, poller: object, targets: int) -> None:
        """Note how many targets a poller has; none: it is gone."""
        if targets:
            self._targets[poller] = targets
        else:
            self._targets.pop(poller, None)

    @property
    def interval_s_min(self) -> float:
        """The least time between two polls of one target."""
        return sum(self._targets.values()) / POLLS_PER_S_MAX


class Poller(ABC, Generic[AnyAdmin, Seen]):
    """Polls a pod on each of some nodes. All methods on one event loop."""

    def __init__(
        self,
        dial: Callable[[str, AdminTls | None], AnyAdmin],
        interval_s_min: float,
        budget: PollBudget | None = None,
    ) -> None:
        """`budget`: shared with other pollers; None: it has one of its own."""
        self._dial = dial
        self._budget = budget or PollBudget()
        self._interval_s_min = interval_s_min
        self._tasks: dict[str, tuple[Target, asyncio.Task[None]]] = {}
        self.seen: dict[str, Seen] = {}
        """What polling came to, of nodes that have a target."""
        self._bugs = BugLog(log)

    @abstractmethod
    async def ask(self, node: str, target: Target, admin: AnyAdmin) -> None:
        """Poll once, and note in `seen` what came of it. What it raises is a bug, and counts as no
        answer."""

    @abstractmethod
    def unanswered(self, node: str, target: Target, problem: str) -> None:
        """Note in `seen` that the very last poll came to nothing, and why."""

    def forget(self, node: str) -> None:
        """Drop what is known of a node whose pod is another one now, or none."""
        self.seen.pop(node, None)
        self._bugs.over(node)

    def poll(self, targets: Mapping[str, Target]) -> None:
        """Poll these from now on. A pod that was replaced is another target."""
        for node in self._tasks.keys() - targets.keys():
            self._drop(node)
        for node, target in targets.items():
            known = self._tasks.get(node)
            if known is not None and known[0] == target and not known[1].done():
                continue
            if known is not None:
                self._drop(node, keep=known[0].pod_uid == target.pod_uid)
            self._tasks[node] = (target, asyncio.create_task(self._poll(node, target)))
        self._budget.share(self, len(self._tasks))

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
        self._budget.share(self, 0)

    def _drop(self, node: str, *, keep: bool = False) -> None:
        _, task = self._tasks.pop(node)
        task.cancel()
        if not keep:
            self.forget(node)

    async def _poll(self, node: str, target: Target) -> None:
        admin: AnyAdmin | None = None
        try:
            while True:
                try:
                    admin = admin or self._dial(target.endpoint, target.tls)
                    await self.ask(node, target, admin)
                    self._bugs.over(node)
                except Exception as error:
                    # A poll that ended for good would let a dead node look well for ever.
                    self._bugs.say(
                        node,
                        error,
                        f"node {node}: a poll met a bug in the operator, please report it; polls "
                        "go on",
                    )
                    self.unanswered(node, target, f"a bug in the operator: {error!r}")
                await asyncio.sleep(self._interval_s())
        finally:
            if admin is not None:
                await asyncio.shield(admin.close())

    def _interval_s(self) -> float:
        interval_s = max(self._interval_s_min, self._budget.interval_s_min)
        return interval_s * (1 + JITTER * (random.random() - 0.5))
