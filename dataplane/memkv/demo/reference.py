"""What an ideal cache would hit on the same requests: the line that the real pool is held against.

Ideal means: no record headers, no segments, no node that dies; every block counts as one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """Hit ratios of one sequence of requests; a ratio is blocks hit as prefix / blocks asked."""

    references: int
    unique_blocks: int
    capacity_blocks: int
    lru_ratio: float
    unbounded_ratio: float


def unique_blocks(requests: Iterable[Sequence[int]]) -> int:
    """Return how many different blocks the requests name."""
    return len({block for blocks in requests for block in blocks})


def simulate(requests: Sequence[Sequence[int]], capacity_blocks: int) -> Reference:
    """Run an LRU cache of `capacity_blocks` (tails leave before heads) and one without bound."""
    references = sum(len(blocks) for blocks in requests)
    unique = unique_blocks(requests)
    return Reference(
        references, unique, capacity_blocks,
        ratio(lru_hits(requests, capacity_blocks), references),
        ratio(lru_hits(requests, unique), references),
    )  # fmt: skip


def lru_hits(requests: Iterable[Sequence[int]], capacity_blocks: int) -> int:
    """Return how many blocks are hit as prefix: the leading ones of each request that are stored.

    A request stores what it missed and makes its blocks the youngest, its head the very youngest:
    a tail without its head is worth nothing.
    """
    stored: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for blocks in requests:
        for block in blocks:
            if block not in stored:
                break
            hits += 1
        for block in reversed(blocks):
            stored[block] = None
            stored.move_to_end(block)
        while len(stored) > capacity_blocks:
            stored.popitem(last=False)
    return hits


def ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0
