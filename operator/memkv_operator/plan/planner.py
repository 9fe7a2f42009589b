"""One look at a pool: what to write, what to delete, what to tell people."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from memkv.metadata.kubernetes.json_values import Manifest, Reader
from memkv.metadata.publisher import Reason
from memkv_operator.api.cluster import KubeNode, Pod, Rollout
from memkv_operator.api.conditions import Condition, merged, read_conditions
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    DAEMON_SETS,
    FINALIZER,
    POD_BUDGETS,
    daemon_set_name,
    memkv_node_name,
)
from memkv_operator.api.node import MemKVNode
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import rfc3339
from memkv_operator.plan.acceptance import acceptance_actions
from memkv_operator.plan.actions import (
    Action,
    DeletePod,
    Event,
    SetFinalizer,
    WritePoolStatus,
)
from memkv_operator.plan.children import Live, child_actions
from memkv_operator.plan.deletion import Ending, deletion_actions
from memkv_operator.plan.disruption import available_min
from memkv_operator.plan.draining import dropped_nodes, ownership_of, with_refusals
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.health import MapView, pool_conditions
from memkv_operator.plan.holding import with_holds
from memkv_operator.plan.identity import IdentityView, certificates_valid
from memkv_operator.plan.membership import Member, members_of
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.nodes import left_unwiped, node_actions
from memkv_operator.plan.orders import Order, orders_of
from memkv_operator.plan.ownership import slots_by_node
from memkv_operator.plan.preflight import Finding, Preflight
from memkv_operator.plan.quotas import Sharing, quotas_guaranteed, share_quotas
from memkv_operator.plan.rdma import payload_encrypted
from memkv_operator.plan.reboots import reboot_actions
from memkv_operator.plan.rollout import Rolling, at_rest, rolling_update
from memkv_operator.plan.status import pool_figures
from memkv_operator.plan.ticket_keys import ticket_keys_valid
from memkv_operator.plan.validity import findings
from memkv_operator.plan.wiping import Quiet
from memkv_operator.render.children import Child, children_of
from memkv_operator.render.daemonset import made_template, template_hash
from memkv_operator.render.digest import digest_of


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known of one pool now."""

    pool: Pool
    kube_nodes: Mapping[str, KubeNode] = field(default_factory=dict)
    pods: Sequence[Pod] = ()
    memkv_nodes: Sequence[MemKVNode] = ()
    children: Live = field(default_factory=dict)
    """By (kind, name), of the kinds that are rendered."""
    metadata: Rollout | None = None
    seen: Mapping[str, NodeSeen] = field(default_factory=dict)
    """By name of the node."""
    map_view: MapView = field(default_factory=MapView)
    informed: bool = True
    """Whether nodes were asked and the map was read; until then no status is written."""
    with_figures: bool = True
    """Whether it is time to write the pool's figures that change all the time."""
    figures_of: Collection[str] | None = None
    """The nodes whose figures it is time to write; None: all."""
    identity: IdentityView = field(default_factory=IdentityView)
    drives: Mapping[str, NodeDrives] = field(default_factory=dict)
    """By name of the node, where a group has drives."""
    claims: Sequence[Finding] = ()
    """What older pools have already."""
    preflight: Preflight = field(default_factory=Preflight)
    """What had to be asked for."""
    needed_elsewhere: Collection[str] | None = None
    """Nodes that other pools still need; None: Nodes are not annotated."""
    monitored: Condition | None = None
    """Of the pool's PodMonitor; None: it has none and wants none."""
    quiet: Mapping[str, Quiet] = field(default_factory=dict)
    """By name of the node, while the pool is deleted with its blocks."""
    operator_namespace: str = ""
    """Where the operator's pods are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order."""

    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    members: tuple[Member, ...]
    may_publish: bool
    """Whether the pool's map may change."""
    orders: Mapping[str, Order] = field(default_factory=dict)
    """What each node shall be; nothing for nodes that are not to be told anything yet."""
    under_way: bool = False
    """Whether something waits for time to pass, so that the pool is to be looked at soon."""


