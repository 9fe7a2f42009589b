"""A call is one request in flight to one worker; an operation is a generator of waves of calls.

    operation yields [Call, ...]  ->  a face runs them all to completion  ->  operation goes on
                                                                             ... returns a result

The operation never waits, never touches a socket and never looks at a clock except through its
deadline, so the sync, asyncio and eventfd faces share it and tests drive it by hand.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from memkv.status import Status
from memkv.wire.hints import Hint, decode_hints

ResultT = TypeVar("ResultT")


class Request(Protocol):
    """A native job, as operations see it. Valid to read once it is done."""

    token: object
    """The driver's own; comes back with the completion."""

    @property
    def status(self) -> int:
        """Negative when the request failed as a whole."""

    @property
    def statuses(self) -> list[int]:
        """One a key: bytes or OK, or a negative Status."""

    @property
    def lengths(self) -> list[int]:
        """Stored length a key, where the answer said one."""

    @property
    def hints(self) -> bytes:
        """Hint records of WRONG_OWNER answers, back to back."""

    def wait(self, deadline_ns: int) -> bool:
        """Wait without the GIL until done; False when the deadline came first."""


class JobQueue(Protocol):
    """What runs requests: a group of lanes to one worker."""

    def submit(self, job: Request, notify: bool) -> None:
        """Queue for a lane's thread; with `notify` the engine's eventfd reports completion."""

    def run(self, job: Request) -> None:
        """Run in the calling thread when a lane is idle, else queue and wait. No GIL."""


class Outcome(Protocol):
    """Told how a request to a worker ended, for its circuit breaker and statistics."""

    def finished(self, call: Call) -> None: ...


@dataclass(slots=True, eq=False)
class Call:
    """One request to one worker, for the keys at `positions` of the operation.

    `quarantined` is set by the face when the job did not end within its deadline plus the fence
    budget: its buffers may still be written until `completions()` reports it.
    """

    queue: JobQueue
    job: Request
    positions: list[int]
    outcome: Outcome
    worker: int
    verify: bool = False
    quarantined: bool = False

    def statuses(self) -> list[int]:
        """Return one result a position: bytes or OK, or a negative Status."""
        if self.quarantined:
            return [Status.QUARANTINED] * len(self.positions)
        return self.job.statuses

    def hints(self) -> list[Hint]:
        """Return the owners that the worker named, with the index in this call."""
        return [] if self.quarantined or not self.job.hints else decode_hints(self.job.hints)


Operation = Generator[list[Call], None, ResultT]
