"""Which actions of a plan go on side by side."""

from memkv_operator.plan.actions import (
    AT_ONCE,
    Action,
    ApplyNode,
    DeletePod,
    SetFinalizer,
    WriteNodeStatus,
    WritePoolStatus,
    side_by_side,
)


def test_only_writes_of_nodes_go_side_by_side_and_the_order_stays() -> None:
    nodes: list[Action] = [ApplyNode(f"n{n}", {}) for n in range(AT_ONCE + 1)]
    actions: list[Action] = [
        SetFinalizer(True), DeletePod("p", "u"), *nodes, WriteNodeStatus("m", {}),
        WritePoolStatus({}),
    ]  # fmt: skip
    batches = list(side_by_side(actions))
    assert [len(batch) for batch in batches] == [1, 1, AT_ONCE, 2, 1]
    assert [action for batch in batches for action in batch] == actions
    assert list(side_by_side(())) == []
