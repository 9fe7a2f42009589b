"""Verbs on objects: apply, replace, patch of a status, delete. Errors by what the caller should do.

Server-side apply with `force`: what the operator states of a child is the operator's; everything
else of it belongs to whoever wrote it.
"""

from collections.abc import Mapping

from memkv.metadata.kubernetes.api_server import APPLY, MERGE, ApiServer
from memkv.metadata.kubernetes.errors import Conflict, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv.metadata.kubernetes.listing import Listing, list_all
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import FIELD_MANAGER, Resource

_BY_US = {"fieldManager": FIELD_MANAGER}


class Objects:
    """Verbs of one connection."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    async def get(self, resource: Resource, namespace: str, name: str) -> JsonObject | None:
        """Return an object, None where there is none."""
        try:
            return await self._api.request("GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> Listing:
        """Return all objects of a kind; no namespace: those of all namespaces."""
        query = {"labelSelector": label_selector} if label_selector else {}
        if field_selector:
            query["fieldSelector"] = field_selector
        return await list_all(self._api, resource.path(namespace), query)

    async def check_served(self, resource: Resource, namespace: str = "") -> None:
        """Raise NotFound where the API server does not know a kind."""
        await self._api.request("GET", resource.path(namespace), {"limit": "1"})

    async def apply(
        self, resource: Resource, namespace: str, name: str, manifest: JsonObject
    ) -> JsonObject:
        """Make the object have every field of the manifest. Return what it is now."""
        query = {**_BY_US, "force": "true", "fieldValidation": "Strict"}
        path = resource.path(namespace, name)
        return await self._api.request("PATCH", path, query, manifest, APPLY)

    async def create(self, resource: Resource, namespace: str, manifest: JsonObject) -> JsonObject:
        """Make an object. Conflict when there is one of this name."""
        return await self._api.request("POST", resource.path(namespace), _BY_US, manifest)

    async def replace(
        self, resource: Resource, namespace: str, name: str, manifest: JsonObject
    ) -> JsonObject:
        """Replace an object whose resourceVersion the manifest names. Conflict when it is another
        one by now: compare and swap."""
        if not Reader(manifest).object("metadata").text("resourceVersion"):
            raise Conflict(f"{resource.kind} {name} has no resourceVersion to compare with")
        path = resource.path(namespace, name)
        return await self._api.request("PUT", path, _BY_US, manifest)

    async def write_status(
        self, resource: Resource, namespace: str, name: str, status: Mapping[str, JsonValue]
    ) -> JsonObject:
        """Replace the whole status, by its only writer."""
        path = resource.path(namespace, name, "status")
        body: Manifest = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        query = {**_BY_US, "force": "true"}
        return await self._api.request("PATCH", path, query, body, APPLY)

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: JsonObject
    ) -> JsonObject:
        """Change the named fields; null takes one away."""
        path = resource.path(namespace, name)
        return await self._api.request("PATCH", path, _BY_US, patch, MERGE)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str
    ) -> JsonObject | None:
        """Delete the object with this UID. One that is gone, or another one, is left alone.

        Returns the object when it goes by and by, None when it is gone.
        """
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        path = resource.path(namespace, name)
        try:
            answer = await self._api.request("DELETE", path, None, options)
        except (NotFound, Conflict):
            return None
        meta = read_meta(Reader(answer))
        return answer if meta.uid == uid and meta.deleting else None
