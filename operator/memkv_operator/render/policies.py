"""Who may open connections to a pool's pods: NetworkPolicies, of what comes in alone.

| port    | of                       | who                                                        |
| ------- | ------------------------ | ---------------------------------------------------------- |
| data    | data-plane pods          | clients, and other data-plane pods of the pool             |
| grpc    | metadata pods            | the same                                                   |
| admin   | data-plane pods          | the operator                                               |
| metrics | both                     | scrapers; kubelet, whose own node no policy keeps out      |

What goes out is left alone: names and the API server are reached as ever. Pods with the network of
their node are chosen by none of these: plugins differ in what a policy means to them.
"""

from collections.abc import Sequence

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    COMPONENT_NODE,
    COMPONENT_OPERATOR,
    LABEL_COMPONENT,
    LABEL_NAMESPACE,
    LABEL_NODE_GROUP,
    LABEL_PART_OF,
    LABEL_POOL,
    NETWORK_POLICIES,
    POOLS,
    metadata_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool


def network_policies(pool: Pool, operator_namespace: str) -> list[Manifest]:
    """Return the policies of a pool. `operator_namespace`: where the operator's pods are; empty:
    anywhere."""
    if not pool.spec.policy.enabled:
        return []
    ports, policy = pool.spec.ports, pool.spec.policy
    metrics = _rule(policy.scrapers, _port(ports.metrics))
    chosen: Manifest = {"matchLabels": _labels(pool, COMPONENT_METADATA)}
    metadata = [_rule(_clients(pool), _port(ports.metadata)), metrics]
    name = metadata_name(pool.meta.name)
    made = [_policy(pool, name, COMPONENT_METADATA, chosen, metadata)]
    groups = [group for group in pool.spec.groups if not group.network.host]
    if groups:
        names: list[JsonValue] = [group.name for group in groups]
        chosen = {
            "matchLabels": _labels(pool, COMPONENT_NODE),
            "matchExpressions": [{"key": LABEL_NODE_GROUP, "operator": "In", "values": names}],
        }
        workers = max(group.workers for group in groups)
        nodes = [
            _rule(_clients(pool), _port(ports.data, workers)),
            _rule([_operator(operator_namespace)], _port(ports.admin)),
            metrics,
        ]
        made.append(_policy(pool, f"{pool.meta.name}-nodes", COMPONENT_NODE, chosen, nodes))
    return made


def _policy(
    pool: Pool, name: str, component: str, chosen: Manifest, ingress: Sequence[JsonValue]
) -> Manifest:
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": child_meta(POOLS, pool.meta, name, pool_labels(pool.meta.name, component)),
        "spec": {"podSelector": chosen, "policyTypes": ["Ingress"], "ingress": list(ingress)},
    }


def _rule(peers: Sequence[JsonValue], port: Manifest) -> Manifest:
    """Without peers everyone may."""
    return {"ports": [port], **({"from": list(peers)} if peers else {})}


def _port(first: int, count: int = 1) -> Manifest:
    port: Manifest = {"port": first, "protocol": "TCP"}
    return {**port, "endPort": first + count - 1} if count > 1 else port


def _clients(pool: Pool) -> list[JsonValue]:
    """Where only some may come, the pool's own nodes are among them."""
    peers = list(pool.spec.policy.clients)
    own: Manifest = {"podSelector": {"matchLabels": _labels(pool, COMPONENT_NODE)}}
    return [*peers, own] if peers else []


def _operator(namespace: str) -> Manifest:
    where: Manifest = {"matchLabels": {LABEL_NAMESPACE: namespace}} if namespace else {}
    labels: Manifest = {LABEL_COMPONENT: COMPONENT_OPERATOR, LABEL_PART_OF: "memkv"}
    return {"namespaceSelector": where, "podSelector": {"matchLabels": labels}}


def _labels(pool: Pool, component: str) -> dict[str, JsonValue]:
    return {LABEL_COMPONENT: component, LABEL_POOL: pool.meta.name}