def plan(observed: Observed, own_image: str, now_s: int) -> Plan:
    """Return what brings the pool nearer to its spec. `now_s`: wall clock, since 1970."""
    pool, time = observed.pool, rfc3339(now_s)
    if pool.meta.deleting:
        return _plan_deletion(observed, time)
    shard_map = observed.map_view.shard_map
    members = _members(observed, now_s)
    found = findings(pool, observed.kube_nodes, observed.identity, observed.preflight)
    found = sorted([*found, *observed.claims], key=lambda finding: not finding.blocks)
    blocked = any(finding.blocks for finding in found)
    frozen = any(finding.blocks and finding.freezes for finding in found)
    owned = ownership_of(members, shard_map)
    lost, drained = owned.lost, owned.drained
    left = available_min(pool, members, lost, drained)
    gone = dropped_nodes(members, owned.in_use)
    authority = observed.identity.authority
    home = observed.operator_namespace
    children = [] if blocked else children_of(pool, own_image, left, authority, gone, home)
    rolling = at_rest(pool, members)
    revision = Reader(pool.status, "status").text("updateRevision")
    if not blocked:
        rolling, revision = _rolling(observed, members, children, drained, now_s)
    actions: list[Action] = []
    leaving: tuple[Event, ...] = ()
    if FINALIZER not in pool.meta.finalizers:
        actions.append(SetFinalizer(True))
    if not blocked and not pool.spec.paused:
        actions += _child_actions(observed, children)
        actions += _pod_actions(rolling) if observed.informed else []
    may_publish = not frozen and _has_nodes(members, observed.map_view)
    if not observed.informed:
        return Plan(tuple(actions), (), tuple(members), may_publish)
    if not frozen:
        actions += node_actions(
            pool,
            members,
            owned,
            rolling.restarts,
            time,
            observed.figures_of,
        )
        leaving = left_unwiped(pool, members, owned.in_use)
        if observed.needed_elsewhere is not None:
            actions += reboot_actions(members, drained, observed.needed_elsewhere)
    ended, said = acceptance_actions(pool, observed.map_view)
    actions += ended
    sharing = share_quotas(pool, members, lost)
    status, events = _status(observed, members, found, rolling, sharing, revision, time)
    if not observed.with_figures:
        status |= {name: pool.status[name] for name in _FIGURES if name in pool.status}
    if status != pool.status:
        actions.append(WritePoolStatus(status))
    return Plan(
        tuple(actions),
        (*events, *_turns(rolling, observed), *leaving, *said),
        tuple(members),
        may_publish,
        orders_of(members, sharing, observed.identity.ticket_keys),
        under_way=rolling.under_way or any(member.held for member in members),
    )


def _rolling(
    observed: Observed,
    members: Sequence[Member],
    children: Sequence[Child],
    drained: Collection[str],
    now_s: int,
) -> tuple[Rolling, str]:
    """Return the next step towards the pods that are wanted now, and the name of their revision."""
    pool, shard_map = observed.pool, observed.map_view.shard_map
    templates = _templates(pool, children)
    revision = digest_of(templates)
    still = shard_map is None or not shard_map.moving
    unmade = _unmade(observed, templates)
    return rolling_update(
        pool, members, templates, revision, drained, now_s, settled=still, unmade=unmade
    ), revision


_FIGURES = ("capacity", "tenants")  # of the status: those that change all the time


def _child_actions(observed: Observed, children: Sequence[Child]) -> list[Action]:
    kept = _left_alone(observed)
    wanted = [child for child in children if child.key not in kept]
    live = {key: manifest for key, manifest in observed.children.items() if key not in kept}
    return child_actions(wanted, live, observed.pool.meta.uid)


def _plan_deletion(observed: Observed, time: str) -> Plan:
    ending = Ending(
        observed.pool,
        observed.kube_nodes,
        observed.memkv_nodes,
        observed.pods,
        observed.children,
        observed.drives,
        observed.quiet,
    )
    actions, events = deletion_actions(ending, time)
    return Plan(actions, events, (), False)


def _members(observed: Observed, now_s: int) -> list[Member]:
    pool = observed.pool
    members = members_of(
        pool,
        observed.kube_nodes,
        observed.memkv_nodes,
        observed.pods,
        observed.seen,
        observed.drives,
    )
    view = observed.map_view
    nobody_lives = Reason.NO_LIVE_WORKERS in view.reasons
    members = with_refusals(pool, members, view.shard_map, nobody_lives=nobody_lives)
    return with_holds(pool, members, now_s)


def _has_nodes(members: Sequence[Member], view: MapView) -> bool:
    """A label typo that selects nothing must not change the last map: it is all clients have."""
    return view.shard_map is None or any(member.group is not None for member in members)


def _left_alone(observed: Observed) -> set[tuple[str, str]]:
    """Return the children that must stay as they are for now.

    Budgets, until it is known which nodes are lost. And DaemonSets that would lose all their pods
    because their group selects nothing: that is a typo likelier than a wish.
    """
    pool = observed.pool
    kept: set[tuple[str, str]] = set()
    if not observed.informed:
        kept |= {key for key in observed.children if key[0] == POD_BUDGETS.kind}
        kept |= {(POD_BUDGETS.kind, f"{pool.meta.name}-nodes")}
    for group in pool.spec.groups:
        key = DAEMON_SETS.kind, daemon_set_name(pool.meta.name, group.name)
        chosen = any(group.matches(node.labels) for node in observed.kube_nodes.values())
        if not chosen and key in observed.children:
            kept.add(key)
    return kept


