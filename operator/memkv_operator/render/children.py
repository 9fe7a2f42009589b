"""Everything that is rendered from a pool, each with the hash of what was rendered."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.names import BY_KIND, SPEC_HASH, Resource
from memkv_operator.api.pool import Pool
from memkv_operator.render.connection import connection
from memkv_operator.render.daemonset import daemon_set
from memkv_operator.render.digest import digest_of
from memkv_operator.render.disruption import metadata_budget, node_budget
from memkv_operator.render.dropped import without_nodes
from memkv_operator.render.identity import node_account
from memkv_operator.render.metadata import metadata_manifests
from memkv_operator.render.policies import network_policies


@dataclass(frozen=True, slots=True)
class Child:
    """An object that a pool should have."""

    resource: Resource
    name: str
    manifest: Manifest
    spec_hash: str

    @property
    def key(self) -> tuple[str, str]:
        """(kind, name): what it is called within its namespace."""
        return self.resource.kind, self.name


def children_of(
    pool: Pool,
    own_image: str,
    available_min: int = 0,
    authority: str = "",
    dropped_nodes: Collection[str] = (),
    operator_namespace: str = "",
) -> list[Child]:
    """Return the children in the order in which they are made.

    `available_min`: how many data-plane pods evictions must leave, if the pool has that managed.
    `authority`: its CA in PEM, for clients. `dropped_nodes`: selected ones that get no pod.
    `operator_namespace`: from where alone nodes are administered.
    """
    manifests = [
        *metadata_manifests(pool, own_image),
        connection(pool, authority),
        node_account(pool),
        *(
            without_nodes(daemon_set(pool, group, own_image), dropped_nodes)
            for group in pool.spec.groups
        ),
    ]
    if pool.spec.manages_pod_budget:
        manifests += [metadata_budget(pool), node_budget(pool, available_min)]
    manifests += network_policies(pool, operator_namespace)
    return [stamped(manifest) for manifest in manifests]


def stamped(manifest: Manifest) -> Child:
    """Return a manifest with its own hash in an annotation."""
    resource = BY_KIND[str(manifest["kind"])]
    meta = manifest["metadata"]
    assert isinstance(meta, Mapping)
    spec_hash = digest_of(manifest)
    annotations = meta.get("annotations")
    kept = annotations if isinstance(annotations, Mapping) else {}
    whole: Manifest = {
        **manifest,
        "metadata": {**meta, "annotations": {**kept, SPEC_HASH: spec_hash}},
    }
    return Child(resource, str(meta["name"]), whole, spec_hash)
