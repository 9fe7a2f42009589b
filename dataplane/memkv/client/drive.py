"""Driving operations: waves of calls run to completion, by a waiting thread or by events.

Every wave ends: a job completes by its deadline because its lane closes itself then; a job that
does not within the fence budget (only the node can end what it writes itself) leaves its buffers
quarantined, and the operation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from memkv._hotpath import Job, Wave
from memkv.client.buffers import Scatter
from memkv.client.calls import Call, Operation, ResultT
from memkv.limits import FENCE_BUDGET_MS

FENCE_BUDGET_NS = FENCE_BUDGET_MS * 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Quarantine:
    """Buffers of a call that returned QUARANTINED; the completion with this token frees them."""

    buffers: Sequence[Scatter]
    owner: object = None
    """What must stay alive until then."""

    def addresses(self) -> tuple[int, ...]:
        """Return where each freed block's memory begins."""
        return tuple(scatter[0][0] for scatter in self.buffers if scatter)


def run_to_end(operation: Operation[ResultT], deadline_ns: int) -> ResultT:
    """Drive an operation in the calling thread; the GIL is released while it waits."""
    try:
        wave = next(operation)
        while True:
            _run_wave(wave, deadline_ns)
            wave = operation.send(None)
    except StopIteration as end:
        result: ResultT = end.value
        return result


def _run_wave(wave: list[Call], deadline_ns: int) -> None:
    if len(wave) == 1:
        # The calling thread runs the job itself when a lane is idle: no hand-off, lowest latency.
        wave[0].request.run()
    else:
        for call in wave:
            call.request.submit(None)
    for call in wave:
        settle(call, deadline_ns)


def settle(call: Call, deadline_ns: int) -> None:
    """Wait until a call is done, or its buffers are quarantined."""
    if call.request.wait(deadline_ns + FENCE_BUDGET_NS):
        call.request.settled()
    else:
        call.quarantined = True
        call.request.quarantine(Quarantine(call.buffers))


@dataclass(slots=True, eq=False)
class Running(Generic[ResultT]):
    """An operation driven by completions instead of a waiting thread.

    `owner` is whatever must stay alive as long as lanes may touch the operation's buffers.
    """

    operation: Operation[ResultT]
    on_result: Callable[[ResultT], None]
    owner: object = None
    pending: int = 0

    def start(self) -> None:
        """Submit the first wave, or finish at once."""
        self._advance(first=True)

    def completed(self) -> None:
        """Take one completion of the current wave; the last one starts the next wave."""
        self.pending -= 1
        if self.pending == 0:
            self._advance(first=False)

    def _advance(self, *, first: bool) -> None:
        try:
            wave = next(self.operation) if first else self.operation.send(None)
        except StopIteration as end:
            self.on_result(end.value)
            return
        self.pending = len(wave)
        together = Wave(len(wave))
        for call in wave:
            call.request.submit(InFlight(self, call), together)


@dataclass(frozen=True, slots=True, eq=False)
class InFlight(Generic[ResultT]):
    """Token of a call of a running operation."""

    running: Running[ResultT]
    call: Call


def take_completion(job: Job) -> Quarantine | None:
    """Advance the operation that a reported job belongs to; return buffers that are free now.

    Jobs of one engine are taken one after another, in the order of the reports.
    """
    token = job.token
    if isinstance(token, Quarantine):
        return token
    if isinstance(token, InFlight):
        call = token.call
        if job.overdue:
            call.quarantined = True
            call.request.quarantine(Quarantine(call.buffers, token.running.owner))
        else:
            call.request.settled()
        token.running.completed()
    return None
