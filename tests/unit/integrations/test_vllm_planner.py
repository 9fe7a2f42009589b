"""What a request of vLLM looks up, loads and stores: decided without vLLM."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memkv.integrations.vllm.planner import (
    CacheShape,
    PlacedBlock,
    RequestPlan,
    first_seen,
    usable_blocks,
)

ONE_GROUP = CacheShape(16, (None,))
WITH_WINDOW = CacheShape(16, (None, 32))


def hashes(count: int) -> list[bytes]:
    return [bytes((number,)) * 32 for number in range(count)]


def test_asks_for_all_full_blocks_but_leaves_the_last_token_to_compute() -> None:
    plan = RequestPlan(ONE_GROUP, hashes(4))
    assert plan.wanted(63) == 3
    assert plan.wanted(64) == 3
    assert plan.wanted(65) == 4


def test_asks_for_no_block_that_has_no_hash() -> None:
    assert RequestPlan(ONE_GROUP, hashes(2)).wanted(1000) == 2
    assert RequestPlan(ONE_GROUP, []).wanted(0) == 0


def test_matches_leading_blocks_beyond_what_is_computed() -> None:
    plan = RequestPlan(ONE_GROUP, hashes(6))
    assert plan.matched(0) == 0  # nobody answered yet
    plan.answer([[True, True, True, False, True]])
    assert plan.matched(0) == 48
    assert plan.matched(16) == 32
    assert plan.matched(64) == 0


def test_loads_into_the_places_behind_what_is_computed() -> None:
    names = hashes(4)
    plan = RequestPlan(ONE_GROUP, names)
    plan.answer([[True, True, True, True]])
    assert plan.load(16, 32, [[7, 8, 9, 10]]) == [
        PlacedBlock(1, 0, 8, names[1]), PlacedBlock(2, 0, 9, names[2]),
    ]


def test_stores_each_complete_block_once_and_none_that_the_pool_has() -> None:
    names = hashes(4)
    plan = RequestPlan(ONE_GROUP, names)
    plan.answer([[True, False, False]])
    assert not plan.has_to_store(31)
    assert plan.store(31, [[5, 6]]) == []
    assert plan.has_to_store(32)
    assert plan.store(47, [[5, 6, 7]]) == [PlacedBlock(1, 0, 6, names[1])]
    assert plan.store(47, [[5, 6, 7]]) == []
    assert plan.store(64, [[5, 6, 7, 8]]) == [
        PlacedBlock(2, 0, 7, names[2]), PlacedBlock(3, 0, 8, names[3]),
    ]


def test_stores_what_is_generated_as_soon_as_it_has_a_hash() -> None:
    names = hashes(1)
    plan = RequestPlan(ONE_GROUP, names)
    plan.answer([[False]])
    assert [block.number for block in plan.store(40, [[1, 2, 3]])] == [0]
    names.append(b"new" * 8)
    assert [block.number for block in plan.store(41, [[1, 2, 3]])] == [1]


def test_a_failed_load_is_computed_stored_anew_and_not_loaded_again() -> None:
    plan = RequestPlan(ONE_GROUP, hashes(4))
    plan.answer([[True, True, True, True]])
    assert plan.matched(0) == 64
    plan.load_failed(1)
    assert plan.matched(0) == 0
    assert plan.wanted(1000) == 0
    assert [block.number for block in plan.store(64, [[1, 2, 3, 4]])] == [1, 2, 3]


def test_without_an_answer_only_what_is_computed_from_now_on_is_stored() -> None:
    plan = RequestPlan(ONE_GROUP, hashes(3))
    plan.unanswered(32)
    assert plan.is_answered
    assert plan.matched(0) == 0
    assert [block.number for block in plan.store(48, [[1, 2, 3]])] == [2]


def test_a_preempted_request_asks_again_and_stores_nothing_twice() -> None:
    plan = RequestPlan(ONE_GROUP, hashes(3))
    plan.answer([[False, False, False]])
    assert len(plan.store(48, [[1, 2, 3]])) == 3
    plan.forget_answer()
    assert not plan.is_answered
    plan.answer([[True, True, True]])
    assert plan.matched(0) == 48
    assert plan.store(48, [[4, 5, 6]]) == []


def test_a_window_group_needs_only_what_the_next_token_sees() -> None:
    assert first_seen(16, 32, 4) == 2
    assert first_seen(16, 33, 4) == 2
    assert first_seen(16, 34, 4) == 1
    assert usable_blocks(WITH_WINDOW, [[True] * 4, [False, False, True, True]]) == 4
    assert usable_blocks(WITH_WINDOW, [[True] * 4, [True, True, True, False]]) == 3
    assert usable_blocks(WITH_WINDOW, [[True] * 4, [False] * 4]) == 0


def test_blocks_outside_a_window_are_neither_loaded_nor_stored() -> None:
    plan = RequestPlan(WITH_WINDOW, hashes(4))
    plan.answer([[True] * 4, [False, False, True, True]])
    assert plan.matched(0) == 64
    loaded = plan.load(0, 64, [[1, 2, 3, 4], [0, 0, 8, 9]])
    assert [(block.number, block.group) for block in loaded] == [
        (0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1),
    ]
    assert plan.store(64, [[1, 2, 3, 4], [0, 0, 8, 9]]) == []


def test_missing_blocks_of_a_window_are_stored_beside_a_complete_full_group() -> None:
    plan = RequestPlan(WITH_WINDOW, hashes(4))
    plan.answer([[True] * 4, [True, True, False, False]])
    stored = plan.store(64, [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert [(block.number, block.group) for block in stored] == [(2, 1), (3, 1)]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=2),
       st.integers(1, 120))
def test_a_hit_is_the_longest_prefix_that_every_group_can_use(
    present: list[list[bool]], window: int
) -> None:
    shape = CacheShape(16, (None, window))

    def is_usable(count: int) -> bool:
        seen = [number for number in range(count)
                if (number + 1) * 16 > count * 16 - window + 1]
        return all(present[0][:count]) and all(present[1][number] for number in seen)

    expected = max(count for count in range(7) if count == 0 or is_usable(count))
    assert usable_blocks(shape, present) == expected
