"""Decides what a request looks up, loads and stores. No I/O, no time, nothing of the engine.

A request's blocks are numbered from the head of its tokens. Each cache group has one block for each
number: a group with a sliding window needs only those that the window still sees. A hit is a number
of leading blocks that are usable together: every full group has all of them, every window group
those that the next token sees. Where the layers of a block are stored in parts, each part counts as
a group: all parts of a block have one place.

What the engine owes and gets:

    plan = RequestPlan(shape, hashes)
    plan.wanted(token_count)            -> how many blocks to ask the pool for
    plan.answer(present)                <- which are there, a list for each group
    plan.matched(computed_tokens)       -> tokens that can be loaded now, beyond what is computed
    plan.load(external_tokens, ids)     -> which blocks to load into which places
    plan.store(computed_tokens, ids)    -> which blocks are complete and not known to be stored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

NULL_BLOCK = 0
"""vLLM's block that stands for "not kept": outside a window, never loaded, never stored."""


@dataclass(frozen=True)
class CacheShape:
    """The cache groups of an engine."""

    block_tokens: int
    windows: tuple[int | None, ...]
    """Of each group, in tokens; None where all tokens are kept."""
    parts: int = 1
    """Of each group's blocks."""

    def cut(self, parts: int) -> CacheShape:
        """Return the shape of an engine with one group, whose blocks are stored in parts."""
        return replace(self, windows=self.windows * parts, parts=parts)


class PlacedBlock(NamedTuple):
    """One block of one group, and the engine's place for it."""

    number: int
    group: int
    place: int
    block_hash: bytes


class RequestPlan:
    """One request, from its arrival to its end."""

    def __init__(self, shape: CacheShape, hashes: Sequence[bytes]) -> None:
        """`hashes`: of the request's full blocks; the engine appends to it while it generates."""
        self._shape = shape
        self._hashes = hashes
        self._present: list[list[bool]] | None = None
        self._stored = [0] * len(shape.windows)
        """For each group, where blocks begin that are neither known to be in the pool nor on their
        way there."""
        self._loads = True

    # --- lookups and loads --------------------------------------------------------------------
    def wanted(self, token_count: int) -> int:
        """Return how many leading blocks are worth asking for. The last token is always computed:
        its logits are needed."""
        if not self._loads or token_count < 1:
            return 0
        return min((token_count - 1) // self._shape.block_tokens, len(self._hashes))

    def hashes(self, count: int) -> list[bytes]:
        """Return the first `count` block hashes."""
        return list(self._hashes[:count])

    def answer(self, present: Sequence[Sequence[bool]]) -> None:
        """Take what a lookup found: for each group, whether each leading block is there."""
        self._present = [list(group) for group in present]
        self._stored = [
            _leading(group) if window is None else _after_last(group)
            for group, window in zip(self._present, self._shape.windows, strict=True)
        ]

    def unanswered(self, computed_tokens: int) -> None:
        """Nobody answered in time. What the engine has computed before is not stored again: a pool
        in trouble is not helped by puts of what it most likely has."""
        self._present = [[] for _ in self._shape.windows]
        self._stored = [computed_tokens // self._shape.block_tokens] * len(self._stored)

    @property
    def is_answered(self) -> bool:
        return self._present is not None

    def matched(self, computed_tokens: int) -> int:
        """Return how many tokens beyond `computed_tokens` can be loaded."""
        if self._present is None or not self._loads:
            return 0
        hit = usable_blocks(self._shape, self._present)
        return max(0, hit * self._shape.block_tokens - computed_tokens)

    def load(
        self, computed_tokens: int, external_tokens: int, places: Sequence[Sequence[int]]
    ) -> list[PlacedBlock]:
        """Return what to load after the engine chose places for `external_tokens`."""
        block_tokens = self._shape.block_tokens
        first = computed_tokens // block_tokens
        end = (computed_tokens + external_tokens) // block_tokens
        return self._placed(first, end, places)

    def load_failed(self, first_missing: int) -> None:
        """A load brought only the blocks before `first_missing`. The rest is computed, never
        loaded again by this request, and stored anew."""
        self._loads = False
        self._stored = [min(begin, first_missing) for begin in self._stored]

    def forget_answer(self) -> None:
        """The request begins anew (it was preempted): what was found may be gone."""
        self._present = None

    # --- stores -------------------------------------------------------------------------------
    def has_to_store(self, computed_tokens: int) -> bool:
        """Would `store` return anything? Cheaper than asking the engine for places first."""
        return self._complete(computed_tokens) > min(self._stored)

    def store(self, computed_tokens: int, places: Sequence[Sequence[int]]) -> list[PlacedBlock]:
        """Return the blocks that became complete with `computed_tokens` and are to be stored."""
        end = self._complete(computed_tokens)
        placed = [
            block for block in self._placed(min(self._stored), end, places)
            if block.number >= self._stored[block.group]
        ]
        self._stored = [max(begin, end) for begin in self._stored]
        return placed

    def _complete(self, computed_tokens: int) -> int:
        return min(computed_tokens // self._shape.block_tokens, len(self._hashes))

    def _placed(
        self, first: int, end: int, places: Sequence[Sequence[int]]
    ) -> list[PlacedBlock]:
        return [
            PlacedBlock(number, group, ids[number], self._hashes[number])
            for number in range(first, end)
            for group, ids in enumerate([ids for ids in places for _ in range(self._shape.parts)])
            if number < len(ids) and ids[number] != NULL_BLOCK
        ]


def usable_blocks(shape: CacheShape, present: Sequence[Sequence[bool]]) -> int:
    """Return the largest number of leading blocks that can be used together."""
    full = [_leading(group) for group, window in zip(present, shape.windows, strict=True)
            if window is None]
    most = min(full, default=max((len(group) for group in present), default=0))
    for count in range(most, 0, -1):
        if all(
            window is None or _holds(group, first_seen(shape.block_tokens, window, count), count)
            for group, window in zip(present, shape.windows, strict=True)
        ):
            return count
    return 0


def first_seen(block_tokens: int, window: int, count: int) -> int:
    """Return the first block that the token after `count` blocks sees through a window."""
    return max(0, count * block_tokens - window + 1) // block_tokens


def _holds(group: Sequence[bool], first: int, end: int) -> bool:
    return len(group) >= end and all(group[first:end])


def _leading(group: Sequence[bool]) -> int:
    return next((number for number, found in enumerate(group) if not found), len(group))


def _after_last(group: Sequence[bool]) -> int:
    """Blocks before the last one found were out of the window when somebody stored the others."""
    return max((number + 1 for number, found in enumerate(group) if found), default=0)
