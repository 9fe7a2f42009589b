"""The conditions of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from memkv.metadata.publisher import Reason
from memkv.shardmap import ShardMap
from memkv_operator.api.cluster import Pod, Rollout
from memkv_operator.api.conditions import MESSAGE_CHARS_MAX, Condition, by_type, condition, joined
from memkv_operator.plan.drive_health import pool_drives_condition
from memkv_operator.plan.membership import Member
from memkv_operator.plan.nodes import trouble_of
from memkv_operator.plan.ownership import lost_nodes
from memkv_operator.plan.pod_trouble import OF_METADATA, explained
from memkv_operator.plan.preflight import Finding, named
from memkv_operator.plan.rdma import rdma_ready
from memkv_operator.plan.rollout import Rolling

NODES_EXPLAINED = 3


@dataclass(frozen=True, slots=True)
class MapView:
    """What is known of a pool's map."""

    shard_map: ShardMap | None = None
    """The published one."""
    published_at: str = ""
    reasons: tuple[Reason, ...] = ()
    """Of the publisher's last step."""
    slots_waiting: int = 0
    problem: str = ""
    """Why the newest map could not be stored; empty: it is."""
    followed: bool = False
    """Whether no loss of nodes is on its way into the map."""


_READY_REASONS = (
    ("ConfigValid", "ConfigInvalid"),
    ("NodesReady", "NodesNotReady"),
    ("ShardMapPublished", "ShardMapNotPublished"),
    ("MetadataAvailable", "MetadataUnavailable"),
)
"""Conditions that Ready is made of, the first that fails names the reason."""


def pool_conditions(
    findings: Sequence[Finding],
    members: Sequence[Member],
    view: MapView,
    metadata: Rollout | None,
    rolling: Rolling,
    paused: bool,
    metadata_pods: Sequence[Pod] = (),
) -> list[Condition]:
    """Return all conditions of a pool that is not being deleted."""
    parts = [
        _config_valid(findings),
        _nodes_ready(members, view.shard_map),
        _map_published(view),
        _metadata_available(metadata, metadata_pods),
    ]
    rdma = rdma_ready(members)
    if rdma is not None:
        parts.append(rdma)
    stated = by_type(parts)
    failing = [(type_, reason) for type_, reason in _READY_REASONS if not stated[type_].holds]
    if rdma is not None and rdma.reason == "RDMAUnavailable":
        failing.append((rdma.type, rdma.reason))
    if failing:
        type_, reason = failing[0]
        ready = condition("Ready", False, reason, stated[type_].message)
    else:
        ready = condition("Ready", True, "Ready", "")
    drives = pool_drives_condition(members)
    return [
        ready,
        *parts,
        *([drives] if drives is not None else []),
        _rebalanced(view),
        _up_to_date(rolling),
        condition("Paused", paused, "PausedBySpec" if paused else "NotPaused", ""),
        _stalled(findings),
    ]


def _config_valid(findings: Sequence[Finding]) -> Condition:
    if not findings:
        return condition("ConfigValid", True, "Valid", "")
    return condition(
        "ConfigValid",
        False,
        findings[0].reason,
        joined([finding.message for finding in findings]),
    )


def _stalled(findings: Sequence[Finding]) -> Condition:
    blocking = [finding for finding in findings if finding.blocks]
    if blocking:
        return condition("Stalled", True, blocking[0].reason, "the spec needs a change")
    return condition("Stalled", False, "Progressing", "")


def _nodes_ready(members: Sequence[Member], shard_map: ShardMap | None) -> Condition:
    desired = [member for member in members if member.desired]
    if not desired:
        return condition("NodesReady", False, "NoNodes", "the pool has no nodes")
    failing = [member for member in desired if not member.ready]
    if not failing:
        return condition("NodesReady", True, "AllReady", f"{len(desired)} nodes serve")
    lost = lost_nodes(shard_map)
    troubles = [(member.name, *trouble_of(member, lost)) for member in failing]
    worst = "NodeLost" if any(t[1] == "NodeLost" for t in troubles) else troubles[0][1]
    return condition("NodesReady", False, worst or "PodPending", _explained_nodes(troubles))


