"""Large work in windows: a few dozen blocks at a time, a few windows under way.

Each request then has its own deadline, other work gets its turn in between, a load that is out of
time stops asking, and the header pages of all work together stay bounded.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from memkv.clock import Clock
from memkv.integrations.arena import HeaderPages
from memkv.integrations.jobs import JobClient, JobLoop, OnEnd
from memkv.integrations.parts import Part
from memkv.integrations.reasons import RequestReasons
from memkv.limits import (
    BLOCK_HEADER_BYTES,
    COMPLAINT_INTERVAL_MS,
    EXPLAINED_MISSES_MAX,
    HEADER_PAGES,
    WINDOW_BLOCKS,
    WINDOW_BYTES,
    WINDOWS_IN_FLIGHT,
)
from memkv.reasons import MissReason

log = logging.getLogger(__name__)

Window = list[tuple[int, Part]]
"""Parts with the number of the object that they belong to."""


class Desk:
    """What all work of one client shares. Only `loop.call`, reasons and `complain` are for any
    thread."""

    def __init__(self, client: JobClient, clock: Clock) -> None:
        self.clock = clock
        self.missed = client.reasons
        self.dropped = RequestReasons()
        self.backlog_bytes = 0
        """Of stores under way."""
        self.pages = HeaderPages(client, HEADER_PAGES)
        self._waiting: list[Windows] = []
        self._quiet_until_ns: dict[str, int] = {}
        self.loop = JobLoop(client, tick=self.resume)

    def wait(self, work: Windows) -> None:
        """Run `work` again when there are pages, and once in a while for its deadline."""
        if work not in self._waiting:
            self._waiting.append(work)

    def resume(self) -> None:
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work.run()

    def explain(self, request: Hashable, keys: Sequence[bytes]) -> None:
        """Count misses of what nothing lies under, by what nodes remember of it. Nobody waits for
        that; a node is asked about EXPLAINED_MISSES_MAX of them, the rest are UNEXPLAINED."""
        asked = keys[:EXPLAINED_MISSES_MAX]

        def answered(results: list[int]) -> None:
            for result in results:
                reason = MissReason(result) if result > 0 else MissReason.UNEXPLAINED
                self.missed.note(request, reason)

        if len(keys) > len(asked):
            self.missed.note(request, MissReason.UNEXPLAINED, len(keys) - len(asked))
        if asked:
            self.loop.why(asked, answered)

    def complain(self, what: str, text: str) -> None:
        """Log a warning, once in a while for each `what`."""
        now_ns = self.clock.monotonic_ns()
        if now_ns >= self._quiet_until_ns.get(what, 0):
            self._quiet_until_ns[what] = now_ns + COMPLAINT_INTERVAL_MS * 1_000_000
            log.warning("%s: %s", what, text)


class Windows(ABC):
    """One load or store: a base that sends the parts of objects; the rest says what with them."""

    def __init__(self, desk: Desk, objects: Sequence[Sequence[Part]]) -> None:
        self.desk = desk
        self.objects = objects
        self.deadline_ns: int | None = None
        self.parts: Window = []
        self._next = 0
        self._in_flight = 0
        self._finished = False

    def run(self) -> None:
        """Send what may be sent; finish once all has ended. On the loop's thread."""
        while self._next < len(self.parts) and self._in_flight < WINDOWS_IN_FLIGHT:
            if self.deadline_ns is not None and self._now_ns() > self.deadline_ns:
                late, self._next = self.parts[self._next :], len(self.parts)
                self.late(late)
                break
            window = self._window()
            pages = self.take_pages(window)
            if pages is None:
                self.desk.wait(self)
                return
            self._next += len(window)
            self._in_flight += 1
            self._send(window, pages)
        if self._next == len(self.parts) and not self._in_flight and not self._finished:
            self._finished = True
            self.finish()

    def _now_ns(self) -> int:
        return self.desk.clock.monotonic_ns()

    def _window(self) -> Window:
        """Return the next parts, as many as fit a window."""
        window: Window = []
        size_bytes = 0
        for number, part in self.parts[self._next : self._next + WINDOW_BLOCKS]:
            size_bytes += part.format.payload_bytes
            if window and size_bytes > WINDOW_BYTES:
                break
            window.append((number, part))
        return window

    def _send(self, window: Window, pages: list[int]) -> None:
        ptrs = [
            [page, *[address for address, _ in part.pieces]]
            for page, (_, part) in zip(pages, window, strict=True)
        ]
        sizes = [
            [BLOCK_HEADER_BYTES, *[length for _, length in part.pieces]] for _, part in window
        ]

        def ended(results: list[int]) -> None:
            self._in_flight -= 1
            try:
                self.ended(window, pages, results)
            finally:
                self.give_back_pages(pages)
                self.desk.resume()
                self.run()

        self.submit(window, ptrs, sizes, ended)

    # --- for the work's own class -------------------------------------------------------------
    @abstractmethod
    def take_pages(self, window: Window) -> list[int] | None:
        """Return the address of a header page for each part; None while there are not so many."""

    @abstractmethod
    def give_back_pages(self, pages: list[int]) -> None:
        """Take them back."""

    @abstractmethod
    def submit(
        self, window: Window, ptrs: list[list[int]], sizes: list[list[int]], ended: OnEnd
    ) -> None:
        """Start the window's job."""

    @abstractmethod
    def ended(self, window: Window, pages: list[int], results: list[int]) -> None:
        """Take its results."""

    @abstractmethod
    def late(self, window: Window) -> None:
        """Take parts that were not sent in time."""

    @abstractmethod
    def finish(self) -> None:
        """Tell the caller; called once."""


