"""Medians of pairs and percentiles."""

from memkv.bench.statistics import (
    Pair,
    gb_per_s,
    interleave,
    median,
    percentile,
    summarize,
)


def test_percentiles_are_samples() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert percentile(samples, 0.5) == 50
    assert percentile(samples, 0.99) == 99
    assert percentile(samples, 1.0) == 100
    assert percentile([7.0], 0.01) == 7
    assert percentile([], 0.5) == 0


def test_the_ratio_is_of_neighbours() -> None:
    """A machine that slows down for both sides of two turns must not change the ratio."""
    pairs = [Pair(1.8, 2.0), Pair(0.9, 1.0), Pair(1.8, 2.0), Pair(0.45, 0.5), Pair(1.8, 2.0)]
    found = summarize(pairs)
    assert found.figure == 1.8
    assert found.limit == 2.0
    assert found.ratio == 0.9
    assert found.pairs == tuple(pairs)


def test_a_limit_that_is_not_known_gives_no_ratio() -> None:
    assert summarize([Pair(1.0, 0.0)]).ratio == 0.0
    assert summarize([]).figure == 0.0
    assert median([]) == 0.0
    assert gb_per_s(10**9, 2.0) == 0.5
    assert gb_per_s(1, 0.0) == 0.0


def test_sides_take_turns_in_going_first() -> None:
    order: list[str] = []

    def figure() -> str:
        order.append("figure")
        return "f"

    def limit() -> str:
        order.append("limit")
        return "l"

    assert interleave(3, figure, limit) == [("f", "l")] * 3
    assert order == ["limit", "figure", "figure", "limit", "limit", "figure"]
