"""How often people are told: by the status of a pool and of its nodes, and by Events. Pure; times
are arguments.

Each write goes to everyone who watches, so a node whose answers come and go must not cause two at
every poll. What the operator itself goes by later is written at once. What only tells people how
things are has an allowance: some at once, then one in a while. Nothing is queued: what was held
back is planned again, and is then what is true then.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.plan.actions import (
    Action,
    Event,
    WriteNodeStatus,
    WritePoolStatus,
    record_of,
)

NODE_BURST, NODE_PAUSE_MS = 6, 10_000
"""A node that starts is written about so often at once; one that flaps every 10 s."""
POOL_BURST, POOL_PAUSE_MS = 10, 1_000
EVENT_PAUSE_MS = 60_000  # between two of one reason about one pool

_TELLING = frozenset({"Ready", "DrivesReady"})
"""Conditions of a node that come and go with its answers and its agent's."""
_TELLING_OF_NODE = frozenset({"observedGeneration", "podIP", "version"})
_TELLING_OF_WORKER = frozenset(
    {"phase", "restarts", "message", "host", "port", "usedBytes", "appliedEpoch"}
)
_DECIDING_OF_POOL = ("update", "currentRevision", "updateRevision")


@dataclass(slots=True)
class _Allowance:
    """Of one object."""

    burst: int
    pause_ms: int
    left: int
    since_ms: int
    """When the allowance was this, or full."""

    def take(self, now_ms: int, *, must: bool) -> int:
        """Use it up by one. Return 0, or when there is none left and nothing must be: after how
        many milliseconds there will be."""
        regained = (now_ms - self.since_ms) // self.pause_ms
        self.left = min(self.burst, self.left + regained)
        self.since_ms = (
            now_ms if self.left == self.burst else self.since_ms + regained * self.pause_ms
        )
        if not self.left and not must:
            return self.since_ms + self.pause_ms - now_ms
        self.left = max(0, self.left - 1)
        return 0


@dataclass(frozen=True, slots=True)
class Paced:
    """Which actions to carry out now."""

    actions: Sequence[Action]
    held: AbstractSet[str | None]
    """As `record_of`: what is not written yet."""
    wait_ms: int
    """Until what was held back is to be planned again; 0: nothing was."""


@dataclass(slots=True)
class StatusPace:
    """Of one pool."""

    _allowances: dict[str | None, _Allowance] = field(default_factory=dict)
    """By name of the MemKVNode; None: the pool."""

    def paced(
        self,
        actions: Sequence[Action],
        pool: JsonObject,
        nodes: Mapping[str, JsonObject],
        now_ms: int,
    ) -> "Paced":
        """Return what of these to carry out now.

        `pool`, `nodes`: the statuses there are, of the latter by name of the MemKVNode.
        """
        kept: list[Action] = []
        held: set[str | None] = set()
        waits_ms: list[int] = []
        for action in actions:
            wait_ms = 0
            if isinstance(action, WriteNodeStatus):
                must = _deciding(action.status) != _deciding(nodes.get(action.name, {}))
                wait_ms = self._take(action.name, now_ms, must=must)
            elif isinstance(action, WritePoolStatus):
                must = any(action.status.get(key) != pool.get(key) for key in _DECIDING_OF_POOL)
                wait_ms = self._take(None, now_ms, must=must)
            if wait_ms:
                waits_ms.append(wait_ms)
                held.add(record_of(action))
            else:
                kept.append(action)
        self._allowances = {
            name: one for name, one in self._allowances.items() if name is None or name in nodes
        }
        return Paced(kept, held, min(waits_ms, default=0))

    def _take(self, name: str | None, now_ms: int, *, must: bool) -> int:
        burst, pause_ms = (
            (POOL_BURST, POOL_PAUSE_MS) if name is None else (NODE_BURST, NODE_PAUSE_MS)
        )
        allowance = self._allowances.setdefault(name, _Allowance(burst, pause_ms, burst, now_ms))
        return allowance.take(now_ms, must=must)


def _deciding(status: JsonObject) -> Manifest:
    """Return the part of a MemKVNode's status that later plans go by."""
    reader = Reader(status)
    rest = {key: value for key, value in status.items() if key not in _TELLING_OF_NODE}
    rest["workers"] = [
        {key: value for key, value in worker.value.items() if key not in _TELLING_OF_WORKER}
        for worker in reader.objects("workers")
    ]
    rest["conditions"] = [
        {"type": one.text("type"), "status": one.text("status"), "reason": one.text("reason")}
        for one in reader.objects("conditions")
        if one.text("type") not in _TELLING
    ]
    return rest


@dataclass(slots=True)
class _Told:
    at_ms: int
    held: Event | None = None
    """The newest one that was not told since."""
    count: int = 0


@dataclass(slots=True)
class EventPace:
    """Of one pool: an Event of each condition and reason a minute; what comes between is told as
    one, later."""

    _told: dict[tuple[str, str], _Told] = field(default_factory=dict)

    def paced(self, events: Sequence[Event], now_ms: int) -> tuple[list[Event], int]:
        """Return the events to post now, and in how many milliseconds to ask again for what was
        held back; 0: nothing was."""
        now: list[Event] = []
        for event in events:
            what = event.about, event.reason
            told = self._told.get(what)
            if told is None or (now_ms - told.at_ms >= EVENT_PAUSE_MS and told.held is None):
                self._told[what] = _Told(now_ms)
                now.append(event)
            else:
                told.held, told.count = event, told.count + 1
        for told in self._told.values():
            if told.held is not None and now_ms - told.at_ms >= EVENT_PAUSE_MS:
                now.append(_counted(told.held, told.count))
                told.at_ms, told.held, told.count = now_ms, None, 0
        self._forget(now_ms)
        waits = [EVENT_PAUSE_MS - (now_ms - t.at_ms) for t in self._told.values() if t.held]
        return now, max(1, min(waits)) if waits else 0

    def _forget(self, now_ms: int) -> None:
        self._told = {
            what: told
            for what, told in self._told.items()
            if told.held is not None or now_ms - told.at_ms < EVENT_PAUSE_MS
        }


@dataclass(slots=True)
class PoolPace:
    """Of one pool."""

    statuses: StatusPace = field(default_factory=StatusPace)
    events: EventPace = field(default_factory=EventPace)


def _counted(event: Event, count: int) -> Event:
    if count == 1:
        return event
    message = f"{event.message} (the newest of {count} within {EVENT_PAUSE_MS // 1000} s)"
    return replace(event, message=message)
