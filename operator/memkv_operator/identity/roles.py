"""Who has a certificate in a pool, and the names in it."""

from collections.abc import Sequence
from enum import Enum

from memkv.metadata.certificates import admin_name, node_name
from memkv_operator.api.names import metadata_name
from memkv_operator.api.pool import Pool


class Role(Enum):
    """Whom a certificate proves."""

    NODE = "node"
    METADATA = "metadata"
    ADMIN = "admin"
    """The operator, towards nodes."""


def names_of(role: Role, pool: Pool) -> Sequence[str]:
    """Return the DNS names that a certificate is made with."""
    if role is Role.NODE:
        return (node_name(pool.key),)
    if role is Role.ADMIN:
        return (admin_name(pool.key),)
    host = f"{metadata_name(pool.meta.name)}.{pool.meta.namespace}"
    return metadata_name(pool.meta.name), host, f"{host}.svc", f"{host}.svc.cluster.local"


def names_needed(role: Role, pool: Pool) -> Sequence[str]:
    """Return the DNS names without which a certificate is of no use."""
    if role is not Role.METADATA:
        return names_of(role, pool)
    return (f"{metadata_name(pool.meta.name)}.{pool.meta.namespace}.svc",)
