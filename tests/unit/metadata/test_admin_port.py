"""The rule by which a node or an agent takes a spec, the same for both."""

import pytest

from memkv.metadata.admin_port import Spec, is_next
from memkv_proto.agent_admin_pb2 import AgentSpec
from memkv_proto.node_admin_pb2 import NodeSpec


def check(none: Spec, older: Spec, before: Spec, other: Spec, newer: Spec) -> None:
    """`other` is of the generation of `before`."""
    assert is_next(older, none)
    assert is_next(newer, before)
    assert not is_next(before, before)
    for refused in (older, none):
        with pytest.raises(ValueError, match="apply the newest"):
            is_next(refused, before)
    with pytest.raises(ValueError, match="another spec"):
        is_next(other, before)
    with pytest.raises(ValueError, match="generation 0"):
        is_next(none, none)


def test_nodes_take_newer_specs_only() -> None:
    six, seven, eight = (NodeSpec(generation=n) for n in (6, 7, 8))
    check(NodeSpec(), six, seven, NodeSpec(generation=7, revision="x"), eight)


def test_agents_take_newer_specs_only() -> None:
    six, seven, eight = (AgentSpec(generation=n) for n in (6, 7, 8))
    check(AgentSpec(), six, seven, AgentSpec(generation=7, wipes=["x"]), eight)
