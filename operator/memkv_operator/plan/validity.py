"""What the schema cannot check of a pool, and what of it stops the pool from being made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.pool import HUGE_PAGES_NONE, NodeGroup, Pool
from memkv_operator.api.tenants import contested
from memkv_operator.plan.identity import IdentityView, blocking

NAMES_SHOWN = 5
AUDIENCE = "memkv-metadata"
NO_IDENTITY = IdentityView()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: ConfigValid's reason, and a sentence that names the fix."""

    reason: str
    message: str
    blocks: bool
    """Whether nothing is made from the pool until it is mended."""
    freezes: bool = True
    """Of one that blocks: whether the map and what is said of nodes stay as they are, too."""


def findings(
    pool: Pool, kube_nodes: Mapping[str, KubeNode], identity: IdentityView = NO_IDENTITY
) -> list[Finding]:
    """Return everything that is wrong, what blocks first."""
    found = [*_unsupported(pool), *_of_tenants(pool), *_of_nodes(pool, list(kube_nodes.values()))]
    found += [_blocks(fault.reason, fault.message) for fault in blocking(identity)]
    return sorted(found, key=lambda finding: not finding.blocks)


def _of_tenants(pool: Pool) -> Iterable[Finding]:
    for (namespace, name), tenants in contested(pool.spec.tenants).items():
        yield Finding(
            "DuplicateSubject",
            f"ServiceAccount {namespace}/{name} stands in tenants {', '.join(tenants)}: it belongs "
            f"to {tenants[0]}, the first; leave it in one of them",
            False,
        )


def _unsupported(pool: Pool) -> Iterable[Finding]:
    """What the API knows and this version cannot do: said, never ignored."""
    spec = pool.spec
    if spec.auth_mode == "ServiceAccount" and spec.auth_audience != AUDIENCE:
        yield _blocks(
            "AudienceNotSupportedYet",
            f"metadata.auth.audience: this version knows {AUDIENCE} only",
        )
    if len({group.network.payload_encryption for group in spec.groups}) > 1:
        yield _blocks(
            "PayloadEncryptionDiffers",
            "network.payloadEncryption differs between nodeGroups: clients speak one way to all "
            "nodes of a pool; say the same everywhere",
        )
    for group in spec.groups:
        yield from _unsupported_of_group(group)


def _unsupported_of_group(group: NodeGroup) -> Iterable[Finding]:
    where = f"nodeGroups[{group.name}]"
    if group.file is None and group.drives is None:
        yield _blocks(
            "MemoryOnlyNotSupportedYet",
            f"{where} has no storage, and this version needs some: set storage.file",
        )
    if group.network.rdma_mode == "Required":
        yield _blocks(
            "RDMANotSupportedYet",
            f"{where}: this version serves over TCP only; say network.rdma.mode: Disabled, or "
            "Preferred to have the resources assigned and TCP used until it can",
        )
    if group.huge_pages != HUGE_PAGES_NONE:
        yield _blocks(
            "HugePagesNotSupportedYet",
            f"{where}.memory.hugePages: this version uses ordinary pages; say None",
        )


def _of_nodes(pool: Pool, nodes: list[KubeNode]) -> Iterable[Finding]:
    for group in pool.spec.groups:
        chosen = [node for node in nodes if group.matches(node.labels)]
        if not chosen:
            wanted = ", ".join(f"{key}={value}" for key, value in group.node_selector.items())
            yield Finding(
                "SelectorMatchesNothing",
                f"nodeGroups[{group.name}].nodeSelector matches no node: label one with {wanted}, "
                "or correct the selector; a map that was published stays",
                False,
            )
        for resource, _ in group.network.rdma_resources if group.network.rdma else ():
            lacking = [n.name for n in chosen if n.allocatable.get(resource, "0") == "0"]
            if lacking:
                yield Finding(
                    "ResourceNotAdvertised",
                    f"{named(lacking)} do not advertise {resource}: their pods stay pending; "
                    "check the device plugin and its configuration",
                    False,
                )
    twice = [
        node.name
        for node in nodes
        if sum(group.matches(node.labels) for group in pool.spec.groups) > 1
    ]
    if twice:
        yield _blocks(
            "NodeInTwoGroups",
            f"{named(twice)} match several nodeGroups: their pods would fight for ports and "
            "storage; make the selectors exclude each other",
        )


def named(names: list[str]) -> str:
    """Return some of the names, and how many more there are."""
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _blocks(reason: str, message: str) -> Finding:
    return Finding(reason, message, True)
