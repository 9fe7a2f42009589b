"""MemKVNode objects: which there should be, and what their status says."""

from collections.abc import Collection, Mapping, Sequence

from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv_operator.api.conditions import Condition, condition, merged, shortened
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_NODE,
    LABEL_NODE_GROUP,
    MEMKV_NODES,
    POOLS,
    memkv_node_name,
    pool_labels,
)
from memkv_operator.api.node import MemKVNode, Restart, WantedState
from memkv_operator.api.pool import Pool
from memkv_operator.plan.actions import Action, ApplyNode, DeleteObject, Event, WriteNodeStatus
from memkv_operator.plan.draining import DRAINED, Ownership
from memkv_operator.plan.facts import NodeFacts, WorkerFacts
from memkv_operator.plan.holding import announces_maintenance
from memkv_operator.plan.membership import Member, Refusal
from memkv_operator.plan.node_drives import chosen_of, drives_condition, trouble_of_drives
from memkv_operator.plan.pod_trouble import explained
from memkv_operator.plan.rdma import rdma_of_node
from memkv_operator.plan.weights import counted_bytes

RAILS_SHOWN = 32  # the schema's limit; a server has 8 NICs, rarely 10


def node_actions(
    pool: Pool,
    members: Sequence[Member],
    owned: Ownership,
    restarts: Mapping[str, Restart],
    time: str,
    figures_of: Collection[str] | None = None,
) -> list[Action]:
    """Return what makes the MemKVNodes those of the members, with their status.

    `restarts`: the replacements of pods that are under way, by node.
    `figures_of`: nodes that are written where nothing but fill and epoch changed, too; None: all.
    """
    actions: list[Action] = []
    for member in members:
        existing = member.memkv_node
        if existing is not None and _is_forgotten(member, owned.in_use):
            actions.append(DeleteObject(MEMKV_NODES.kind, existing.meta.name, existing.meta.uid))
        elif member.group is not None and (
            existing is None or existing.meta.labels.get(LABEL_NODE_GROUP) != member.group.name
        ):
            actions.append(_apply(pool, member, member.group.name))
        elif existing is not None:
            status = node_status(member, owned, restarts.get(member.name), time)
            if figures_of is None or member.name in figures_of:
                changed = status != existing.status
            else:
                changed = without_figures(status) != without_figures(existing.status)
            if changed:
                actions.append(WriteNodeStatus(existing.meta.name, status))
    return actions


def left_unwiped(
    pool: Pool, members: Sequence[Member], in_use: frozenset[str]
) -> tuple[Event, ...]:
    """Say which drives keep their blocks as their nodes leave a pool that wipes at its end: it
    does not know them any more then. `in_use`: nodes that the map needs."""
    if not pool.spec.wipes_drives:
        return ()
    left = [
        (member.name, member.memkv_node.meta.name, drives)
        for member in members
        if member.memkv_node is not None and _is_forgotten(member, in_use)
        if (drives := [drive.path or drive.id for drive in chosen_of(member.memkv_node)])
    ]
    return tuple(
        Event(
            True,
            "DrivesNotWiped",
            f"node {name} leaves the pool, and its drives keep their blocks: deletionPolicy wipes "
            f"the nodes that are there at the end. Wipe them by hand (blkdiscard --zeroout): "
            f"{', '.join(drives)}",
            record,
        )
        for name, record, drives in left
    )


def _is_forgotten(member: Member, in_use: frozenset[str]) -> bool:
    """Removed nodes are kept: a decision of people, which a label must not undo."""
    gone = member.group is None and member.name not in in_use
    return gone and member.wanted is not WantedState.REMOVED


def _apply(pool: Pool, member: Member, group: str) -> ApplyNode:
    name = memkv_node_name(pool.meta.name, member.name)
    labels = {
        **pool_labels(pool.meta.name, COMPONENT_NODE),
        LABEL_NODE_GROUP: group,
    }
    # Only what the operator decides: state and approved drives belong to people.
    manifest: Manifest = {
        "apiVersion": MEMKV_NODES.api_version,
        "kind": MEMKV_NODES.kind,
        "metadata": child_meta(POOLS, pool.meta, name, labels),
        "spec": {"nodeName": member.name},
    }
    return ApplyNode(name, manifest)


def node_status(member: Member, owned: Ownership, restart: Restart | None, time: str) -> Manifest:
    """Return the status of a member that has a MemKVNode. `restart`: of its pod, if there is one
    under way."""
    existing, pod, seen = member.memkv_node, member.pod, member.seen
    assert existing is not None
    facts = seen.facts if seen is not None else None
    conditions = node_conditions(member, owned)
    status: Manifest = {
        "observedGeneration": existing.meta.generation,
        "conditions": merged(existing.conditions, conditions, existing.meta.generation, time),
    }
    if restart is not None:
        status["restart"] = restart.manifest()
    if pod is not None:
        status["podUID"] = pod.uid
        if pod.ip:
            status["podIP"] = pod.ip
    if facts is not None:
        status["version"] = facts.version
        status["transports"] = sorted(facts.transports)
        status["workers"] = [_worker_status(existing, worker) for worker in facts.workers]
    elif existing.status.get("workers"):
        status["workers"] = existing.status["workers"]  # identity outlives pods
    if member.drives is not None:
        status["drives"] = member.drives.status()
    elif existing.status.get("drives"):
        status["drives"] = existing.status["drives"]
    return status


