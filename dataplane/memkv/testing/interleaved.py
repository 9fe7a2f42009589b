"""Figures beside their limits, all measured in turns, for tests of speed in the virtual machine.

An emulated machine's figures mean nothing alone, and wander by tens of percent within a minute. So
each turn measures every limit and every figure once, in one order and then in the other; a ratio is
taken within its turn, and the median of the turns is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memkv.bench.statistics import PAIRS_MIN, Pair, PairSummary, summarize

Measure = Callable[[], float]
"""Measures once; returns GB/s."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Something of MemKV; its limit is the least of those named, in each turn."""

    name: str
    measure: Measure
    limits: tuple[str, ...]


def compare(
    limits: Mapping[str, Measure], figures: Sequence[Figure], turns: int = PAIRS_MIN
) -> dict[str, PairSummary]:
    """Measure all in turns; return figure's name -> medians."""
    measures = [*limits.items(), *((figure.name, figure.measure) for figure in figures)]
    pairs: dict[str, list[Pair]] = {figure.name: [] for figure in figures}
    for turn in range(turns):
        measured = {name: measure() for name, measure in measures[:: 1 if turn % 2 == 0 else -1]}
        for figure in figures:
            limit = min(measured[name] for name in figure.limits)
            pairs[figure.name].append(Pair(measured[figure.name], limit))
    return {name: summarize(found) for name, found in pairs.items()}


def table(results: Mapping[str, PairSummary]) -> str:
    """Return one line a figure: medians of both and of the ratios, and the ratio of each turn."""
    lines = [f"{'':32} {'GB/s':>8} {'limit':>8} {'ratio':>6}  turns"]
    lines += [
        f"{name:32} {found.figure:8.3f} {found.limit:8.3f} {found.ratio:6.2f}  "
        + " ".join(f"{pair.ratio:.2f}" for pair in found.pairs)
        for name, found in results.items()
    ]
    return "\n".join(lines)
