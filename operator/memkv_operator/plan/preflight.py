"""What would keep pods pending or from being made, said before anybody has to look for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memkv.io.huge_pages import parse_page_size
from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.cluster import KubeNode, Taint
from memkv_operator.api.pool import HUGE_PAGES_NONE, NodeGroup, Pool
from memkv_operator.api.quantity import bytes_of, format_bytes
from memkv_operator.render.resources import (
    huge_page_bytes_needed,
    huge_page_resource,
    memory_needed,
)

NAMES_SHOWN = 5
ENFORCE_LABEL = "pod-security.kubernetes.io/enforce"
LEVEL_NEEDED = "privileged"
_OF_THE_CLUSTER = "node.kubernetes.io/"  # DaemonSets tolerate these taints, or they pass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: ConfigValid's reason, and a sentence that names the fix."""

    reason: str
    message: str
    blocks: bool
    """Whether nothing is made from the pool until it is mended."""
    freezes: bool = True
    """Of one that blocks: whether the map and what is said of nodes stay as they are, too."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What had to be asked for, beside what is watched."""

    enforced_level: str = ""
    """Of Pod Security in the pool's namespace; empty: none, or not known."""
    failed_creates: Mapping[str, str] = field(default_factory=dict)
    """Group -> why the newest try to make a pod of it failed."""


def preflight_findings(
    pool: Pool, nodes: Sequence[KubeNode], preflight: Preflight
) -> Iterable[Finding]:
    """Yield everything that keeps pods from running. None of it blocks what does run."""
    if preflight.enforced_level not in ("", LEVEL_NEEDED):
        yield _warning(
            "PodSecurityForbidsPrivileged",
            f"namespace {pool.meta.namespace} enforces Pod Security {preflight.enforced_level}, "
            "which forbids what data-plane pods need (IPC_LOCK, paths and network of the node): "
            f"kubectl label --overwrite namespace {pool.meta.namespace} {ENFORCE_LABEL}="
            f"{LEVEL_NEEDED}",
        )
    for group in pool.spec.groups:
        chosen = [node for node in nodes if group.matches(node.labels)]
        yield from _of_selector(group, chosen)
        yield from _of_memory(group, chosen)
        yield from _of_rdma(group, chosen)
        yield from _of_taints(group, chosen)
        if reason := preflight.failed_creates.get(group.name):
            yield _warning(
                "PodCreateFailed",
                f"nodeGroups[{group.name}]: the API server refuses its pods: {reason}",
            )


def _of_selector(group: NodeGroup, chosen: Sequence[KubeNode]) -> Iterable[Finding]:
    if chosen:
        return
    wanted = " ".join(f"{key}={value}" for key, value in group.node_selector.items())
    yield _warning(
        "SelectorMatchesNothing",
        f"nodeGroups[{group.name}].nodeSelector matches no node: kubectl label node NODE {wanted}, "
        "or correct the selector; a map that was published stays",
    )


def _of_memory(group: NodeGroup, chosen: Sequence[KubeNode]) -> Iterable[Finding]:
    where = f"nodeGroups[{group.name}]"
    limit = group.resources.get("limits", {}).get("memory")
    if limit is not None and bytes_of(limit, f"{where}.resources.limits.memory") < memory_needed(
        group
    ):
        yield _warning(
            "MemoryLimitTooSmall",
            f"{where}.resources.limits.memory is {limit}, and a pod takes "
            f"{format_bytes(memory_needed(group))}: raise it or leave it out, or pods are killed",
        )
    if group.huge_pages == HUGE_PAGES_NONE:
        return
    resource, needed = huge_page_resource(group), huge_page_bytes_needed(group)
    short = {
        node.name: node.allocatable.get(resource, "0")
        for node in chosen
        if bytes_of(node.allocatable.get(resource, "0"), resource) < needed
    }
    if short:
        page_bytes = parse_page_size(group.huge_pages)
        pages, kib = needed // page_bytes, page_bytes // 1024
        shown = named([f"{name} has {amount}" for name, amount in short.items()])
        yield _warning(
            "InsufficientHugepages",
            f"{where} needs {format_bytes(needed)} of {resource} on each node; {shown}: "
            f"echo {pages} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages there (for "
            f"good: hugepages={pages} on the kernel's command line), then systemctl restart "
            "kubelet",
        )


def _of_rdma(group: NodeGroup, chosen: Sequence[KubeNode]) -> Iterable[Finding]:
    for resource, count in group.network.rdma_resources if group.network.rdma else ():
        lacking = [
            node.name
            for node in chosen
            if bytes_of(node.allocatable.get(resource, "0"), resource) < count
        ]
        if lacking:
            yield _warning(
                "ResourceNotAdvertised",
                f"{named(lacking)} do not advertise {count} of {resource}, so their pods stay "
                "pending: compare network.rdma.resources with `kubectl get node NODE -o "
                "jsonpath={.status.allocatable}`, and look at the device plugin's configuration "
                "and log there",
            )


def _of_taints(group: NodeGroup, chosen: Sequence[KubeNode]) -> Iterable[Finding]:
    tolerations = [Reader({"t": item}).object("t") for item in group.tolerations]
    kept_out: dict[str, list[str]] = {}
    for node in chosen:
        for taint in node.taints:
            hard = taint.effect != "PreferNoSchedule" and not taint.key.startswith(_OF_THE_CLUSTER)
            if hard and not any(_tolerates(one, taint) for one in tolerations):
                kept_out.setdefault(str(taint), []).append(node.name)
    for text, names in sorted(kept_out.items()):
        key = text.partition("=")[0].partition(":")[0]
        yield _warning(
            "TaintNotTolerated",
            f"{named(names)} have the taint {text}, so no pod is made there: add "
            f"{{key: {key}, operator: Exists}} to nodeGroups[{group.name}].tolerations",
        )


def _tolerates(toleration: Reader, taint: Taint) -> bool:
    if toleration.text("effect") not in ("", taint.effect):
        return False
    if toleration.text("operator", "Equal") == "Exists":
        return toleration.text("key") in ("", taint.key)
    return (toleration.text("key"), toleration.text("value")) == (taint.key, taint.value)


def named(names: list[str]) -> str:
    """Return some of the names, and how many more there are."""
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _warning(reason: str, message: str) -> Finding:
    return Finding(reason, message, False)
