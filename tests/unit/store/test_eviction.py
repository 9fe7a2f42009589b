"""The default policy: what was used since, youngest and nearest to the root first."""

from memkv.store.eviction import Candidate, LruTailsFirst, stamp_after

POLICY = LruTailsFirst()


def test_unused_blocks_are_not_kept_whatever_the_credit() -> None:
    candidates = [Candidate(0, 5, 0, 10), Candidate(1, 3, 0, 10)]
    assert POLICY.keep(candidates, 5, 1000) == []


def test_the_youngest_are_kept_first_and_heads_before_tails() -> None:
    old, tail, head = Candidate(0, 11, 0, 10), Candidate(1, 20, 9, 10), Candidate(2, 20, 1, 10)
    assert POLICY.keep([old, tail, head], 10, 30) == [head, tail, old]
    assert POLICY.keep([old, tail, head], 10, 10) == [head]


def test_what_does_not_fit_is_skipped() -> None:
    large, small = Candidate(0, 20, 0, 100), Candidate(1, 15, 0, 10)
    assert POLICY.keep([large, small], 10, 50) == [small]


def test_stamps_are_ordered_across_their_wrap() -> None:
    assert stamp_after(3, 0xFFFFFFF0)
    assert not stamp_after(0xFFFFFFF0, 3)
    assert not stamp_after(7, 7)
