"""ConfigMap P-connection: all that a client needs beside its own identity."""

import json

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    CONFIG_MAPS,
    POOLS,
    connection_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.render.endpoints import metadata_endpoint
from memkv_operator.render.identity import TOKEN_FILE, asks_tokens
from memkv_operator.render.rdma import rdma_of_clients

FILE_NAME = "connection.json"


def connection(pool: Pool, authority: str) -> Manifest:
    """Return the ConfigMap; its one key is the file that `memkv` reads from /etc/memkv.

    `authority`: the pool's CA in PEM, if it has one.
    """
    document: dict[str, str | int] = {"endpoint": metadata_endpoint(pool), "pool": pool.key}
    document.update(rdma_of_clients(pool))
    if pool.has_tls:
        document["ca"] = authority
        document["payload_encryption"] = pool.spec.groups[0].network.payload_encryption
        if asks_tokens(pool):
            document["token_file"] = TOKEN_FILE
    labels = pool_labels(pool.meta.name, COMPONENT_METADATA)
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": child_meta(POOLS, pool.meta, connection_name(pool.meta.name), labels),
        "data": {FILE_NAME: json.dumps(document, sort_keys=True) + "\n"},
    }


def authority_in(config_map: JsonObject) -> str:
    """Return the CA that clients find in the ConfigMap as it is; empty when there is none."""
    text = Reader(config_map).text_map("data").get(FILE_NAME, "")
    try:
        document = json.loads(text)
    except ValueError:
        return ""
    return str(document.get("ca", "")) if isinstance(document, dict) else ""
