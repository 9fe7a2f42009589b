"""What the pool said about chunks, for as long as a request wants to know it.

vLLM asks for one chunk at a time, again in every step until there is an answer, and believes a hit
at once: it takes room in the host cache and orders a load. So answers are kept until the last
request that asked is over; one question a request and step covers all chunks that are new; and a
chunk whose load failed stays a miss for those requests, or they would order it for ever.

Answers may be late: after the deadline a chunk is a miss. No thread, no I/O; used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Ask = Callable[[str, list[bytes]], None]
"""Ask the pool for chunks, for a request. The answer is brought back by `Lookups.answer`."""


@dataclass(slots=True)
class _Chunk:
    late_ns: int
    is_there: bool | None = None
    requests: set[str] = field(default_factory=set)


class Lookups:
    """Of one engine."""

    def __init__(
        self, ask: Ask, deadline_ms: int, now_ns: Callable[[], int],
        on_late: Callable[[str], None] = lambda request: None,
    ) -> None:
        """`on_late` is told of a request whose chunk became a miss since nobody answered."""
        self._ask = ask
        self._deadline_ns = deadline_ms * 1_000_000
        self._now_ns = now_ns
        self._on_late = on_late
        self._chunks: dict[bytes, _Chunk] = {}
        self._of_request: dict[str, set[bytes]] = {}
        self._new: dict[bytes, str] = {}
        """Chunks to ask for, and for which request."""

    def look(self, chunk: bytes, request: str) -> bool | None:
        """Say whether a chunk is there; None: ask again in the next step."""
        known = self._chunks.get(chunk)
        if known is None:
            known = self._chunks[chunk] = _Chunk(self._now_ns() + self._deadline_ns)
            self._new[chunk] = request
        if request not in known.requests:
            known.requests.add(request)
            self._of_request.setdefault(request, set()).add(chunk)
        if known.is_there is None and self._now_ns() > known.late_ns:
            known.is_there = False
            self._on_late(request)
        return known.is_there

    def flush(self) -> None:
        """The step is over: ask for all chunks that are new in it."""
        new, self._new = self._new, {}
        wanted: dict[str, list[bytes]] = {}
        for chunk, request in new.items():
            if chunk in self._chunks:
                wanted.setdefault(request, []).append(chunk)
        for request, chunks in wanted.items():
            self._ask(request, chunks)

    def answer(self, chunks: Sequence[bytes], found: Sequence[bool]) -> None:
        """Take an answer. Chunks that were decided meanwhile stay as they are: too late, failed to
        load, or stored."""
        for chunk, is_there in zip(chunks, found, strict=True):
            known = self._chunks.get(chunk)
            if known is not None and known.is_there is None:
                known.is_there = is_there

    def mark_missing(self, chunks: Iterable[bytes]) -> None:
        """Loads of these chunks failed: a miss for every request that has asked so far."""
        self._mark(chunks, False)

    def mark_present(self, chunks: Iterable[bytes]) -> None:
        """These chunks were stored now."""
        self._mark(chunks, True)

    def drop(self, request: str) -> None:
        """A request is over. What nobody else asked for is forgotten."""
        for chunk in self._of_request.pop(request, ()):
            known = self._chunks[chunk]
            known.requests.discard(request)
            if not known.requests:
                del self._chunks[chunk]

    def _mark(self, chunks: Iterable[bytes], is_there: bool) -> None:
        for chunk in chunks:
            known = self._chunks.get(chunk)
            if known is not None:
                known.is_there = is_there
