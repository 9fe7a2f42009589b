"""Tells whoever reboots machines which Nodes may go: an annotation, where the chart asks for it."""

from collections.abc import Collection, Sequence

from memkv_operator.plan.actions import AnnotateNode
from memkv_operator.plan.holding import announces_maintenance
from memkv_operator.plan.membership import Member


def reboot_actions(
    members: Sequence[Member], drained: Collection[str], needed_elsewhere: Collection[str]
) -> list[AnnotateNode]:
    """Return what makes the annotation of each Node true.

    A Node that somebody empties may go once it owns no slots here, or its slots wait for it, and no
    other pool needs it. `needed_elsewhere`: the names of those that one does.
    """
    actions: list[AnnotateNode] = []
    for member in members:
        node = member.kube_node
        if node is None:
            continue
        free = member.name in drained or announces_maintenance(member)
        safe = node.leaving and free and member.name not in needed_elsewhere
        if safe != node.safe_to_reboot:
            actions.append(AnnotateNode(member.name, safe))
    return actions
