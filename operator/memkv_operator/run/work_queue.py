"""Keys that wait for work: each at most once, never two at a time for one key. Failures wait longer
each time, with jitter."""

import asyncio
import random
from dataclasses import dataclass, field

from memkv.clock import Clock

BACKOFF_S_MIN = 0.25
BACKOFF_S_MAX = 30.0
FAILURES_MAX = 16  # more do not wait longer


@dataclass(slots=True)
class Schedule:
    """When each key is due. Pure: time is an argument."""

    due_s: dict[str, float] = field(default_factory=dict)
    working: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)
    rests_until_s: dict[str, float] = field(default_factory=dict)

    def add(self, key: str, at_s: float) -> None:
        """Have the key worked on at this time or earlier, if it waits already."""
        self.due_s[key] = min(at_s, self.due_s.get(key, at_s))

    def take(self, now_s: float) -> str | None:
        """Return the key that has waited longest and mark it as worked on."""
        self.rests_until_s = {k: at_s for k, at_s in self.rests_until_s.items() if at_s > now_s}
        ready = [
            (at_s, key)
            for key, at_s in self.due_s.items()
            if self._from_s(key) <= now_s and key not in self.working
        ]
        if not ready:
            return None
        key = min(ready)[1]
        del self.due_s[key]
        self.working.add(key)
        return key

    def next_s(self) -> float | None:
        """Return when the next key is due; None: nothing waits."""
        waiting = [self._from_s(key) for key in self.due_s if key not in self.working]
        return min(waiting, default=None)

    def succeeded(self, key: str, rests_until_s: float = 0.0) -> None:
        """Note the end of work. The key is not worked on again before this time."""
        self.working.discard(key)
        self.failures.pop(key, None)
        self.rests_until_s[key] = rests_until_s

    def failed(self, key: str, now_s: float, share: float) -> None:
        """Note that work has failed, and try again later. `share`: 0 to 1, of the longest pause."""
        self.working.discard(key)
        count = self.failures.get(key, 0)
        self.failures[key] = min(count + 1, FAILURES_MAX)
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0**count)
        self.due_s.pop(key, None)
        self.add(key, now_s + ceiling_s * (0.5 + 0.5 * share))

    def _from_s(self, key: str) -> float:
        return max(self.due_s[key], self.rests_until_s.get(key, 0.0))


class WorkQueue:
    """The schedule in real time, on one event loop."""

    def __init__(self, clock: Clock, source: random.Random | None = None) -> None:
        self._clock = clock
        self._random = source or random.Random()
        self._schedule = Schedule()
        self._changed = asyncio.Event()

    @property
    def depth(self) -> int:
        """How many keys wait."""
        return len(self._schedule.due_s)

    def add(self, key: str, delay_s: float = 0.0) -> None:
        """Have a key worked on after this time."""
        self._schedule.add(key, self._now_s() + delay_s)
        self._changed.set()

    async def take(self) -> str:
        """Wait for a key that is due."""
        while True:
            key = self._schedule.take(self._now_s())
            if key is not None:
                return key
            self._changed.clear()
            next_s = self._schedule.next_s()
            pause_s = None if next_s is None else max(0.0, next_s - self._now_s())
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def succeeded(self, key: str, rest_s: float = 0.0) -> None:
        """Note the end of work on a key, which then rests for so long."""
        self._schedule.succeeded(key, self._now_s() + rest_s if rest_s else 0.0)
        self._changed.set()

    def failed(self, key: str) -> None:
        """Note that work on a key has failed."""
        self._schedule.failed(key, self._now_s(), self._random.random())
        self._changed.set()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9
