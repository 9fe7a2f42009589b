"""Carries out a plan's actions at the API server."""

from memkv.metadata.kubernetes.errors import NotFound
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest
from memkv_operator.api.names import (
    BY_KIND,
    FINALIZER,
    MEMKV_NODES,
    NODES,
    PODS,
    POOLS,
    SAFE_TO_REBOOT,
)
from memkv_operator.api.pool import Pool
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.actions import (
    Action,
    AnnotateNode,
    ApplyChild,
    ApplyNode,
    DeleteObject,
    DeletePod,
    DropAnnotation,
    SetFinalizer,
    WriteNodeStatus,
    WritePoolStatus,
)
from memkv_operator.plan.strangers import Whose, check_ours, whose
from memkv_operator.render.children import Child
from memkv_operator.run.view import ClusterView


class Hands:
    """Does one action at a time, and notes what the API server answers, so that the next plan does
    not wait for a watch to hear of its own writes."""

    def __init__(self, objects: Objects, view: ClusterView) -> None:
        self._objects = objects
        self._view = view

    async def do(self, pool: Pool, action: Action) -> None:
        """Carry out one action. Raises what the API server answers."""
        namespace = pool.meta.namespace
        match action:
            case ApplyChild(child):
                await self._apply_child(pool, child)
            case ApplyNode(name, manifest):
                live = await self._objects.apply(MEMKV_NODES, namespace, name, manifest)
                self._view.changed(MEMKV_NODES, live)
            case WriteNodeStatus(name, status):
                live = await self._objects.write_status(MEMKV_NODES, namespace, name, status)
                self._view.changed(MEMKV_NODES, live)
            case WritePoolStatus(status):
                await self._write_pool_status(pool, status)
            case DeleteObject(kind, name, uid):
                await self._objects.delete(BY_KIND[kind], namespace, name, uid)
            case DeletePod(name, uid):
                if going := await self._objects.delete(PODS, namespace, name, uid):
                    self._view.changed(PODS, going)
            case SetFinalizer(present):
                await self._set_finalizer(pool, present)
            case DropAnnotation(name):
                await self._drop_annotation(pool, name)
            case AnnotateNode(name, safe):
                await self._annotate_node(name, safe)

    async def _apply_child(self, pool: Pool, child: Child) -> None:
        """Apply it. NameTaken or EarlierPool instead where it is not the pool's. Watched is what
        carries our label, so what else has the name must be asked for."""
        namespace = pool.meta.namespace
        found = self._view.children_of(pool.key).get(child.key)
        if found is None or whose(pool, found) is not Whose.OURS:
            found = await self._objects.get(child.resource, namespace, child.name)
        if found is not None:
            check_ours(pool, child.resource, found)
        live = await self._objects.apply(child.resource, namespace, child.name, child.manifest)
        self._view.changed(child.resource, live)

    async def _write_pool_status(self, pool: Pool, status: Manifest) -> None:
        try:
            live = await self._objects.write_status(
                POOLS, pool.meta.namespace, pool.meta.name, status
            )
        except NotFound:
            return  # deleted meanwhile
        self._view.changed(POOLS, live)

    async def _drop_annotation(self, pool: Pool, name: str) -> None:
        """Swapped against the version it was read from: who says it again is heard again."""
        meta: Manifest = {
            "annotations": {name: None},
            "resourceVersion": pool.meta.resource_version,
        }
        try:
            live = await self._objects.merge(
                POOLS, pool.meta.namespace, pool.meta.name, {"metadata": meta}
            )
        except NotFound:
            return  # deleted meanwhile
        self._view.changed(POOLS, live)

    async def _annotate_node(self, name: str, safe: bool) -> None:
        patch: Manifest = {"metadata": {"annotations": {SAFE_TO_REBOOT: "true" if safe else None}}}
        try:
            live = await self._objects.merge(NODES, "", name, patch)
        except NotFound:
            return  # it has left the cluster meanwhile
        self._view.changed(NODES, live)

    async def _set_finalizer(self, pool: Pool, present: bool) -> None:
        """Others' finalizers stay: the list is swapped against the version it was read from."""
        others: list[JsonValue] = [f for f in pool.meta.finalizers if f != FINALIZER]
        finalizers = [*others, FINALIZER] if present else others
        patch: Manifest = {
            "metadata": {
                "finalizers": finalizers,
                "resourceVersion": pool.meta.resource_version,
            }
        }
        try:
            live: JsonObject = await self._objects.merge(
                POOLS, pool.meta.namespace, pool.meta.name, patch
            )
        except NotFound:
            return
        if present or others:
            self._view.changed(POOLS, live)
