"""What the operator knows of the cluster, from watches. Tells which pool each change concerns.

All methods on one event loop. Objects are kept without `managedFields`, which are most of their
bytes and nobody's business here.
"""

from collections import defaultdict
from collections.abc import Callable

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.metadata.kubernetes.listing import Listing
from memkv_operator.api.cluster import (
    KubeNode,
    Pod,
    Rollout,
    read_kube_node,
    read_pod,
    read_rollout,
)
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.names import (
    CHILDREN,
    DEPLOYMENTS,
    LABEL_POOL,
    MEMKV_NODES,
    NODES,
    PODS,
    POOLS,
    Resource,
    metadata_name,
)
from memkv_operator.api.node import MemKVNode, read_memkv_node

Key = tuple[str, str]
"""(kind, name) within a pool's namespace."""


class ClusterView:
    """Objects by pool."""

    def __init__(self, concerns: Callable[[str], None]) -> None:
        """`concerns` is told the key of each pool for which something has changed."""
        self.pools: dict[str, JsonObject] = {}
        self.kube_nodes: dict[str, KubeNode] = {}
        self._pods: dict[str, dict[str, Pod]] = defaultdict(dict)
        self._objects: dict[str, dict[Key, JsonObject]] = defaultdict(dict)
        self._parsed: dict[str, tuple[JsonObject, MemKVNode]] = {}
        """By key of the MemKVNode: what was read of which manifest."""
        self._concerns = concerns
        self._versions: dict[Key, tuple[str, int]] = {}
        """(kind, key) -> (UID, resourceVersion) of the newest state known."""

    # --- changes -----------------------------------------------------------------------------

    def changed(self, resource: Resource, manifest: JsonObject) -> None:
        """Note an object that is new or has changed. An older state than the one known, as a watch
        tells it that lags behind our own writes, is left out."""
        meta = read_meta(Reader(manifest))
        if self._is_older(resource, meta):
            return
        slim = _slim(resource, manifest)
        if resource is POOLS:
            before = self.pools.get(meta.key)
            self.pools[meta.key] = slim
            if before != slim:
                self._concerns(meta.key)
        elif resource is NODES:
            node = read_kube_node(manifest)
            if self.kube_nodes.get(meta.name) != node:
                self.kube_nodes[meta.name] = node
                self._concern_all()
        elif pool := _pool_of(meta):
            self._changed_child(resource, pool, meta, slim)

    def deleted(self, resource: Resource, manifest: JsonObject) -> None:
        """Note that an object is gone."""
        meta = read_meta(Reader(manifest))
        self._versions.pop((resource.kind, meta.key), None)
        if resource is POOLS:
            self.pools.pop(meta.key, None)
            self._concerns(meta.key)
        elif resource is NODES:
            self.kube_nodes.pop(meta.name, None)
            self._concern_all()
        elif pool := _pool_of(meta):
            if resource is PODS:
                self._pods[pool].pop(meta.name, None)
            else:
                self._objects[pool].pop((resource.kind, meta.name), None)
            if resource is MEMKV_NODES:
                self._parsed.pop(meta.key, None)
            self._concerns(pool)

    def replaced(self, resource: Resource, namespace: str, listing: Listing) -> bool:
        """Note what there is of a kind in a namespace ("": in all): what is not listed is gone,
        unless it was heard of after the listing. Return whether any of it was news."""
        news = False
        listed = {read_meta(Reader(manifest)).key for manifest in listing.items}
        for gone in self._known(resource, namespace) - listed:
            if self._is_newer(resource, gone, listing.version):
                continue
            news = True
            self._versions.pop((resource.kind, gone), None)
            where, _, name = gone.rpartition("/")
            self._forget(resource, where, name)
        for manifest in listing.items:
            news = self._is_news(resource, manifest) or news
            self.changed(resource, manifest)
        return news

    # --- answers -----------------------------------------------------------------------------

    def pods_of(self, pool: str) -> list[Pod]:
        """Return a pool's pods."""
        return list(self._pods[pool].values())

    def memkv_nodes_of(self, pool: str) -> list[MemKVNode]:
        """Return a pool's MemKVNodes."""
        namespace = pool.partition("/")[0]
        return [
            self._read_node(f"{namespace}/{name}", manifest)
            for (kind, name), manifest in self._objects[pool].items()
            if kind == MEMKV_NODES.kind
        ]

    def nodes_of_pools(self) -> frozenset[str]:
        """Return the nodes that have a MemKVNode of any pool."""
        return frozenset(
            node.node_name for pool in list(self._objects) for node in self.memkv_nodes_of(pool)
        )

    def nodes_others_need(self, pool: str) -> frozenset[str]:
        """Return the nodes that another pool still needs."""
        return frozenset(
            node.node_name
            for other in list(self._objects)
            if other != pool
            for node in self.memkv_nodes_of(other)
            if not node.may_stop
        )

    def children_of(self, pool: str) -> dict[Key, JsonObject]:
        """Return what exists of the kinds that are rendered from pools."""
        kinds = {resource.kind for resource in CHILDREN}
        return {key: m for key, m in self._objects[pool].items() if key[0] in kinds}

    def metadata_rollout(self, pool: str) -> Rollout | None:
        """Return how far a pool's metadata Deployment is."""
        name = metadata_name(pool.partition("/")[2])
        manifest = self._objects[pool].get((DEPLOYMENTS.kind, name))
        if manifest is None:
            return None
        return read_rollout(read_meta(Reader(manifest)), manifest)

    def forget_pool(self, pool: str) -> None:
        """Drop what is known of a pool that is gone and has nothing left."""
        if not self._pods.get(pool):
            self._pods.pop(pool, None)
        if not self._objects.get(pool):
            self._objects.pop(pool, None)

    # --- inside ------------------------------------------------------------------------------

    def _read_node(self, key: str, manifest: JsonObject) -> MemKVNode:
        """Read a MemKVNode once: hundreds are asked for at each look."""
        known = self._parsed.get(key)
        if known is None or known[0] is not manifest:
            known = self._parsed[key] = manifest, read_memkv_node(manifest)
        return known[1]

    def _changed_child(
        self, resource: Resource, pool: str, meta: ObjectMeta, slim: JsonObject
    ) -> None:
        if resource is PODS:
            pod = read_pod(slim)
            if self._pods[pool].get(meta.name) != pod:
                self._pods[pool][meta.name] = pod
                self._concerns(pool)
            return
        key = resource.kind, meta.name
        if self._objects[pool].get(key) != slim:
            self._objects[pool][key] = slim
            self._concerns(pool)

    def _is_older(self, resource: Resource, meta: ObjectMeta) -> bool:
        """Resource versions of one object grow; Kubernetes promises it since 1.35."""
        if not meta.resource_version.isdecimal():
            return False
        key, version = (resource.kind, meta.key), int(meta.resource_version)
        uid, known = self._versions.get(key, ("", 0))
        if uid == meta.uid and version < known:
            return True
        self._versions[key] = meta.uid, version
        return False

    def _is_news(self, resource: Resource, manifest: JsonObject) -> bool:
        """Return whether an object is in a state that was not heard of."""
        meta = read_meta(Reader(manifest))
        uid, known = self._versions.get((resource.kind, meta.key), ("", 0))
        version = meta.resource_version
        return uid != meta.uid or (version.isdecimal() and int(version) > known)

    def _is_newer(self, resource: Resource, key: str, version: str) -> bool:
        """Return whether the state that is known of an object is newer than a listing."""
        _, known = self._versions.get((resource.kind, key), ("", 0))
        return version.isdecimal() and known > int(version)

    def _concern_all(self) -> None:
        for key in list(self.pools):
            self._concerns(key)

    def _known(self, resource: Resource, namespace: str) -> set[str]:
        """Return keys of what is known of a kind in a namespace; "": in all."""
        if resource is NODES:
            return set(self.kube_nodes)
        known = set(self.pools) if resource is POOLS else set()
        for pool in (*self._pods, *self._objects):
            where = pool.partition("/")[0]
            if resource is PODS:
                known |= {f"{where}/{name}" for name in self._pods.get(pool, {})}
            else:
                objects = self._objects.get(pool, {})
                known |= {f"{where}/{n}" for kind, n in objects if kind == resource.kind}
        return {key for key in known if not namespace or key.partition("/")[0] == namespace}

    def _forget(self, resource: Resource, namespace: str, name: str) -> None:
        pools = [p for p in (*self._pods, *self._objects) if p.partition("/")[0] == namespace]
        for pool in pools:
            gone = self._pods[pool].pop(name, None) if resource is PODS else None
            other = self._objects[pool].pop((resource.kind, name), None)
            if gone is not None or other is not None:
                self._concerns(pool)
        if resource is MEMKV_NODES:
            self._parsed.pop(f"{namespace}/{name}", None)
        if resource is POOLS and self.pools.pop(f"{namespace}/{name}", None) is not None:
            self._concerns(f"{namespace}/{name}")
        if resource is NODES and self.kube_nodes.pop(name, None) is not None:
            self._concern_all()


def _pool_of(meta: ObjectMeta) -> str:
    pool = meta.labels.get(LABEL_POOL, "")
    return f"{meta.namespace}/{pool}" if pool and meta.namespace else ""


def _slim(resource: Resource, manifest: JsonObject) -> JsonObject:
    """Lists give items without kind; watches give them with it."""
    meta = manifest.get("metadata")
    if not isinstance(meta, dict):
        raise ConfigError(f"the API server sent a {resource.kind} without metadata")
    kept = {key: value for key, value in meta.items() if key != "managedFields"}
    named = {"apiVersion": resource.api_version, "kind": resource.kind}
    return {**named, **manifest, "metadata": kept}
