"""The ideal cache that the demonstration is compared with."""

import pytest

from memkv.demo.reference import lru_hits, simulate
from memkv.demo.trace import read_trace


def test_only_leading_blocks_count() -> None:
    assert lru_hits([(1, 2, 3), (1, 9, 3)], 10) == 1, "3 is stored, but 9 before it is not"
    assert lru_hits([(1, 2, 3), (1, 2, 3)], 10) == 3


def test_tails_leave_first() -> None:
    """Room for two of three blocks: the two at the head stay."""
    assert lru_hits([(1, 2, 3), (1, 2, 3)], 2) == 2


def test_the_oldest_request_leaves_first() -> None:
    assert lru_hits([(1,), (2,), (3,), (1,)], 2) == 0
    assert lru_hits([(1,), (2,), (1,), (3,), (1,)], 2) == 2


def test_no_requests() -> None:
    found = simulate([], 10)
    assert (found.references, found.unique_blocks, found.lru_ratio) == (0, 0, 0.0)


@pytest.mark.slow
def test_the_whole_trace_gives_the_known_ratios() -> None:
    """0.345 at 20% and 0.366 without bound, as published for this trace and policy."""
    blocks = [request.blocks for request in read_trace()]
    found = simulate(blocks, 182_790 // 5)
    assert found.unique_blocks == 182_790
    assert found.references == 288_500
    assert found.lru_ratio == pytest.approx(0.345, abs=0.0005)
    assert found.unbounded_ratio == pytest.approx(0.366, abs=0.0005)
