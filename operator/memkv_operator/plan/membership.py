"""Which nodes of the cluster belong to a pool, and what each should be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.names import COMPONENT_NODE
from memkv_operator.api.node import MemKVNode, Restart, WantedState
from memkv_operator.api.pool import NodeGroup, Pool
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.node_drives import NodeDrives


class Refusal(Enum):
    """Why a node that should give its slots away keeps them."""

    NO_OTHER_NODE = "NoOtherNode"
    PAUSED = "Paused"


@dataclass(frozen=True, slots=True)
class Member:
    """A node of a pool: selected now, or known from before."""

    name: str
    group: NodeGroup | None
    """None: no group selects it any more, or the Node is gone."""
    kube_node: KubeNode | None
    memkv_node: MemKVNode | None
    pod: Pod | None
    seen: NodeSeen | None
    drains_on_cordon: bool = True
    drives: NodeDrives | None = None
    """None: its group has no drives."""
    refusal: Refusal | None = None
    held: bool = False
    """Whether it is away on purpose and will be back: its slots wait for it."""

    @property
    def desired(self) -> bool:
        """Whether it should serve the pool."""
        return self.group is not None and self.wanted is not WantedState.REMOVED

    @property
    def wanted(self) -> WantedState:
        """What people want of it."""
        return self.memkv_node.state if self.memkv_node is not None else WantedState.ACTIVE

    @property
    def restart(self) -> Restart | None:
        """The replacement of its pod that is under way."""
        return self.memkv_node.restart if self.memkv_node is not None else None

    @property
    def held_for_restart(self) -> bool:
        """Whether its slots wait because the operator replaces its pod."""
        return self.held and self.restart is not None

    @property
    def should_drain(self) -> bool:
        """Whether somebody wants it to give its slots away."""
        if self.wanted in (WantedState.DRAINING, WantedState.REMOVED) or self.group is None:
            return True
        if self.restart is not None and self.restart.drains:
            return True
        node = self.kube_node
        return node is not None and (node.for_good or (node.leaving and self.drains_on_cordon))

    @property
    def draining(self) -> bool:
        """Whether it gives its slots away."""
        return self.should_drain and self.refusal is None

    @property
    def cordoned(self) -> bool:
        """Whether it keeps the slots it has and gets no new ones."""
        leaving = self.kube_node is not None and self.kube_node.leaving
        return not self.should_drain and (leaving or self.wanted is WantedState.CORDONED)

    @property
    def vouched(self) -> bool:
        """Whether the cluster itself sees node and pod alive."""
        return (
            self.kube_node is not None
            and self.kube_node.ready
            and self.pod is not None
            and self.pod.ready
            and not self.pod.deleting
        )

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        seen = self.seen
        return (
            self.vouched
            and seen is not None
            and seen.reachable
            and seen.facts is not None
            and seen.facts.serving
        )


def group_of(pool: Pool, node: KubeNode) -> NodeGroup | None:
    """Return the first group that selects a node."""
    return next((group for group in pool.spec.groups if group.matches(node.labels)), None)


def members_of(
    pool: Pool,
    kube_nodes: Mapping[str, KubeNode],
    memkv_nodes: Iterable[MemKVNode],
    pods: Iterable[Pod],
    seen: Mapping[str, NodeSeen],
    drives: Mapping[str, NodeDrives] = MappingProxyType({}),
) -> list[Member]:
    """Return the pool's nodes by name: those selected, and those that have a MemKVNode."""
    groups = {
        node.name: group
        for node in kube_nodes.values()
        if (group := group_of(pool, node)) is not None
    }
    known = {node.node_name: node for node in memkv_nodes}
    pod_on = newest_pods(pods)
    return [
        Member(
            name,
            groups.get(name),
            kube_nodes.get(name),
            known.get(name),
            pod_on.get(name),
            seen.get(name),
            drains_on_cordon=pool.spec.drains_on_cordon,
            drives=drives.get(name),
        )
        for name in sorted(groups.keys() | known.keys())
    ]


def newest_pods(pods: Iterable[Pod]) -> dict[str, Pod]:
    """Return the data-plane pod on each node: one that stays before one that goes."""
    on_node: dict[str, Pod] = {}
    for pod in pods:
        if pod.component != COMPONENT_NODE or not pod.node_name:
            continue
        other = on_node.get(pod.node_name)
        if other is None or (other.deleting, other.uid) > (pod.deleting, pod.uid):
            on_node[pod.node_name] = pod
    return on_node
