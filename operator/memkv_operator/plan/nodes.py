"""MemKVNode objects: which there should be, and what their status says."""

from collections.abc import Iterable, Sequence

from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv.shardmap import ShardMap, WorkerState, unpack_owners
from memkv_operator.api.conditions import Condition, condition, merged, read_conditions
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_NODE,
    LABEL_NODE_GROUP,
    MEMKV_NODES,
    POOLS,
    memkv_node_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.plan.actions import Action, ApplyNode, DeleteObject, WriteNodeStatus
from memkv_operator.plan.facts import NodeFacts, WorkerFacts
from memkv_operator.plan.membership import Member
from memkv_operator.plan.node_drives import drives_condition, trouble_of_drives
from memkv_operator.plan.pod_trouble import explained


def node_actions(
    pool: Pool,
    members: Sequence[Member],
    shard_map: ShardMap | None,
    time: str,
    *,
    with_figures: bool,
) -> list[Action]:
    """Return what makes the MemKVNodes those of the members, with their status.

    `with_figures`: also write where nothing but fill and epoch changed. These change all the time,
    and each write goes to everyone who watches.
    """
    actions: list[Action] = []
    in_use, lost = nodes_in_map(shard_map), lost_nodes(shard_map)
    for member in members:
        existing = member.memkv_node
        if member.group is None and existing is not None and member.name not in in_use:
            actions.append(DeleteObject(MEMKV_NODES.kind, existing.meta.name, existing.meta.uid))
        elif member.group is not None and (
            existing is None or existing.meta.labels.get(LABEL_NODE_GROUP) != member.group.name
        ):
            actions.append(_apply(pool, member, member.group.name))
        elif existing is not None:
            status = node_status(member, in_use, lost, time)
            same = (lambda one: one) if with_figures else without_figures
            if same(status) != same(existing.status):
                actions.append(WriteNodeStatus(existing.meta.name, status))
    return actions


def nodes_in_map(shard_map: ShardMap | None) -> frozenset[str]:
    """Return the names of nodes that own slots, or did of slots that still move."""
    if shard_map is None:
        return frozenset()
    indexes = set(unpack_owners(shard_map.owners))
    for move in shard_map.moving.values():
        indexes.update(move.previous)
    return frozenset(shard_map.workers[index].node_name for index in indexes)


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


def node_status(
    member: Member, in_use: frozenset[str], lost: frozenset[str], time: str
) -> Manifest:
    """Return the status of a member that has a MemKVNode.

    `in_use` and `lost`: the names of nodes that the map needs, and of those it counts as lost.
    """
    existing, pod, seen = member.memkv_node, member.pod, member.seen
    assert existing is not None
    before = read_conditions(Reader({"status": existing.status}).object("status"))
    facts = seen.facts if seen is not None else None
    conditions = node_conditions(member, in_use, lost)
    status: Manifest = {
        "observedGeneration": existing.meta.generation,
        "conditions": merged(before, conditions, existing.meta.generation, time),
    }
    if pod is not None:
        status["podUID"] = pod.uid
        if pod.ip:
            status["podIP"] = pod.ip
    if facts is not None:
        status["version"] = facts.version
        status["workers"] = [_worker_status(worker) for worker in facts.workers]
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


def _worker_status(worker: WorkerFacts) -> JsonValue:
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
        status["incarnation"] = worker.incarnation
    if worker.port:
        status["host"], status["port"] = worker.host, worker.port
    if worker.message:
        status["message"] = worker.message[:1024]
    return status


def node_conditions(
    member: Member, in_use: frozenset[str], lost: frozenset[str]
) -> list[Condition]:
    """Return what is to be said of one node."""
    reason, message = trouble_of(member, lost)
    ready = condition("Ready", not reason, reason or "Serving", message)
    drives = [drives_condition(member.drives)] if member.drives is not None else []
    owns = member.name in in_use
    if not member.draining:
        draining = condition("Draining", False, "NotDraining", "")
    elif owns:
        draining = condition("Draining", True, "SlotsLeft", "its slots move to other nodes")
    else:
        draining = condition("Draining", True, "Drained", "it owns no slots; safe to stop")
    return [ready, draining, *drives]


def trouble_of(member: Member, lost_names: frozenset[str]) -> tuple[str, str]:
    """Return (reason, message) of why a node does not serve, ("", "") when it does."""
    pod, node, seen = member.pod, member.kube_node, member.seen
    lost = member.name in lost_names
    if node is None:
        return "NodeGone", "the Node is not in the cluster any more"
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


def lost_nodes(shard_map: ShardMap | None) -> frozenset[str]:
    """Return the nodes that have a lost worker."""
    workers: Iterable[tuple[str, WorkerState]] = (
        ((w.node_name, w.state) for w in shard_map.workers) if shard_map is not None else ()
    )
    return frozenset(name for name, state in workers if state is WorkerState.LOST)
