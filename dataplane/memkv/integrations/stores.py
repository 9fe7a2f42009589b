"""Storing objects from an engine's memory."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from memkv._hotpath import address_of
from memkv.client.options import BlockHint, PutOptions
from memkv.errors import RetryLater
from memkv.integrations.jobs import OnEnd
from memkv.integrations.parts import Part
from memkv.integrations.windows import Desk, Window, Windows
from memkv.reasons import MissReason, reason_of


class Stored(enum.Enum):
    """What became of one object of a store."""

    NEW = enum.auto()
    KNOWN = enum.auto()
    """It was there already; nothing was sent."""
    DROPPED = enum.auto()


StoreEnd = Callable[[list[Stored]], None]


class Store(Windows):
    """Asks first which parts are missing: engines store the same prompts again and again."""

    def __init__(
        self, desk: Desk, objects: Sequence[Sequence[Part]], on_end: StoreEnd, request: Hashable,
        options: PutOptions, hints: Sequence[BlockHint], backlog_bytes_max: int,
    ) -> None:
        super().__init__(desk, objects)
        self._on_end = on_end
        self._request = request
        self._options = options
        self._hints = hints
        self._backlog_bytes_max = backlog_bytes_max
        self._held_bytes = 0
        self._left = [len(parts) for parts in objects]
        """Parts of each object that the pool does not have yet."""
        self._sent = [False] * len(objects)
        self._reasons = [MissReason.OTHER] * len(objects)
        """Why an object is dropped; what has no parts left is not."""

    def begin(self) -> None:
        """Take what fits the backlog and ask what of it is there. On the loop's thread."""
        taken: Window = []
        for number, parts in enumerate(self.objects):
            size_bytes = sum(part.format.payload_bytes for part in parts)
            if self.desk.backlog_bytes + size_bytes > self._backlog_bytes_max:
                self._drop(number, MissReason.BUSY)
                continue
            self.desk.backlog_bytes += size_bytes
            self._held_bytes += size_bytes
            taken += [(number, part) for part in parts]
        if not taken:
            self.run()
            return
        self.desk.loop.exists(
            [part.key for _, part in taken], 0, lambda results: self._looked_up(taken, results)
        )

    def _looked_up(self, taken: Window, results: list[int]) -> None:
        dropped = set()
        for (number, _), result in zip(taken, results, strict=True):
            if result < 0:
                self._drop(number, reason_of(result))
                dropped.add(number)
            elif result > 0:
                self._left[number] -= 1
        self.parts = [
            (number, part) for (number, part), result in zip(taken, results, strict=True)
            if result == 0 and number not in dropped
        ]
        self.run()

    def take_pages(self, window: Window) -> list[int] | None:
        return [self._page(part) for _, part in window]

    def _page(self, part: Part) -> int:
        try:
            return self.desk.pages.of_put(part.format)
        except RetryLater:  # too many formats: over TCP from where the format itself keeps it
            return address_of(part.format.header)

    def give_back_pages(self, pages: list[int]) -> None:
        """They are shared."""

    def submit(
        self, window: Window, ptrs: list[list[int]], sizes: list[list[int]], ended: OnEnd
    ) -> None:
        options = self._options
        if self._hints:
            options = replace(options, hints=[self._hints[number] for number, _ in window])
        self.desk.loop.put([part.key for _, part in window], ptrs, sizes, options, ended)

    def ended(self, window: Window, pages: list[int], results: list[int]) -> None:
        for (number, _), result in zip(window, results, strict=True):
            if result < 0:
                self._drop(number, reason_of(result))
            else:
                self._left[number] -= 1
                self._sent[number] = True

    def late(self, window: Window) -> None:
        for number, _ in window:
            self._drop(number, MissReason.TIMEOUT)

    def finish(self) -> None:
        self.desk.backlog_bytes -= self._held_bytes
        stored = []
        for left, sent, reason in zip(self._left, self._sent, self._reasons, strict=True):
            outcome = Stored.DROPPED if left else Stored.NEW if sent else Stored.KNOWN
            self.desk.dropped.note(self._request, reason if left else MissReason.PRESENT)
            stored.append(outcome)
        self._on_end(stored)

    def _drop(self, number: int, reason: MissReason) -> None:
        if self._reasons[number] is MissReason.OTHER:
            self._reasons[number] = reason
            self.desk.complain(f"stores are dropped ({reason.label})", "the pool did not take them")
