"""What the operator reads of the cluster's own objects: Node, Pod, DaemonSet, Deployment."""

from collections.abc import Mapping
from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.names import (
    AGENT_PORT,
    AGENT_PORT_DEFAULT,
    LABEL_COMPONENT,
    LABEL_NODE_GROUP,
    LABEL_POOL,
    SAFE_TO_REBOOT,
    TEMPLATE_HASH,
)
from memkv_operator.api.pod_trouble import pod_trouble, target_node
from memkv_operator.api.times import seconds_of

CORDON_TAINT = "node.kubernetes.io/unschedulable"
FINAL_TAINTS = frozenset({"node.kubernetes.io/out-of-service", "ToBeDeletedByClusterAutoscaler"})
"""The node is shut down for long, or goes away for good, and what it holds with it."""
DRIVER_UPGRADE_LABEL = "nvidia.com/ofed-driver-upgrade-state"
DRIVER_UPGRADE_STATES = frozenset(
    {
        "cordon-required",
        "wait-for-jobs-required",
        "drain-required",
        "pod-restart-required",
        "uncordon-required",
    }
)
"""From the first to the last state in which the network driver may be reloaded."""


@dataclass(frozen=True, slots=True)
class Taint:
    """What keeps pods without a toleration away from a node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        """As kubectl writes it."""
        return (
            f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"
        )


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A Node."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    leaving: bool
    """Whether somebody is emptying it: cordoned, tainted, or about to reload its network driver."""
    allocatable: Mapping[str, str]
    taints: tuple[Taint, ...] = ()
    for_good: bool = False
    """Whether what the node holds is lost, so that keeping its slots for it is in vain."""
    safe_to_reboot: bool = False
    """Whether it is annotated so."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a pool."""

    name: str
    namespace: str
    uid: str
    pool: str
    component: str
    group: str
    node_name: str
    """On which it is, or for which it waits."""
    ip: str
    ready: bool
    deleting: bool
    template: str
    trouble: str = ""
    """Why it does not run: "Reason: message" of its first container or of the scheduler."""
    created_s: int = 0
    ready_since_s: int = 0
    """Since when it is as ready, or not ready, as it is; seconds since 1970, 0: nobody says."""


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The pod of an agent."""

    name: str
    namespace: str
    uid: str
    node_name: str
    """As Pod.node_name."""
    ip: str
    port: int
    deleting: bool
    trouble: str
    """As Pod.trouble."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a DaemonSet or Deployment is."""

    wanted: int
    ready: int
    updated: int
    current: bool
    """Whether its controller has seen the newest spec."""
    refused: str = ""
    """Why the API server refuses its pods; only Deployments say so."""


def read_kube_node(manifest: JsonObject) -> KubeNode:
    """Return a Node."""
    reader = Reader(manifest)
    meta, status = read_meta(reader), reader.object("status")
    taints = {taint.text("key") for taint in reader.object("spec").objects("taints")}
    leaving = (
        reader.object("spec").flag("unschedulable")
        or CORDON_TAINT in taints
        or bool(taints & FINAL_TAINTS)
        or meta.labels.get(DRIVER_UPGRADE_LABEL, "") in DRIVER_UPGRADE_STATES
    )
    allocatable = status.object("allocatable")
    return KubeNode(
        meta.name,
        meta.labels,
        _is_ready(status),
        leaving,
        {name: str(allocatable.amount(name)) for name in allocatable.value},
        tuple(
            Taint(taint.text("key"), taint.text("value"), taint.text("effect"))
            for taint in reader.object("spec").objects("taints")
        ),
        bool(taints & FINAL_TAINTS),
        meta.annotations.get(SAFE_TO_REBOOT) == "true",
    )


def read_pod(manifest: JsonObject) -> Pod:
    """Return a pod."""
    reader = Reader(manifest)
    meta, status = read_meta(reader), reader.object("status")
    return Pod(
        meta.name,
        meta.namespace,
        meta.uid,
        meta.labels.get(LABEL_POOL, ""),
        meta.labels.get(LABEL_COMPONENT, ""),
        meta.labels.get(LABEL_NODE_GROUP, ""),
        target_node(reader.object("spec")),
        status.text("podIP"),
        _is_ready(status),
        meta.deleting,
        meta.annotations.get(TEMPLATE_HASH, ""),
        pod_trouble(status),
        seconds_of(reader.object("metadata").text("creationTimestamp")),
        _ready_since_s(status),
    )


def read_agent_pod(manifest: JsonObject) -> AgentPod:
    """Return the pod of an agent."""
    reader = Reader(manifest)
    meta, spec, status = read_meta(reader), reader.object("spec"), reader.object("status")
    ports = [
        port.integer("containerPort")
        for container in spec.objects("containers")
        for port in container.objects("ports")
        if port.text("name") == AGENT_PORT
    ]
    return AgentPod(
        meta.name,
        meta.namespace,
        meta.uid,
        target_node(spec),
        status.text("podIP"),
        ports[0] if ports else AGENT_PORT_DEFAULT,
        meta.deleting,
        pod_trouble(status),
    )


def read_rollout(meta: ObjectMeta, manifest: JsonObject) -> Rollout:
    """Return how far a DaemonSet or Deployment is."""
    reader = Reader(manifest)
    status = reader.object("status")
    current = status.integer("observedGeneration") >= meta.generation
    if status.has("desiredNumberScheduled"):
        return Rollout(
            status.integer("desiredNumberScheduled"),
            status.integer("numberReady"),
            status.integer("updatedNumberScheduled"),
            current,
        )
    return Rollout(
        reader.object("spec").integer("replicas", 1),
        status.integer("readyReplicas"),
        status.integer("updatedReplicas"),
        current,
        _refused(status),
    )


def _refused(status: Reader) -> str:
    return next(
        (
            condition.text("message")
            for condition in status.objects("conditions")
            if condition.text("type") == "ReplicaFailure" and condition.text("status") == "True"
        ),
        "",
    )


def _is_ready(status: Reader) -> bool:
    return any(
        condition.text("type") == "Ready" and condition.text("status") == "True"
        for condition in status.objects("conditions")
    )


def _ready_since_s(status: Reader) -> int:
    times = (
        condition.text("lastTransitionTime")
        for condition in status.objects("conditions")
        if condition.text("type") == "Ready"
    )
    return seconds_of(next(times, ""))
