"""Whose figures are written when."""

from memkv_operator.plan.figures import NODES_PER_TURN, FigureTurns

SECOND_NS = 1_000_000_000


def names(count: int) -> list[str]:
    return [f"n{number:03}" for number in range(count)]


def whole(count: int) -> frozenset[str]:
    return frozenset(names(count))


def test_a_small_pool_is_written_whole_at_each_turn() -> None:
    turns = FigureTurns(pause_s=60)
    assert turns.take(names(3), 0) == whole(3)
    assert turns.take(names(3), 59 * SECOND_NS) is None
    assert turns.take(names(3), 60 * SECOND_NS) == whole(3)


def test_a_turn_of_a_large_pool_is_bounded_and_all_nodes_have_theirs() -> None:
    turns, nodes = FigureTurns(pause_s=60), names(500)
    seen: set[str] = set()
    rounds = -(-len(nodes) // NODES_PER_TURN)
    for number in range(rounds):
        turn = turns.take(list(reversed(nodes)), number * 60 * SECOND_NS)
        assert turn is not None
        assert len(turn) == NODES_PER_TURN
        seen |= turn
    assert seen == set(nodes)


def test_nodes_that_come_and_go_do_not_stop_the_turns() -> None:
    turns = FigureTurns(pause_s=1)
    assert turns.take(names(NODES_PER_TURN + 1), 0) == whole(NODES_PER_TURN)
    assert turns.take([], SECOND_NS) == frozenset()
    assert turns.take(["z"], 2 * SECOND_NS) == frozenset({"z"})
    assert turns.take(["a"], 3 * SECOND_NS) == frozenset({"a"})
