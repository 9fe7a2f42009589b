"""How long agents have been quiet that wipe the drives of deleted pools, as this operator saw it.

Time counts from the first look: an operator that takes over has heard nobody yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from memkv.clock import Clock
from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.pool import Pool
from memkv_operator.plan.disks import WipeSeen
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.wiping import Quiet, progress_of


@dataclass(slots=True)
class _Node:
    """When something was new on a node; monotonic."""

    heard_ns: int
    moved_ns: int
    progress: tuple[WipeSeen, ...] = ()


class WipeWatch:
    """All pools that are being deleted with their blocks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pools: dict[str, tuple[str, dict[str, _Node]]] = {}
        """By key: the UID, and its nodes by name."""

    def look(
        self, pool: Pool, drives: Mapping[str, NodeDrives], kube_nodes: Mapping[str, KubeNode]
    ) -> dict[str, Quiet]:
        """Return how quiet each node with drives of a pool is now."""
        uid, nodes = self._pools.get(pool.key, ("", {}))
        if uid != pool.meta.uid:
            nodes = {}
            self._pools[pool.key] = pool.meta.uid, nodes
        now_ns = self._clock.monotonic_ns()
        for name, found in drives.items():
            node = nodes.setdefault(name, _Node(now_ns, now_ns))
            kube_node = kube_nodes.get(name)
            if found.agent_problem or kube_node is None or not kube_node.ready:
                continue
            node.heard_ns = now_ns
            progress = progress_of(found)
            if progress != node.progress:
                node.moved_ns, node.progress = now_ns, progress
        return {
            name: Quiet((now_ns - node.heard_ns) / 1e9, (now_ns - node.moved_ns) / 1e9)
            for name, node in nodes.items()
        }

    def forget(self, key: str) -> None:
        """Drop a pool that is gone."""
        self._pools.pop(key, None)