def _explained_nodes(troubles: Sequence[tuple[str, str, str]]) -> str:
    """Explain some nodes, and name others. Fewer are explained where the words are many."""
    text = ""
    for count in range(NODES_EXPLAINED, 0, -1):
        shown = [f"{name}: {message}" for name, _, message in troubles[:count]]
        if len(troubles) > count:
            shown.append(named([name for name, _, _ in troubles[count:]]))
        text = "; ".join(shown)
        if len(text) <= MESSAGE_CHARS_MAX:
            break
    return text


def _map_published(view: MapView) -> Condition:
    if view.shard_map is None:
        message = view.problem or "the first map waits for nodes that answer"
        reason = "PublishFailed" if view.problem else "WaitingForNodes"
        return condition("ShardMapPublished", False, reason, message)
    if view.problem:
        return condition("ShardMapPublished", False, "PublishFailed", view.problem)
    if Reason.MASS_LOSS_SUSPECTED in view.reasons:
        message = (
            "so many nodes vanished at once that the network is likelier to be broken, so the map "
            "is frozen; bring them back, or annotate the pool with "
            "memkv.io/accept-mass-loss=true when they are gone for good"
        )
        return condition("ShardMapPublished", False, "MassLossSuspected", message)
    if Reason.NO_LIVE_WORKERS in view.reasons:
        message = "no node answers; clients keep the last map"
        return condition("ShardMapPublished", False, "NoLiveNodes", message)
    version = view.shard_map.version
    message = f"term {version.term}, epoch {version.epoch}"
    return condition("ShardMapPublished", True, "Published", message)


def _metadata_available(metadata: Rollout | None, pods: Sequence[Pod]) -> Condition:
    """Those that run are enough; those that do not are explained all the same."""
    reason, why = _metadata_trouble(metadata, pods)
    if metadata is None or metadata.ready < 1:
        message = joined(["no metadata replica is ready", why or "look at the Deployment's pods"])
        return condition("MetadataAvailable", False, reason or "NoReadyReplica", message)
    counted = f"{metadata.ready} of {metadata.wanted} replicas are ready"
    return condition(
        "MetadataAvailable", True, "Available", joined([counted, why] if why else [counted])
    )


def _metadata_trouble(metadata: Rollout | None, pods: Sequence[Pod]) -> tuple[str, str]:
    """Return (reason, message) of what keeps metadata pods from running, ("", "") for nothing."""
    failing = sorted((pod for pod in pods if pod.trouble and not pod.deleting), key=_newest_first)
    if failing:
        reason, message = explained(failing[0], OF_METADATA)
        return reason, f"{failing[0].name}: {message}"
    if metadata is not None and metadata.refused:
        return "PodCreateFailed", f"the API server refuses its pods: {metadata.refused}"
    return "", ""


def _newest_first(pod: Pod) -> tuple[int, str]:
    return -pod.created_s, pod.name


def _rebalanced(view: MapView) -> Condition:
    moving = len(view.shard_map.moving) if view.shard_map is not None else 0
    if not moving and not view.slots_waiting:
        return condition("Rebalanced", True, "Settled", "")
    # The numbers change with every map; they are in status.shardMap, this text stays.
    return condition("Rebalanced", False, "MovingSlots", "slots move to other nodes")


def _up_to_date(rolling: Rolling) -> Condition:
    if rolling.done:
        return condition("UpToDate", True, "UpToDate", "")
    parts = [rolling.message] if rolling.message else []
    if rolling.outdated:
        parts.append(f"pods with an older template: {named(list(rolling.outdated))}")
    return condition("UpToDate", False, rolling.reason, "; ".join(parts))
