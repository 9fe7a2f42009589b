"""Loading objects into an engine's memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from memkv.clock import deadline_after_ms
from memkv.integrations.blocks import BlockFormat, judge
from memkv.integrations.jobs import OnEnd
from memkv.integrations.parts import Part
from memkv.integrations.windows import Desk, Window, Windows
from memkv.limits import BLOCK_HEADER_BYTES
from memkv.reasons import MissReason

LoadEnd = Callable[[list[BlockFormat | None]], None]

LOUD = (MissReason.WRONG_NAMESPACE, MissReason.WRONG_FORMAT, MissReason.CORRUPT, MissReason.DENIED)
"""Reasons that somebody has to do something about."""


class Load(Windows):
    """An object is a hit when all of its parts are."""

    def __init__(
        self, desk: Desk, objects: Sequence[Sequence[Part]], on_end: LoadEnd, request: Hashable,
        shorter: bool, timeout_ms: int,
    ) -> None:
        super().__init__(desk, objects)
        self.deadline_ns = deadline_after_ms(desk.clock, timeout_ms)
        self.parts = [(number, part) for number, parts in enumerate(objects) for part in parts]
        self._on_end = on_end
        self._request = request
        self._shorter = shorter
        self._left = [len(parts) for parts in objects]
        """Parts of each object that are not there yet."""
        self._reasons = [MissReason.OTHER] * len(objects)
        self._found: list[BlockFormat | None] = [None] * len(objects)
        self._absent: list[bytes] = []
        """Keys under which nothing lies, one for each object that is a miss for that."""

    def take_pages(self, window: Window) -> list[int] | None:
        return self.desk.pages.take(len(window))

    def give_back_pages(self, pages: list[int]) -> None:
        self.desk.pages.give_back(pages)

    def submit(
        self, window: Window, ptrs: list[list[int]], sizes: list[list[int]], ended: OnEnd
    ) -> None:
        self.desk.loop.get([part.key for _, part in window], ptrs, sizes, ended)

    def ended(self, window: Window, pages: list[int], results: list[int]) -> None:
        for (number, part), page, result in zip(window, pages, results, strict=True):
            header = self.desk.pages.view(page)
            verdict = judge(result, header, part.format)
            found: BlockFormat | None = part.format if verdict.is_hit else None
            if found is None and self._shorter and len(self.objects[number]) == 1:
                found = shorter_format(result, header, part.format)
            if found is not None:
                self._hit(number, found)
            else:
                self._missed(number, verdict.reason, part.key)
                if verdict.reason in LOUD:
                    self.desk.complain(f"a block is a miss ({verdict.reason.label})", verdict.text)

    def late(self, window: Window) -> None:
        for number, part in window:
            self._missed(number, MissReason.TIMEOUT, part.key)

    def finish(self) -> None:
        for reason in self._reasons:
            if reason is not MissReason.UNEXPLAINED:
                self.desk.missed.note(self._request, reason)
        self._on_end(self._found)
        self.desk.explain(self._request, self._absent)

    def _hit(self, number: int, found: BlockFormat) -> None:
        self._left[number] -= 1
        if self._left[number] == 0:
            self._found[number] = found
            self._reasons[number] = MissReason.PRESENT

    def _missed(self, number: int, reason: MissReason, key: bytes) -> None:
        if self._reasons[number] is MissReason.OTHER:
            self._reasons[number] = reason
            if reason is MissReason.UNEXPLAINED:
                self._absent.append(key)


def shorter_format(
    result: int, page: bytes | memoryview, expected: BlockFormat
) -> BlockFormat | None:
    """Return what a block says of itself when it is of the expected namespace and group and is as
    long as it says; None otherwise. Its shape is its own."""
    found = BlockFormat.read(page) if result > BLOCK_HEADER_BYTES else None
    if (
        found is None
        or found.payload_bytes != result - BLOCK_HEADER_BYTES
        or (found.namespace_digest, found.group, found.dtype, found.coding)
        != (expected.namespace_digest, expected.group, expected.dtype, expected.coding)
    ):
        return None
    return found
