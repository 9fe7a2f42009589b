"""Objects of the names that a pool needs, which somebody else made. Server-side apply would take
them over without a word. Pure."""

from enum import Enum

from memkv.errors import ConfigError, RetryLater
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.names import (
    FIELD_MANAGER,
    LABEL_MANAGED_BY,
    LABEL_POOL,
    POOLS,
    Resource,
)
from memkv_operator.api.pool import Pool


class Whose(Enum):
    """Whom an object belongs to, as a pool of its namespace sees it."""

    OURS = "ours"
    EARLIER = "an earlier pool's of this name: it is about to be collected"
    OTHERS = "somebody else's"


def whose(pool: Pool, found: JsonObject) -> Whose:
    """Return whom an object belongs to.

    One that carries the operator's labels for this pool and has no owner at all is ours: someone
    took the reference away, or a backup was restored without it.
    """
    meta = read_meta(Reader(found))
    if pool.meta.uid in meta.owners:
        return Whose.OURS
    owners = Reader(found).object("metadata").objects("ownerReferences")
    if any((o.text("kind"), o.text("name")) == (POOLS.kind, pool.meta.name) for o in owners):
        return Whose.EARLIER
    return Whose.OURS if not owners and _has_our_labels(pool, meta) else Whose.OTHERS


class NameTaken(ConfigError):
    """Somebody else has an object of a name that a pool needs."""


class EarlierPool(RetryLater):
    """An earlier pool of the name still has one. It is collected soon."""


def check_ours(pool: Pool, resource: Resource, found: JsonObject) -> None:
    """Raise NameTaken or EarlierPool for an object that the pool must not write over."""
    owner = whose(pool, found)
    if owner is Whose.EARLIER:
        name = read_meta(Reader(found)).key
        raise EarlierPool(f"{resource.kind} {name} of an earlier pool {pool.key} is still there")
    if owner is Whose.OTHERS:
        raise NameTaken(_name_taken(pool, resource, found))


def _name_taken(pool: Pool, resource: Resource, found: JsonObject) -> str:
    meta = read_meta(Reader(found))
    owners = Reader(found).object("metadata").objects("ownerReferences")
    belongs = ", ".join(f"{owner.text('kind')} {owner.text('name')}" for owner in owners)
    return (
        f"{resource.kind} {meta.key} is needed by pool {pool.key} and belongs to "
        f"{belongs or 'nobody'}, so it is not written over: kubectl delete "
        f"{resource.kind.lower()} -n {meta.namespace} {meta.name}, if nobody needs it; or make the "
        "pool anew under another name"
    )


def _has_our_labels(pool: Pool, meta: ObjectMeta) -> bool:
    ours = {LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_POOL: pool.meta.name}
    return all(meta.labels.get(name) == value for name, value in ours.items())
