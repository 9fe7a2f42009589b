"""The Secrets of a pool, and what is in each.

P-identity, the operator's own: authorities, the keys of tickets, tenants' salt.
P-node-identity: what data-plane pods mount. P-metadata-identity: what metadata pods mount. Both are
the same whoever makes the certificates.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv_operator.api.meta import child_meta, read_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    COMPONENT_NODE,
    POOLS,
    SECRETS,
    identity_name,
    metadata_secret_name,
    node_secret_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import seconds_of, utc
from memkv_operator.identity.authority import Pair
from memkv_operator.identity.ticket_keys import (
    TICKET_KEY,
    TicketKeys,
    content_of_ticket_keys,
    read_ticket_keys,
)
from memkv_operator.identity.trust import (
    CA,
    FIELDS,
    Trust,
    content_of_trust,
    read_trust,
)

CERTIFICATE, KEY = "tls.crt", "tls.key"
ADMIN_CERTIFICATE, ADMIN_KEY = "admin.crt", "admin.key"
TICKET_PUBLIC = "tickets.pub"
SALT, MODE = "salt", "mode"
SALT_BYTES = 32
SELF_SIGNED = "SelfSigned"


@dataclass(frozen=True, slots=True)
class Root:
    """What everything else of a pool's identity is made from."""

    trust: Trust
    tickets: TicketKeys
    salt: bytes
    mode: str = SELF_SIGNED
    """metadata.tls.mode by which the certificates in force were made."""
    admin: Pair | None = None
    """The operator's own certificate, where somebody else makes it."""


def root_manifest(pool: Pool, root: Root) -> Manifest:
    """Return the Secret that holds it."""
    content = {name: value for name, value in _content_of_root(root).items() if value}
    return _secret(pool, identity_name(pool.meta.name), COMPONENT_METADATA, content)


def root_patch(root: Root, resource_version: str) -> Manifest:
    """Return what makes the Secret hold another root, if it still has this version."""
    content = _content_of_root(root)
    data: dict[str, JsonValue] = {
        name: _encoded(value) if value else None for name, value in content.items()
    }
    return {"metadata": {"resourceVersion": resource_version}, "data": data}


def read_root(secret: JsonObject) -> Root:
    """Return what a Secret holds. ConfigError when something is missing."""
    content = content_of(secret)
    admin = None
    if ADMIN_CERTIFICATE in content:
        admin = Pair(content[ADMIN_CERTIFICATE], content.get(ADMIN_KEY, b""))
    try:
        return Root(
            read_trust(content),
            read_ticket_keys(content, utc(seconds_of(read_meta(Reader(secret)).created))),
            content[SALT],
            content.get(MODE, SELF_SIGNED.encode()).decode("utf-8", "replace"),
            admin,
        )
    except KeyError as error:
        raise ConfigError(f"the pool's identity has no {error}") from error


def node_manifest(pool: Pool, root: Root, leaf: Pair) -> Manifest:
    """Return the Secret of data-plane pods."""
    content = {
        CA: root.trust.bundle,
        CERTIFICATE: leaf.certificate,
        KEY: leaf.key,
        TICKET_PUBLIC: root.tickets.public_pem,
    }
    return _secret(pool, node_secret_name(pool.meta.name), COMPONENT_NODE, content)


def metadata_manifest(pool: Pool, root: Root, leaf: Pair) -> Manifest:
    """Return the Secret of metadata pods."""
    content = {
        CA: root.trust.bundle,
        CERTIFICATE: leaf.certificate,
        KEY: leaf.key,
        TICKET_KEY: root.tickets.current,
        SALT: root.salt,
    }
    return _secret(pool, metadata_secret_name(pool.meta.name), COMPONENT_METADATA, content)


def has_ticket_keys(
    node: JsonObject | None, metadata: JsonObject | None, keys: TicketKeys
) -> bool:
    """Return whether the Secrets of pods hold these keys of tickets."""
    if node is None or metadata is None:
        return False
    taken, signs = content_of(node).get(TICKET_PUBLIC), content_of(metadata).get(TICKET_KEY)
    return (taken, signs) == (keys.public_pem, keys.current)


def content_of(secret: JsonObject) -> dict[str, bytes]:
    """Return the content of a Secret. ConfigError when it is not base64."""
    data = Reader(secret).text_map("data")
    try:
        return {name: base64.b64decode(value, validate=True) for name, value in data.items()}
    except binascii.Error as error:
        raise ConfigError(f"a Secret of the pool is not base64 ({error})") from error


def leaf_of(secret: JsonObject | None) -> Pair | None:
    """Return the certificate in a Secret and its key; None where there is none."""
    content = content_of(secret) if secret is not None else {}
    if not content.get(CERTIFICATE) or not content.get(KEY):
        return None
    return Pair(content[CERTIFICATE], content[KEY])


def _content_of_root(root: Root) -> dict[str, bytes]:
    """Return every field; empty ones are not there."""
    return {
        **dict.fromkeys(FIELDS, b""),
        **content_of_trust(root.trust),
        **content_of_ticket_keys(root.tickets),
        SALT: root.salt,
        MODE: root.mode.encode() if root.mode != SELF_SIGNED else b"",
        ADMIN_CERTIFICATE: root.admin.certificate if root.admin is not None else b"",
        ADMIN_KEY: root.admin.key if root.admin is not None else b"",
    }


def _secret(pool: Pool, name: str, component: str, content: Mapping[str, bytes]) -> Manifest:
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": child_meta(POOLS, pool.meta, name, pool_labels(pool.meta.name, component)),
        "type": "Opaque",
        "data": {key: _encoded(value) for key, value in sorted(content.items())},
    }


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
