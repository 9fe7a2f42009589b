"""One look at a pool: what to write, what to delete, what to tell people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memkv.metadata.kubernetes.json_values import Manifest, Reader
from memkv_operator.api.cluster import KubeNode, Pod, Rollout
from memkv_operator.api.conditions import Condition, merged, read_conditions
from memkv_operator.api.names import DAEMON_SETS, FINALIZER, POD_BUDGETS
from memkv_operator.api.node import MemKVNode
from memkv_operator.api.pool import Pool
from memkv_operator.plan.actions import (
    Action,
    DeletePod,
    Event,
    SetFinalizer,
    WritePoolStatus,
)
from memkv_operator.plan.children import Live, child_actions
from memkv_operator.plan.deletion import Ending, deletion_actions
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.health import MapView, pool_conditions
from memkv_operator.plan.identity import IdentityView, certificates_valid
from memkv_operator.plan.membership import Member, members_of
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.nodes import lost_nodes, node_actions
from memkv_operator.plan.orders import Order, orders_of
from memkv_operator.plan.preflight import Finding, Preflight
from memkv_operator.plan.quotas import Sharing, quotas_guaranteed, share_quotas
from memkv_operator.plan.rollout import Rolling, available_min, rolling_update
from memkv_operator.plan.status import pool_figures
from memkv_operator.plan.validity import findings
from memkv_operator.render.children import Child, children_of
from memkv_operator.render.daemonset import template_hash
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
    """Whether it is time to write figures that change all the time."""
    identity: IdentityView = field(default_factory=IdentityView)
    drives: Mapping[str, NodeDrives] = field(default_factory=dict)
    """By name of the node, where a group has drives."""
    claims: Sequence[Finding] = ()
    """What older pools have already."""
    preflight: Preflight = field(default_factory=Preflight)
    """What had to be asked for."""


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


def plan(observed: Observed, own_image: str, time: str) -> Plan:
    """Return what brings the pool nearer to its spec. `time`: now, RFC 3339."""
    pool = observed.pool
    if pool.meta.deleting:
        return _plan_deletion(observed, time)
    members = members_of(
        pool,
        observed.kube_nodes,
        observed.memkv_nodes,
        observed.pods,
        observed.seen,
        observed.drives,
    )
    found = findings(pool, observed.kube_nodes, observed.identity, observed.preflight)
    found = sorted([*found, *observed.claims], key=lambda finding: not finding.blocks)
    blocked = any(finding.blocks for finding in found)
    frozen = any(finding.blocks and finding.freezes for finding in found)
    lost = lost_nodes(observed.map_view.shard_map)
    left = available_min(pool, members, lost)
    children = [] if blocked else children_of(pool, own_image, left, observed.identity.authority)
    if not observed.informed:
        # Which nodes are lost is not known yet.
        children = [child for child in children if child.resource is not POD_BUDGETS]
    templates = _templates(pool, children)
    settled = observed.map_view.shard_map is None or not observed.map_view.shard_map.moving
    rolling = rolling_update(pool, members, templates, settled) if children else Rolling()
    live = {
        key: manifest
        for key, manifest in observed.children.items()
        if observed.informed or key[0] != POD_BUDGETS.kind
    }
    actions: list[Action] = []
    if FINALIZER not in pool.meta.finalizers:
        actions.append(SetFinalizer(True))
    if not blocked and not pool.spec.paused:
        actions += child_actions(children, live, pool.meta.uid)
        actions += _pod_actions(rolling) if observed.informed else []
    if not observed.informed:
        may_publish = not frozen and not pool.spec.paused
        return Plan(tuple(actions), (), tuple(members), may_publish)
    if not frozen:
        actions += node_actions(
            pool,
            members,
            observed.map_view.shard_map,
            time,
            with_figures=observed.with_figures,
        )
    revision = digest_of(templates)
    sharing = share_quotas(pool, members, lost)
    status, events = _status(observed, members, found, rolling, sharing, revision, time)
    if not observed.with_figures:
        status |= {name: pool.status[name] for name in _FIGURES if name in pool.status}
    if status != pool.status:
        actions.append(WritePoolStatus(status))
    orders = orders_of(members, sharing, observed.identity.ticket_keys)
    may_publish = not frozen and not pool.spec.paused
    return Plan(tuple(actions), events, tuple(members), may_publish, orders)


_FIGURES = ("capacity", "tenants")  # of the status: those that change all the time


def _plan_deletion(observed: Observed, time: str) -> Plan:
    ending = Ending(
        observed.pool,
        observed.kube_nodes,
        observed.memkv_nodes,
        observed.pods,
        observed.children,
        observed.drives,
    )
    actions, events = deletion_actions(ending, time)
    return Plan(actions, events, (), False)


def _templates(pool: Pool, children: Sequence[Child]) -> dict[str, str]:
    prefix = f"{pool.meta.name}-"
    return {
        child.name.removeprefix(prefix): template_hash(child.manifest)
        for child in children
        if child.resource is DAEMON_SETS
    }


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
        found, members, observed.map_view, observed.metadata, rolling, pool.spec.paused
    )
    if pool.has_tls:
        now.append(certificates_valid(observed.identity))
    if (quotas := quotas_guaranteed(pool, sharing)) is not None:
        now.append(quotas)
    generation = pool.meta.generation
    status: Manifest = {
        **pool_figures(pool, members, observed.map_view, rolling, revision),
        "observedGeneration": generation,
        "conditions": merged(before, now, generation, time),
    }
    return status, events_of(before, now)


_WORTH_AN_EVENT = frozenset(
    {
        "Ready",
        "ConfigValid",
        "CertificatesValid",
        "NodesReady",
        "ShardMapPublished",
        "MetadataAvailable",
        "DrivesReady",
        "Paused",
        "RDMAReady",
        "QuotasGuaranteed",
    }
)


_NEWS_FROM_THE_FIRST = frozenset({"ConfigValid", "DrivesReady"})
"""Conditions that wait for a person."""


def events_of(before: Mapping[str, Condition], now: Sequence[Condition]) -> tuple[Event, ...]:
    """Return an event for each condition that changed its status or its reason."""
    events = []
    for condition in now:
        old = before.get(condition.type)
        if condition.type not in _WORTH_AN_EVENT:
            continue
        if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
            continue
        bad = not condition.holds and condition.type != "Paused"
        if old is None and bad and condition.type not in _NEWS_FROM_THE_FIRST:
            continue  # a new pool is not ready yet: no news
        message = condition.message or f"{condition.type} is {condition.status}"
        events.append(Event(bad, condition.reason, message))
    return tuple(events)
