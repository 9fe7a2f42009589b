"""The Secrets of a pool, and what is in each.

P-identity, the operator's own: the authority's key, the key that signs tickets, tenants' salt.
P-node-identity: what data-plane pods mount. P-metadata-identity: what metadata pods mount.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memkv.errors import ConfigError
from memkv.metadata.certificates import node_name
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    COMPONENT_NODE,
    POOLS,
    SECRETS,
    identity_name,
    metadata_name,
    metadata_secret_name,
    node_secret_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.identity.authority import Pair, public_ticket_key

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
AUTHORITY_KEY = "ca.key"
TICKET_KEY, TICKET_PUBLIC = "tickets.key", "tickets.pub"
SALT = "salt"
SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Root:
    """What everything else of a pool's identity is made from."""

    authority: Pair
    ticket_key: bytes
    salt: bytes


def root_manifest(pool: Pool, root: Root) -> Manifest:
    """Return the Secret that holds it."""
    content = {
        CA: root.authority.certificate,
        AUTHORITY_KEY: root.authority.key,
        TICKET_KEY: root.ticket_key,
        SALT: root.salt,
    }
    return _secret(pool, identity_name(pool.meta.name), COMPONENT_METADATA, content)


def read_root(secret: JsonObject) -> Root:
    """Return what a Secret holds. ConfigError when something is missing."""
    content = content_of(secret)
    try:
        return Root(Pair(content[CA], content[AUTHORITY_KEY]), content[TICKET_KEY], content[SALT])
    except KeyError as error:
        raise ConfigError(f"the pool's identity has no {error}") from error


def node_manifest(pool: Pool, root: Root, leaf: Pair) -> Manifest:
    """Return the Secret of data-plane pods."""
    content = {
        CA: root.authority.certificate,
        CERTIFICATE: leaf.certificate,
        KEY: leaf.key,
        TICKET_PUBLIC: public_ticket_key(root.ticket_key),
    }
    return _secret(pool, node_secret_name(pool.meta.name), COMPONENT_NODE, content)


def metadata_manifest(pool: Pool, root: Root, leaf: Pair) -> Manifest:
    """Return the Secret of metadata pods."""
    content = {
        CA: root.authority.certificate,
        CERTIFICATE: leaf.certificate,
        KEY: leaf.key,
        TICKET_KEY: root.ticket_key,
        SALT: root.salt,
    }
    return _secret(pool, metadata_secret_name(pool.meta.name), COMPONENT_METADATA, content)


def content_of(secret: JsonObject) -> dict[str, bytes]:
    """Return the content of a Secret. ConfigError when it is not base64."""
    data = Reader(secret).text_map("data")
    try:
        return {name: base64.b64decode(value, validate=True) for name, value in data.items()}
    except binascii.Error as error:
        raise ConfigError(f"a Secret of the pool is not base64 ({error})") from error


def node_dns_names(pool: Pool) -> Sequence[str]:
    """Return the names in the certificate of a pool's nodes."""
    return (node_name(pool.key),)


def metadata_dns_names(pool: Pool) -> Sequence[str]:
    """Return the names by which clients of the cluster reach the metadata service."""
    host = f"{metadata_name(pool.meta.name)}.{pool.meta.namespace}"
    return metadata_name(pool.meta.name), host, f"{host}.svc", f"{host}.svc.cluster.local"


def _secret(pool: Pool, name: str, component: str, content: Mapping[str, bytes]) -> Manifest:
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": child_meta(POOLS, pool.meta, name, pool_labels(pool.meta.name, component)),
        "type": "Opaque",
        "data": {
            key: base64.b64encode(value).decode("ascii") for key, value in sorted(content.items())
        },
    }
