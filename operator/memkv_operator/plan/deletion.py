"""The end of a pool. Nothing on a node needs an answer, so nothing that is dead can hold it up:
children follow their owner, files are kept, and drives are, unless the pool said Wipe. Then pods
end first, agents wipe, and whoever does not answer in time is given up by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.conditions import condition, merged, read_conditions
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import COMPONENT_NODE, DAEMON_SETS, FINALIZER
from memkv_operator.api.node import MemKVNode
from memkv_operator.api.pool import Pool
from memkv_operator.plan.actions import (
    Action,
    DeleteObject,
    Event,
    SetFinalizer,
    WritePoolStatus,
)
from memkv_operator.plan.node_drives import NodeDrives, chosen_of
from memkv_operator.plan.preflight import named
from memkv_operator.plan.wiping import Quiet, unwiped, wiped_percent

SILENT_S = 30  # an agent that does not answer is not waited for longer
STUCK_S = 240  # nor are wipes that do not get on; pods may take 60 s to end


@dataclass(frozen=True, slots=True)
class Ending:
    """What the end of a pool needs to know."""

    pool: Pool
    kube_nodes: Mapping[str, KubeNode]
    memkv_nodes: Sequence[MemKVNode]
    pods: Sequence[Pod]
    children: Mapping[tuple[str, str], JsonObject]
    drives: Mapping[str, NodeDrives]
    quiet: Mapping[str, Quiet]
    """By name of the node."""


def deletion_actions(ending: Ending, time: str) -> tuple[tuple[Action, ...], tuple[Event, ...]]:
    """Return the next step. `time`: now, RFC 3339."""
    pool = ending.pool
    if FINALIZER not in pool.meta.finalizers:
        return _kept_by_others(pool, time)
    if not pool.spec.wipes_drives:
        return (SetFinalizer(False),), ()
    waiting, given_up = _unwiped(ending)
    if not waiting:
        return (SetFinalizer(False),), _given_up(given_up)
    actions: list[Action] = [
        DeleteObject(kind, name, meta.uid)
        for (kind, name), manifest in sorted(ending.children.items())
        if kind == DAEMON_SETS.kind
        and pool.meta.uid in (meta := read_meta(Reader(manifest))).owners
        and not meta.deleting
    ]
    status = _blocked_status(ending, waiting, time)
    if status != pool.status:
        actions.append(WritePoolStatus(status))
    return tuple(actions), ()


def _unwiped(ending: Ending) -> tuple[list[str], list[str]]:
    """Return the nodes to wait for, and those that are given up."""
    waiting: list[str] = []
    given_up: list[str] = []
    pods_on = {pod.node_name for pod in ending.pods if pod.component == COMPONENT_NODE}
    for memkv_node in ending.memkv_nodes:
        name = memkv_node.node_name
        drives, kube_node = ending.drives.get(name), ending.kube_nodes.get(name)
        holds = drives is not None and bool(unwiped(drives))
        if not holds and not chosen_of(memkv_node):
            continue
        if drives is None or kube_node is None:
            given_up.append(name)
            continue
        silent = bool(drives.agent_problem) or not kube_node.ready
        if not silent and name not in pods_on and not holds:
            continue
        quiet = ending.quiet.get(name, Quiet())
        late = quiet.silent_s >= SILENT_S or quiet.stuck_s >= STUCK_S
        (given_up if late else waiting).append(name)
    return waiting, given_up


def _kept_by_others(pool: Pool, time: str) -> tuple[tuple[Action, ...], tuple[Event, ...]]:
    """Say who else keeps a pool that this operator has let go."""
    others = ", ".join(sorted(pool.meta.finalizers))
    if not others:
        return (), ()
    message = f"finalizers of others are left: {others}; what they belong to takes them away"
    status = _blocked(pool, "OtherFinalizers", message, time)
    if status == pool.status:
        return (), ()
    return (WritePoolStatus(status),), (Event(True, "OtherFinalizers", message),)


def _blocked_status(ending: Ending, waiting: Sequence[str], time: str) -> Manifest:
    done = wiped_percent(ending.drives[name] for name in waiting)
    message = (
        f"drives of {named(list(waiting))} are wiped first, as deletionPolicy.drives says: {done}% "
        "done"
    )
    return _blocked(ending.pool, "WipingDrives", message, time)


def _blocked(pool: Pool, reason: str, message: str, time: str) -> Manifest:
    before = read_conditions(Reader({"status": pool.status}).object("status"))
    kept = [one for kind, one in before.items() if kind != "DeletionBlocked"]
    now = [*kept, condition("DeletionBlocked", True, reason, message)]
    return {**pool.status, "conditions": merged(before, now, pool.meta.generation, time)}


def _given_up(nodes: Sequence[str]) -> tuple[Event, ...]:
    if not nodes:
        return ()
    message = (
        f"drives of {named(list(nodes))} still hold blocks: the node is gone or in no group, its "
        "agent did not answer, or could not wipe a drive (its log says why). Wipe them by hand: "
        "blkdiscard --zeroout"
    )
    return (Event(True, "DrivesNotWiped", message),)