def _turns(rolling: Rolling, observed: Observed) -> tuple[Event, ...]:
    """Say whose turn has come, and what it costs."""
    shard_map = observed.map_view.shard_map
    owned = slots_by_node(shard_map)
    slots = shard_map.slots if shard_map is not None else 1
    return tuple(
        Event(
            False,
            "ReplacingPod",
            f"{name} drains before its pod is replaced"
            if rolling.restarts[name].drains
            else f"the pod of {name} is replaced; until it is back, reads of its "
            f"{100 * owned.get(name, 0) / slots:.1f}% of the slots miss",
            memkv_node_name(observed.pool.meta.name, name),
        )
        for name in rolling.begun
    )


def _templates(pool: Pool, children: Sequence[Child]) -> dict[str, str]:
    prefix = f"{pool.meta.name}-"
    return {
        child.name.removeprefix(prefix): template_hash(child.manifest)
        for child in children
        if child.resource is DAEMON_SETS
    }


def _unmade(observed: Observed, templates: Mapping[str, str]) -> set[str]:
    """Return the groups whose DaemonSet, as it was seen last, does not have its template."""
    name = observed.pool.meta.name
    unmade = set()
    for group, template in templates.items():
        live = observed.children.get((DAEMON_SETS.kind, daemon_set_name(name, group)))
        if live is None or made_template(live) != template:
            unmade.add(group)
    return unmade


def _pod_actions(rolling: Rolling) -> list[Action]:
    return [
        DeletePod(member.pod.name, member.pod.uid)
        for member in rolling.victims
        if member.pod is not None
    ]


def _status(
    observed: Observed,
    members: Sequence[Member],
    found: Sequence[Finding],
    rolling: Rolling,
    sharing: Sharing,
    revision: str,
    time: str,
) -> tuple[Manifest, tuple[Event, ...]]:
    pool = observed.pool
    before = read_conditions(Reader({"status": pool.status}).object("status"))
    now = pool_conditions(
        found, members, observed.map_view, observed.metadata, rolling, pool.spec.paused,
        [pod for pod in observed.pods if pod.component == COMPONENT_METADATA],
    )  # fmt: skip
    if pool.has_tls:
        now.append(certificates_valid(observed.identity))
        if observed.identity.authority:
            now.append(ticket_keys_valid(observed.identity.tickets))
    if (quotas := quotas_guaranteed(pool, sharing)) is not None:
        now.append(quotas)
    if (encrypted := payload_encrypted(pool)) is not None:
        now.append(encrypted)
    if observed.monitored is not None:
        now.append(observed.monitored)
    generation = pool.meta.generation
    status: Manifest = {
        **pool_figures(pool, members, observed.map_view, rolling, revision),
        "observedGeneration": generation,
        "conditions": merged(before, now, generation, time),
    }
    return status, events_of(before, now)


_STOPPED = frozenset({"UpdatePaused", "DrainTimeout"})
_WORTH_AN_EVENT = frozenset(
    {
        "Ready",
        "ConfigValid",
        "CertificatesValid",
        "TicketKeysValid",
        "NodesReady",
        "ShardMapPublished",
        "MetadataAvailable",
        "DrivesReady",
        "Paused",
        "RDMAReady",
        "PayloadEncrypted",
        "QuotasGuaranteed",
        "Monitored",
    }
)


_NEWS_FROM_THE_FIRST = frozenset({"ConfigValid", "DrivesReady", "Monitored", "PayloadEncrypted"})
"""Conditions that wait for a person."""


def events_of(before: Mapping[str, Condition], now: Sequence[Condition]) -> tuple[Event, ...]:
    """Return an event for each condition that changed its status or its reason."""
    events = []
    for condition in now:
        old = before.get(condition.type)
        stopped = condition.type == "UpToDate" and condition.reason in _STOPPED
        if condition.type not in _WORTH_AN_EVENT and not stopped:
            continue
        if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
            continue
        bad = not condition.holds and condition.type != "Paused"
        if old is None and bad and condition.type not in _NEWS_FROM_THE_FIRST:
            continue  # a new pool is not ready yet: no news
        message = condition.message or f"{condition.type} is {condition.status}"
        events.append(Event(bad, condition.reason, message, about=condition.type))
    return tuple(events)
