"""Figures from samples. Pure.

A limit and a figure are measured in turns, because what a shared machine can do wanders by tens of
percent within minutes: the ratio of neighbours says more than a ratio of averages.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

PAIRS_MIN = 5
GB = 10**9

T = TypeVar("T")
U = TypeVar("U")


def percentile(samples: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile, 0 for no samples; `fraction` is 0 to 1."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def median(samples: Sequence[float]) -> float:
    """Return the median, 0 for no samples."""
    return statistics.median(samples) if samples else 0.0


def gb_per_s(size_bytes: float, seconds: float) -> float:
    """Return GB/s, GB = 10^9 bytes."""
    return size_bytes / GB / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure and the limit measured next to it, in the same unit."""

    figure: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.figure / self.limit if self.limit > 0 else 0.0


@dataclass(frozen=True, slots=True)
class PairSummary:
    """Medians over pairs. `ratio` is the median of the pairs' ratios, not a ratio of medians."""

    figure: float
    limit: float
    ratio: float
    pairs: tuple[Pair, ...]


def summarize(pairs: Sequence[Pair]) -> PairSummary:
    """Return the medians of some pairs."""
    return PairSummary(
        median([pair.figure for pair in pairs]),
        median([pair.limit for pair in pairs]),
        median([pair.ratio for pair in pairs]),
        tuple(pairs),
    )


def interleave(
    count: int, measure: Callable[[], T], limit: Callable[[], U],
    before: Callable[[int], None] = lambda turn: None,
) -> list[tuple[T, U]]:
    """Measure both `count` times in turns, and swap who goes first: neither always runs warm."""
    results = []
    for turn in range(count):
        before(turn)
        if turn % 2 == 0:
            limited = limit()
            measured = measure()
        else:
            measured = measure()
            limited = limit()
        results.append((measured, limited))
    return results
