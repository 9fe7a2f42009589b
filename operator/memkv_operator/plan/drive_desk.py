"""Decides on the drives of all nodes for all pools, since pools may meet on a node."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memkv.metadata.kubernetes.json_values import JsonValue, Reader
from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.names import drive_resource, memkv_node_name
from memkv_operator.api.node import MemKVNode
from memkv_operator.api.pool import Pool
from memkv_operator.plan.disks import (
    AgentOrders,
    AgentSeen,
    Assignment,
    Disk,
    HandedDrive,
)
from memkv_operator.plan.drives import Drive, Neighbourhood, Want, choose
from memkv_operator.plan.membership import group_of
from memkv_operator.plan.node_drives import NodeDrives, chosen_of, worker_uuids_of
from memkv_operator.plan.wiping import wipe_orders

NO_AGENT = (
    "no agent runs on it, and only agents hand drives to pods: check agent.nodeSelector and "
    "agent.tolerations of the chart"
)


@dataclass(frozen=True, slots=True)
class DriveSnapshot:
    """What deciding needs of the whole cluster."""

    pools: Sequence[Pool] = ()
    kube_nodes: Mapping[str, KubeNode] = field(default_factory=dict)
    memkv_nodes: Mapping[str, Sequence[MemKVNode]] = field(default_factory=dict)
    """By key of the pool."""
    agents: Mapping[str, AgentSeen] = field(default_factory=dict)
    """By name of the node."""
    pods: frozenset[tuple[str, str]] = frozenset()
    """(pool, node) where a data-plane pod still is, in whatever state."""
    unread: Mapping[str, Sequence[MemKVNode]] = field(default_factory=dict)
    """By key of each pool of which too little can be read: what it has stays untouched, and the
    agents of its nodes are told nothing new."""


class DriveDesk:
    """One decision for everything. Asked for a pool or for an agent."""

    def __init__(self, snapshot: DriveSnapshot) -> None:
        self._snapshot = snapshot
        self._with_drives = [
            pool for pool in snapshot.pools if any(g.drives is not None for g in pool.spec.groups)
        ]
        self._nodes: dict[str, dict[str, MemKVNode]] = {
            pool.key: {n.node_name: n for n in snapshot.memkv_nodes.get(pool.key, ())}
            for pool in self._with_drives
        }
        for key, nodes in snapshot.unread.items():
            self._nodes[key] = {node.node_name: node for node in nodes}
        self._untold = {node.node_name for nodes in snapshot.unread.values() for node in nodes}
        self._around = self._neighbourhood()
        self._decided: dict[str, dict[str, tuple[Drive, ...]]] = {}
        self._wanted: dict[str, list[Want]] = {}

    def of_pool(self, pool: Pool) -> dict[str, NodeDrives]:
        """Return what a pool gets on each node that a group with drives selects."""
        found: dict[str, NodeDrives] = {}
        for node in self._snapshot.kube_nodes:
            want = next((w for w in self._wants(node) if w.pool_uid == pool.meta.uid), None)
            if want is not None:
                found[node] = self._node_drives(node, want)
        return found

    def pools_on(self, node: str) -> list[str]:
        """Return the keys of pools that want drives of a node."""
        return [want.pool for want in self._wants(node)]

    def orders_of(self, node: str) -> AgentOrders | None:
        """Return what the agent of a node shall do, None while that cannot be told."""
        seen = self._snapshot.agents.get(node)
        if seen is None or seen.facts is None or node in self._untold:
            return None
        assignments: list[Assignment] = []
        wipes: list[str] = []
        for want in sorted(self._wants(node), key=lambda one: one.pool_uid):
            drives = self._node_drives(node, want)
            if want.wipes and (want.pool, node) not in self._snapshot.pods:
                wipes += wipe_orders(drives)
            elif handed := drives.handed:
                assignments.append(Assignment(want.pool_uid, want.resource, _handed(handed)))
        return AgentOrders(tuple(assignments), tuple(sorted(wipes)))

    # --- inside ------------------------------------------------------------------------------

    def _node_drives(self, node: str, want: Want) -> NodeDrives:
        seen = self._snapshot.agents.get(node)
        namespace, _, pool = want.pool.partition("/")
        known = NodeDrives(memkv_node_name(pool, node), namespace, (), want.workers, want.approved)
        if seen is None or seen.facts is None:
            problem = f"its agent does not answer: {seen.problem}" if seen is not None else NO_AGENT
            rows = self._rows_of(want.pool, node)
            return replace(known, agent_problem=problem, rows=rows)
        if node not in self._decided:
            self._decided[node] = choose(node, seen.facts.disks, self._wants(node), self._around)
        handing = (
            told.problem or "kubelet has not taken the drives yet"
            for told in seen.facts.assignments
            if told.pool_uid == want.pool_uid and not told.healthy
        )
        return replace(
            known,
            drives=self._decided[node][want.pool_uid],
            agent_problem=f"its agent does not answer: {seen.problem}" if seen.problem else "",
            handing_problem=next(handing, ""),
            wipes=seen.facts.wipes,
        )

    def _rows_of(self, pool: str, node: str) -> tuple[JsonValue, ...]:
        memkv_node = self._nodes[pool].get(node)
        if memkv_node is None:
            return ()
        return tuple(Reader(memkv_node.status).raw_list("drives"))

    def _wants(self, node: str) -> list[Want]:
        if node not in self._wanted:
            kube_node = self._snapshot.kube_nodes.get(node)
            self._wanted[node] = list(self._wants_of(kube_node)) if kube_node is not None else []
        return self._wanted[node]

    def _wants_of(self, kube_node: KubeNode) -> Iterable[Want]:
        for pool in self._with_drives:
            group = group_of(pool, kube_node)
            if group is None or group.drives is None:
                continue
            node = self._nodes[pool.key].get(kube_node.name)
            yield Want(
                pool.key,
                pool.meta.uid,
                rank_of(pool),
                drive_resource(group.name, pool.meta.uid),
                group.drives,
                group.workers,
                node.approved_drives if node is not None else frozenset(),
                chosen_of(node),
                frozen=pool.spec.paused or pool.meta.deleting,
                wipes=pool.meta.deleting and pool.spec.wipes_drives,
            )

    def _neighbourhood(self) -> Neighbourhood:
        holders = {
            uuid: pool
            for pool, nodes in self._nodes.items()
            for node in nodes.values()
            for uuid in worker_uuids_of(node)
        }
        seen_by: dict[str, list[str]] = defaultdict(list)
        elsewhere: dict[str, str] = {}
        for name, disk in self._disks_seen():
            if disk.identity and name not in seen_by[disk.identity]:
                seen_by[disk.identity].append(name)
            if disk.worker_uuid:
                elsewhere[disk.worker_uuid] = name
        shared = {identity: nodes for identity, nodes in seen_by.items() if len(nodes) > 1}
        return Neighbourhood(holders, self._keepers(shared), elsewhere)

    def _disks_seen(self) -> Iterable[tuple[str, Disk]]:
        """Of agents that answer: what others said may have moved since."""
        for name in sorted(self._snapshot.agents):
            seen = self._snapshot.agents[name]
            if seen.facts is not None and seen.reachable:
                for disk in seen.facts.disks:
                    yield name, disk

    def _keepers(self, shared: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Return who may use each disk that several nodes see: the node where it was chosen."""
        keepers = dict.fromkeys(shared, "")
        if not shared:
            return keepers
        for name, disk in self._disks_seen():
            if disk.identity in shared and not keepers[disk.identity]:
                chosen = (
                    one for nodes in self._nodes.values() for one in chosen_of(nodes.get(name))
                )
                if any(one.id == disk.id for one in chosen):
                    keepers[disk.identity] = name
        return keepers


def rank_of(pool: Pool) -> tuple[str, str]:
    """Return what pools are ordered by: the older one keeps what both claim."""
    return pool.meta.created, pool.meta.uid


def _handed(drives: Sequence[Drive]) -> tuple[HandedDrive, ...]:
    """Positions in a pod have no gaps: a drive that is away leaves none."""
    ordered = sorted(drives, key=lambda drive: drive.position)
    return tuple(
        HandedDrive(drive.id, drive.fingerprint, number, drive.erase)
        for number, drive in enumerate(ordered)
    )
