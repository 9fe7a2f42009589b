"""Asks why no agent runs, while none does: no watch tells."""

from memkv.clock import Clock
from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import AGENT_SELECTOR, DAEMON_SETS
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.agent_set import AgentSet
from memkv_operator.run.preflight import AGAIN_S, why_not_made


class AgentSets:
    """The agents' DaemonSet, in the operator's own namespace."""

    def __init__(self, objects: Objects, namespace: str, clock: Clock) -> None:
        self._objects = objects
        self._namespace = namespace
        self._clock = clock
        self._asked_ns: int | None = None
        self._known: AgentSet | None = None

    async def look(self) -> AgentSet | None:
        """Return it, at most AGAIN_S old; None when there is none. MemKVError when it cannot be
        asked for."""
        now_ns = self._clock.monotonic_ns()
        if self._asked_ns is None or now_ns >= self._asked_ns + int(AGAIN_S * 1e9):
            self._known = await self._ask()
            self._asked_ns = now_ns
        return self._known

    async def _ask(self) -> AgentSet | None:
        listing = await self._objects.list(DAEMON_SETS, self._namespace, AGENT_SELECTOR)
        if not listing.items:
            return None
        reader = Reader(listing.items[0])
        name = read_meta(reader).name
        status, spec = reader.object("status"), reader.object("spec")
        wanted = status.integer("desiredNumberScheduled")
        return AgentSet(
            name,
            self._namespace,
            wanted,
            spec.object("template").object("spec").text_map("nodeSelector"),
            await why_not_made(self._objects, self._namespace, name) if wanted else "",
        )