def without_figures(status: JsonObject) -> JsonObject:
    """Return a status of a MemKVNode without what changes all the time."""
    workers = [
        {key: value for key, value in worker.value.items() if key not in _FIGURES}
        for worker in Reader(status).objects("workers")
    ]
    return {**status, "workers": workers}


_FIGURES = frozenset({"usedBytes", "appliedEpoch"})


def _worker_status(node: MemKVNode, worker: WorkerFacts) -> JsonValue:
    status: Manifest = {
        "position": worker.position,
        "phase": worker.phase,
        "restarts": worker.restarts,
        "capacityBytes": worker.capacity_bytes,
        "usedBytes": worker.used_bytes_roughly,
        "appliedEpoch": worker.applied_epoch,
    }
    if worker.uuid:
        status["uuid"] = worker.uuid
        status["countedBytes"] = counted_bytes(node, worker.uuid, worker.capacity_bytes)
        status["incarnation"] = worker.incarnation
    if worker.port:
        status["host"], status["port"] = worker.host, worker.port
    if worker.message:
        status["message"] = worker.message[:1024]
    if worker.rdma_rails:
        status["rdmaRails"] = list(worker.rdma_rails[:RAILS_SHOWN])
    if worker.rdma_problem:
        status["rdmaProblem"] = shortened(worker.rdma_problem)
    return status


def node_conditions(member: Member, owned: Ownership) -> list[Condition]:
    """Return what is to be said of one node."""
    reason, message = trouble_of(member, owned.lost)
    drained = member.name in owned.drained
    return [
        condition("Ready", not reason, reason or "Serving", message),
        _draining(member, drained=drained),
        condition(
            DRAINED,
            drained,
            "NothingLeft" if drained else "InUse" if member.should_drain else "NotDraining",
            "it owns no slots; it may be stopped" if drained else "",
        ),
        _maintenance(member),
        *([drives_condition(member.drives)] if member.drives is not None else []),
        *([rdma] if (rdma := rdma_of_node(member)) is not None else []),
    ]


def _draining(member: Member, *, drained: bool) -> Condition:
    if not member.should_drain:
        return condition("Draining", False, "NotDraining", "")
    if member.refusal is Refusal.NO_OTHER_NODE:
        message = (
            "no other node could take its slots, so it keeps them and serves: add a node, or "
            "set another one to Active"
        )
        return condition("Draining", False, member.refusal.value, message)
    if member.refusal is Refusal.PAUSED:
        return condition("Draining", False, member.refusal.value, "goes on when the pool does")
    if drained:
        return condition("Draining", True, "Drained", "it owns no slots; it may be stopped")
    return condition("Draining", True, "SlotsLeft", "its slots move to other nodes")


def _maintenance(member: Member) -> Condition:
    """Whether slots wait for a node that is away, or would."""
    if not (member.held or announces_maintenance(member)):
        return condition("Held", False, "NotHeld", "")
    if not member.held:
        message = "it stayed away for longer than disruption.maintenanceTimeoutSeconds"
        return condition("Held", False, "MaintenanceTimeout", message)
    message = "its slots wait for it; other nodes do not take them over"
    return condition("Held", True, "Restart" if member.restart else "Maintenance", message)


def trouble_of(member: Member, lost_names: frozenset[str]) -> tuple[str, str]:
    """Return (reason, message) of why a node does not serve, ("", "") when it does."""
    pod, node, seen = member.pod, member.kube_node, member.seen
    lost = member.name in lost_names
    if node is None:
        return "NodeGone", "the Node is not in the cluster any more"
    if member.wanted is WantedState.REMOVED and pod is None:
        return "Removed", "it was removed from the pool; set spec.state to Active to have it back"
    if member.group is None:
        return "NotSelected", "no node group selects this node any more"
    if not node.ready:
        return ("NodeLost" if lost else "NodeNotReady"), "kubelet does not report it ready"
    if member.drives is not None and not member.drives.handed:
        # Without a drive its pod cannot start: say that, and not that it is pending.
        reason, message = trouble_of_drives(member.drives)
        return reason or "DrivesPending", message or "its drives were chosen just now"
    if pod is None:
        return "PodMissing", "the DaemonSet has made no pod here; look at its events"
    if pod.trouble:
        return explained(pod)
    if seen is None or seen.facts is None:
        problem = f": {seen.problem}" if seen is not None and seen.problem else ""
        return "PodPending", f"its pod does not answer yet{problem}"
    if seen.problem:
        reason = "NodeLost" if lost else "NotAnswering"
        return reason, f"its pod does not answer: {seen.problem}"
    return _worker_trouble(member, seen.facts)


def _worker_trouble(member: Member, facts: NodeFacts) -> tuple[str, str]:
    for worker in facts.workers:
        if worker.phase != "Ready":
            message = worker.message or "no reason given"
            return "WorkerNotReady", f"worker {worker.position} is {worker.phase}: {message}"
    if not facts.workers:
        return "WorkerNotReady", "it reports no workers"
    if member.pod is not None and not member.pod.ready:
        return "PodNotReady", "its workers serve, and its readiness probe fails"
    return "", ""
