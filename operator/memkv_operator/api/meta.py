"""metadata of any object, and references to its owner."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv_operator.api.names import Resource


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What is read of an object's metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    deleting: bool = False
    created: str = ""
    """RFC 3339."""
    deleted: str = ""
    """Since when it is being deleted, RFC 3339; empty: it is not."""
    owners: tuple[str, ...] = ()
    """UIDs of the objects that own it."""

    @property
    def key(self) -> str:
        """ "namespace/name", or the name alone of what has no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def read_meta(manifest: Reader) -> ObjectMeta:
    """Return an object's metadata."""
    meta = manifest.object("metadata")
    return ObjectMeta(
        meta.text("name"),
        meta.text("namespace"),
        meta.text("uid"),
        meta.text("resourceVersion"),
        meta.integer("generation"),
        meta.text_map("labels"),
        meta.text_map("annotations"),
        meta.texts("finalizers"),
        meta.has("deletionTimestamp"),
        meta.text("creationTimestamp"),
        meta.text("deletionTimestamp"),
        tuple(owner.text("uid") for owner in meta.objects("ownerReferences")),
    )


def owner_reference(resource: Resource, owner: ObjectMeta) -> Manifest:
    """Return a reference to the controlling owner: garbage collection follows it."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def child_meta(
    resource: Resource, owner: ObjectMeta, name: str, labels: Mapping[str, str]
) -> dict[str, JsonValue]:
    """Return metadata of an object that the owner controls."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner_reference(resource, owner)],
    }
