"""A call is one request in flight to one worker; an operation is a generator of waves of calls.

    operation yields [Call, ...]  ->  a face runs them all to completion  ->  operation goes on
                                                                             ... returns a result

The operation never waits, never touches a socket and never looks at a clock, so the sync, asyncio
and eventfd faces share it and tests drive it by hand.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from memkv._hotpath import Wave
from memkv.client.buffers import Scatter
from memkv.status import Status
from memkv.wire.hints import Hint, decode_hints

ResultT = TypeVar("ResultT")


class Request(Protocol):
    """A request as operations and faces see it; results may be read once it is done."""

    @property
    def status(self) -> int:
        """Negative when the request failed as a whole."""

    @property
    def statuses(self) -> Sequence[int]:
        """One a key: bytes or OK, or a negative Status."""

    @property
    def lengths(self) -> Sequence[int]:
        """Stored length a key, where the answer said one."""

    @property
    def hints(self) -> bytes:
        """Hint records of WRONG_OWNER answers, back to back."""

    def run(self) -> None:
        """Run in the calling thread when a lane is idle, else queue; without the GIL."""

    def submit(self, token: object | None, wave: Wave | None = None) -> None:
        """Queue for a lane's thread; with a token the engine reports the completion with it.

        The completions of a wave wake their reader when the last of them is there.
        """

    def wait(self, deadline_ns: int) -> bool:
        """Wait without the GIL until done; False when the deadline came first."""

    def quarantine(self, token: object) -> None:
        """Have the engine report, with `token`, when a request that was waited for in vain ends."""

    def settled(self) -> None:
        """Called once when it is done, before its results are read."""


class Outcome(Protocol):
    """Told how a request to a worker ended, for its circuit breaker."""

    def finished(self, call: Call) -> None: ...


@dataclass(slots=True, eq=False)
class Call:
    """One request to one worker, for the keys at `positions` of the operation.

    `buffers` is the memory a lane may write or read, one scatter list a position (none for control
    requests). `quarantined` is set by the face when the request did not end within its deadline
    plus the fence budget: the buffers may still be written until `completions()` says otherwise.
    `has_other_way`: what a broken connection left unanswered may be asked for with `verify`, over
    another one.
    """

    request: Request
    positions: list[int]
    outcome: Outcome
    worker: int
    buffers: Sequence[Scatter] = ()
    verify: bool = False
    has_other_way: bool = False
    quarantined: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether the worker answered in time, whatever it said."""
        return not self.quarantined and self.request.status not in (
            Status.TIMEOUT, Status.UNAVAILABLE, Status.PROTOCOL
        )

    def statuses(self) -> Sequence[int]:
        """Return one result a position: bytes or OK, or a negative Status."""
        if self.quarantined:
            return [Status.QUARANTINED] * len(self.positions)
        return self.request.statuses

    def hints(self) -> list[Hint]:
        """Return the owners that the worker named, with the index in this call."""
        if self.quarantined:
            return []
        hints = self.request.hints
        return decode_hints(hints) if hints else []


Operation = Generator[list[Call], None, ResultT]
