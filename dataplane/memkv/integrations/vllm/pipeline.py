"""Loads that a step begins and its layers wait for, each only for its own part.

The parts of all blocks are loaded in the order of the layers, so that the first layer computes
while the others' parts are on their way. The step's request is scheduled already: what does not
come in time is computed again by the engine, so waiting has a limit, and a step's end is an end.
From then on the engine writes to the places of what failed. Therefore parts never land there by
themselves: the client writes into memory of the connector's own, this thread copies from there, and
gives up what is late before the engine hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from memkv.integrations.vllm.messages import FailedLoad, Transfer
from memkv.integrations.vllm.mover import Fate, Move, Mover
from memkv.reasons import MissReason

WAIT_MS = 20  # at one time: should news be lost, this is what it costs


class StepLoads:
    """Of one step. Used by the thread that runs the model."""

    def __init__(
        self, mover: Mover, transfers: Sequence[Transfer], part_count: int, *, deadline_ms: int,
        now_ns: Callable[[], int],
    ) -> None:
        """Begin to load. `deadline_ms`: for all that the step's layers wait together."""
        self._mover = mover
        self._transfers = transfers
        self._now_ns = now_ns
        self._began_ns = now_ns()
        self._deadline_ns = self._began_ns + deadline_ms * 1_000_000
        self._settled_ns: int | None = None
        self._fates = [Fate() for _ in transfers]
        self._waited: set[int] = set()
        self._parts = [
            [
                mover.load_part(replace(transfer, blocks=blocks), fate)
                for transfer, fate in zip(transfers, self._fates, strict=True)
                if (blocks := [block for block in transfer.blocks if block.group == part])
            ]
            for part in range(part_count)
        ]
        mover.advance()

    def wait(self, part: int) -> None:
        """Return when a part of all blocks is in its places, or will not be there in time."""
        if part in self._waited:
            return
        self._waited.add(part)
        begin_ns = self._now_ns()
        self._settle(self._parts[part])
        self._mover.count("layer_wait_seconds", (self._now_ns() - begin_ns) / 1e9)
        for move in self._parts[part]:
            for batch in move.landed:
                batch.precede()

    def end(self) -> list[FailedLoad]:
        """The step's layers are done: nothing is loaded any more. Return what failed."""
        for part, moves in enumerate(self._parts):
            if part not in self._waited:  # its layers may have computed without it
                self._fail(moves)
            for move in moves:
                self._mover.give_up(move)
                for batch in move.landed:  # before the engine writes to the same places
                    batch.precede()
        failed = [
            load for transfer, fate in zip(self._transfers, self._fates, strict=True)
            if (load := fate.failed_load(transfer.request_id)) is not None
        ]
        self._mover.count("loads", len(self._transfers))
        self._mover.count("loads_failed", len(failed))
        ended_ns = self._now_ns() if self._settled_ns is None else self._settled_ns
        seconds = (ended_ns - self._began_ns) / 1e9
        self._mover.count("load_seconds", seconds * len(self._transfers))
        return failed

    # --- inside -------------------------------------------------------------------------------
    def _settle(self, moves: Sequence[Move]) -> None:
        self._mover.advance()
        while not all(move.is_settled for move in moves):
            left_ms = (self._deadline_ns - self._now_ns()) / 1e6
            if left_ms <= 0:
                self._give_up_late()
                return
            self._mover.advance(min(left_ms, WAIT_MS))
        if self._settled_ns is None and self._is_settled:
            self._settled_ns = self._now_ns()

    @property
    def _is_settled(self) -> bool:
        return all(move.is_settled for moves in self._parts for move in moves)

    def _give_up_late(self) -> None:
        """Time is up: no layer waits again."""
        for moves in self._parts:
            for move in moves:
                if not move.is_settled:
                    missing = [*move.awaited]
                    if move.has_more:
                        missing.append(move.transfer.blocks[move.next].number)
                    move.fate.fail(min(missing), MissReason.TIMEOUT)
                self._mover.give_up(move)

    def _fail(self, moves: Sequence[Move]) -> None:
        for move in moves:
            move.fate.fail(move.transfer.blocks[0].number, MissReason.TIMEOUT)
