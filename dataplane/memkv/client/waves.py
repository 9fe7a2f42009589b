"""Who is asked next: the loop that every operation shares.

A wave asks each worker once for the keys it should have. What answers lead to another wave:

    WRONG_OWNER with a newer hint     learn the slot's owner, ask it
    not there, and the slot moves     ask the previous owners, newest first (gets and exists only)
    CORRUPT                           ask the same worker once more, with VERIFY (gets only)
    a broken connection over RDMA     the same, over TCP (gets and puts)

No key asks a worker twice but for VERIFY, so an operation ends after a bounded number of waves.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from memkv.client.calls import Call
from memkv.client.routing import Keys, by_owner
from memkv.shardmap.cache import Route
from memkv.shardmap.map import UNASSIGNED
from memkv.status import Status
from memkv.wire.hints import Hint

UNOWNED = Status.UNAVAILABLE  # for keys of a pool that was emptied on purpose
WAVES_MAX = 6  # owner, hinted owner, up to 3 previous owners, one verified re-read

NOT_THERE = frozenset({Status.MISS, Status.WRONG_OWNER, Status.UNAVAILABLE, 0})
"""Answers after which a previous owner is worth asking; 0 is the negative answer of EXISTS."""


class Router(Protocol):
    """What waves need to know about the pool."""

    def route(self) -> Route: ...
    def learn(self, hint: Hint) -> int | None:
        """Take a hint; return the index of the worker to ask, None when it is not news."""


Ask = Callable[[int, list[int], bool], "list[Call] | Status"]
"""(worker, positions, verify or another way) -> calls, or the status that all these keys get."""

OnAnswer = Callable[[Call, int, int, int], None]
"""(call, index in the call, position of the key, status)."""


class Waves:
    """The waves of one operation. `results` holds one status a key and is filled in place."""

    def __init__(
        self, router: Router, keys: Keys, results: list[int], ask: Ask, *,
        previous_owners: bool = False, verify: bool = False, other_way: bool = False,
        every_answer: bool = False,
    ) -> None:
        """`verify`: ask again with VERIFY, and another way where there is one; `other_way`: only
        that. `every_answer`: `run` shows good answers too, where nothing moves."""
        self._router = router
        self._keys = keys
        self._results = results
        self._ask = ask
        self._previous_owners = previous_owners
        self._verify = verify
        self._other_way = verify or other_way
        self._every_answer = every_answer
        self._asked: dict[int, set[int]] = {}
        self._todo: dict[tuple[int, bool], list[int]] = {}

    def begin_with_owners(self, only: Sequence[int] | None = None) -> None:
        """Ask the owners first; `only` leaves out keys that already have their result."""
        route = self._router.route()
        if only is not None and len(only) < self._keys.count:
            for position in only:
                self.add(route.owner_index(self._keys.slot_of(position)), position)
            return
        for worker, positions in by_owner(self._keys, route).items():
            self._todo[(worker, False)] = positions

    def add(self, worker: int, position: int, *, verify: bool = False) -> None:
        """Ask `worker` for one more key in the next wave."""
        self._todo.setdefault((worker, verify), []).append(position)

    def run(self, on_answer: OnAnswer) -> Generator[list[Call], None, None]:
        """Yield waves until nobody is left to ask.

        `on_answer` sees every answer but the good ones of a pool where nothing moves.
        """
        for _ in range(WAVES_MAX):
            if not self._todo:
                return
            calls = self._start()
            if calls:
                yield calls
            for call in calls:
                call.outcome.finished(call)
                if self._every_answer or not self._take_good(call):
                    self._take(call, on_answer)

    def _start(self) -> list[Call]:
        todo, self._todo = self._todo, {}
        calls: list[Call] = []
        for (worker, verify), positions in todo.items():
            started = UNOWNED if worker == UNASSIGNED else self._ask(worker, positions, verify)
            if not isinstance(started, Status):
                calls.extend(started)
                continue
            started = Status.UNAVAILABLE if started is Status.CLOSED else started
            for position in positions:
                self._results[position] = started
                if started is Status.UNAVAILABLE:
                    self._follow(worker, position, started, None)
        return calls

    def _take_good(self, call: Call) -> bool:
        """Take all answers of a call at once if none of them can lead to another question."""
        statuses = call.statuses()
        if not self._router.route().is_still or min(statuses) < 0 or call.hints():
            return False
        if len(statuses) == self._keys.count:
            self._results[:] = statuses  # positions are in the caller's order
        else:
            for position, status in zip(call.positions, statuses, strict=True):
                self._results[position] = status
        return True

    def _take(self, call: Call, on_answer: OnAnswer) -> None:
        hints = {hint.index: hint for hint in call.hints()}
        for index, status in enumerate(call.statuses()):
            position = call.positions[index]
            if status == Status.CLOSED:  # the session went while it was asked: nobody answered
                status = Status.UNAVAILABLE
            self._results[position] = status
            on_answer(call, index, position, status)
            if not call.verify and self._is_worth_asking_again(call, status):
                self.add(call.worker, position, verify=True)
            elif status in NOT_THERE:
                self._follow(call.worker, position, status, hints.get(index))

    def _is_worth_asking_again(self, call: Call, status: int) -> bool:
        if status == Status.UNAVAILABLE:
            return self._other_way and call.has_other_way
        return self._verify and status == Status.CORRUPT

    def _follow(self, worker: int, position: int, status: int, hint: Hint | None) -> None:
        asked = self._asked.setdefault(position, set())
        asked.add(worker)
        candidates: list[int] = []
        if hint is not None:
            hinted = self._router.learn(hint)
            if hinted is not None:
                candidates.append(hinted)
        if self._previous_owners:
            candidates.extend(self._router.route().previous_owners(self._keys.slot_of(position)))
        for candidate in candidates:
            if candidate not in asked:
                self.add(candidate, position)
                return
