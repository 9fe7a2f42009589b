"""Where pods find who they are: flags and mounts of the pool's Secrets."""

import json

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    COMPONENT_NODE,
    CONFIG_MAPS,
    POOLS,
    SERVICE_ACCOUNTS,
    metadata_name,
    node_account_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.api.tenants import owners_of

DIRECTORY = "/etc/memkv/identity"
TENANTS_DIRECTORY = "/etc/memkv/tenants"
TENANTS_FILE = "tenants.json"
TOKEN_DIRECTORY = "/var/run/secrets/memkv"
TOKEN_FILE = f"{TOKEN_DIRECTORY}/token"
"""Where pods mount a projected ServiceAccount token for the metadata service."""
TOKEN_S = 3600  # kubelet renews it when four fifths have gone
_MODES = {"ServiceAccount": "serviceaccount", "MTLS": "certificate", "None": "none"}
PUBLIC = 0o444
BY_OWNER = 0o400
"""Of keys in data-plane pods: their uid is 0, whose files these are, and has no capability by which
it could read those of others."""
BY_GROUP = 0o440
"""Of keys in metadata pods: their uid owns nothing, and kubelet gives files to fsGroup."""

_TLS = (
    f"--tls-cert={DIRECTORY}/tls.crt",
    f"--tls-key={DIRECTORY}/tls.key",
    f"--tls-ca={DIRECTORY}/ca.crt",
)


def asks_tokens(pool: Pool) -> bool:
    """Whether tokens prove callers to the metadata service. It asks nobody for a certificate then,
    nodes included."""
    return pool.has_tls and pool.spec.auth_mode == "ServiceAccount"


def node_flags(pool: Pool, payload_encryption: str) -> list[JsonValue]:
    """Return what a data-plane pod is told of certificates and tickets."""
    if not pool.has_tls:
        return ["--insecure"]
    return [
        *_TLS,
        f"--ticket-keys={DIRECTORY}/tickets.pub",
        f"--payload-encryption={payload_encryption}",
        *([f"--token-file={TOKEN_FILE}"] if asks_tokens(pool) else []),
    ]


def metadata_flags(pool: Pool) -> list[JsonValue]:
    """Return what a metadata pod is told of certificates, callers and tickets."""
    if not pool.has_tls:
        return ["--insecure"]
    return [
        *_TLS,
        f"--ticket-key={DIRECTORY}/tickets.key",
        f"--salt-secret={DIRECTORY}/salt",
        f"--auth={_MODES[pool.spec.auth_mode]}",
        f"--tenants={TENANTS_DIRECTORY}/{TENANTS_FILE}",
        *(
            [f"--node-accounts={_node_account(pool)}", f"--audience={pool.spec.auth_audience}"]
            if asks_tokens(pool)
            else []
        ),
    ]


def secret_volume(secret: str, mode: int) -> Manifest:
    """Return the volume of a Secret. `mode`: of its files."""
    return {"name": "identity", "secret": {"secretName": secret, "defaultMode": mode}}


def secret_mount() -> Manifest:
    """Return where it is mounted. The whole folder: kubelet replaces files of no other mount."""
    return {"name": "identity", "mountPath": DIRECTORY, "readOnly": True}


def node_account(pool: Pool) -> Manifest:
    """Return the ServiceAccount of data-plane pods: without rights, it says who they are."""
    name = node_account_name(pool.meta.name)
    labels = pool_labels(pool.meta.name, COMPONENT_NODE)
    return {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "metadata": child_meta(POOLS, pool.meta, name, labels),
        "automountServiceAccountToken": False,
    }


def _node_account(pool: Pool) -> str:
    return f"{pool.meta.namespace}/{node_account_name(pool.meta.name)}"


def token_volume(pool: Pool) -> Manifest:
    """Return the volume with a data-plane pod's token, which only the metadata service takes."""
    token: Manifest = {
        "path": "token",
        "audience": pool.spec.auth_audience,
        "expirationSeconds": TOKEN_S,
    }
    sources: list[JsonValue] = [{"serviceAccountToken": token}]
    return {"name": "token", "projected": {"sources": sources, "defaultMode": BY_OWNER}}


def token_mount() -> Manifest:
    """Return where it is mounted."""
    return {"name": "token", "mountPath": TOKEN_DIRECTORY, "readOnly": True}


def tenants_volume(pool: Pool) -> Manifest:
    """Return the volume that says who is which tenant."""
    return {
        "name": "tenants",
        "configMap": {"name": metadata_name(pool.meta.name), "defaultMode": PUBLIC},
    }


def tenants_mount() -> Manifest:
    """Return where it is mounted."""
    return {"name": "tenants", "mountPath": TENANTS_DIRECTORY, "readOnly": True}


def tenants_map(pool: Pool) -> Manifest:
    """Return the ConfigMap that says who is which tenant."""
    owners = owners_of(pool.spec.tenants)
    document = {
        "tenants": [
            {
                "name": tenant.name,
                "subjects": [
                    {"namespace": namespace, "name": name}
                    for namespace, name in tenant.subjects
                    if owners[namespace, name] == tenant.name
                ],
            }
            for tenant in pool.spec.tenants
        ]
    }
    name = metadata_name(pool.meta.name)
    labels = pool_labels(pool.meta.name, COMPONENT_METADATA)
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": child_meta(POOLS, pool.meta, name, labels),
        "data": {TENANTS_FILE: json.dumps(document, sort_keys=True) + "\n"},
    }
