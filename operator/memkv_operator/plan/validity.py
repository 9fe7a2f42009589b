"""What the schema cannot check of a pool, and what of it stops the pool from being made."""

from collections.abc import Iterable, Mapping

from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.pool import HUGE_PAGES_NONE, NodeGroup, Pool
from memkv_operator.api.tenants import contested
from memkv_operator.plan.identity import IdentityView, blocking
from memkv_operator.plan.preflight import Finding, Preflight, named, preflight_findings
from memkv_operator.render.resources import huge_page_bytes_needed

NO_IDENTITY = IdentityView()
NO_PREFLIGHT = Preflight()


def findings(
    pool: Pool,
    kube_nodes: Mapping[str, KubeNode],
    identity: IdentityView = NO_IDENTITY,
    preflight: Preflight = NO_PREFLIGHT,
) -> list[Finding]:
    """Return everything that is wrong, what blocks first."""
    found = [*_unsupported(pool), *_of_tenants(pool), *_of_nodes(pool, list(kube_nodes.values()))]
    found += preflight_findings(pool, list(kube_nodes.values()), preflight)
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
    if group.in_memory and group.huge_pages != HUGE_PAGES_NONE:
        yield _blocks(
            "HugePagesNeedStorage",
            f"{where} has no storage, so its blocks are a file in memory, which huge pages cannot "
            "hold: say memory.hugePages: None, or give it storage",
        )
    if group.huge_pages != HUGE_PAGES_NONE and not huge_page_bytes_needed(group):
        yield _blocks(
            "HugePagesTooLarge",
            f"{where}.memory.size is less than a huge page of {group.huge_pages} for each of "
            f"{group.workers} workers: raise it, or take smaller pages",
        )


def _of_nodes(pool: Pool, nodes: list[KubeNode]) -> Iterable[Finding]:
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


def _blocks(reason: str, message: str) -> Finding:
    return Finding(reason, message, True)
