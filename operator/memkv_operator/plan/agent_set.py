"""Why no agent runs, in one word and in a sentence with the likely cause and the fix."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memkv_operator.api.cluster import KubeNode
from memkv_operator.plan.preflight import ENFORCE_LABEL, LEVEL_NEEDED, named

_OF_POD_SECURITY = "violates PodSecurity"
_OS_LABEL = "kubernetes.io/os"  # kubelet sets it itself


@dataclass(frozen=True, slots=True)
class AgentSet:
    """The agents' DaemonSet."""

    name: str
    namespace: str
    wanted: int
    """How many pods it should have."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    failed_create: str = ""
    """Why the newest try to make a pod of it failed."""

    def selects(self, node: KubeNode) -> bool:
        """Return whether a node has the labels that it asks for."""
        return all(node.labels.get(key) == value for key, value in self.node_selector.items())


def why_none_runs(found: AgentSet | None, nodes: Iterable[KubeNode]) -> tuple[str, str]:
    """Return (reason, message) of why there is no pod of an agent.

    `found`: their DaemonSet; None: there is none.
    """
    if found is None:
        return "AgentMissing", (
            "there are none: install them with helm upgrade RELEASE memkv --reuse-values "
            "--set agent.enabled=true"
        )
    what, where = f"their DaemonSet {found.name}", f"-n {found.namespace}"
    if not found.wanted:
        return "AgentNotScheduled", _why_not_scheduled(found, nodes, what)
    if _OF_POD_SECURITY in found.failed_create:
        return "PodSecurityForbidsAgent", (
            f"{what} may make no pods: {found.failed_create}. Agents are privileged: kubectl label "
            f"--overwrite namespace {found.namespace} {ENFORCE_LABEL}={LEVEL_NEEDED}"
        )
    if found.failed_create:
        return "AgentCreateFailed", (
            f"the API server refuses the pods of {what}: {found.failed_create}; kubectl describe "
            f"daemonset {where} {found.name}"
        )
    return "AgentPending", (
        f"{what} has made no pod yet: kubectl describe daemonset {where} {found.name}"
    )


def _why_not_scheduled(found: AgentSet, nodes: Iterable[KubeNode], what: str) -> str:
    chosen = sorted(node.name for node in nodes if found.selects(node))
    if chosen:
        return (
            f"{what} fits no node: {named(chosen)} have its labels, and taints that it does not "
            "tolerate; name them in agent.tolerations of the chart"
        )
    labels = " ".join(f"{k}={v}" for k, v in found.node_selector.items() if k != _OS_LABEL)
    return (
        f"{what} selects no node: kubectl label node NODE {labels or _OS_LABEL + '=linux'}, or "
        "correct agent.nodeSelector of the chart"
    )
