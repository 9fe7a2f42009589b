"""Who may open connections to a pool's pods, as its NetworkPolicies say."""

from typing import Any

import pytest

from memkv_operator.api.pool import read_pool
from memkv_operator.render.policies import network_policies
from memkv_operator.testing.cluster import (
    NAMESPACE,
    POOL,
    SPEC,
    Cluster,
    ready_pool,
    run_on_a_cluster,
)

HOST = {"mode": "HostNetwork", "rdma": {"mode": "Disabled"}}
SEARCH = {"namespaceSelector": {"matchLabels": {"team": "search"}}}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
OWN_NODES = {
    "podSelector": {
        "matchLabels": {"app.kubernetes.io/component": "node", "memkv.io/pool": POOL},
    }
}


def policies(**changes: Any) -> dict[str, Any]:
    meta = {"name": POOL, "namespace": NAMESPACE, "uid": "u"}
    pool = read_pool({"metadata": meta, "spec": {**SPEC, **changes}})
    made: list[Any] = list(network_policies(pool, "memkv-system"))
    return {policy["metadata"]["name"]: policy["spec"] for policy in made}


def doors(spec: Any) -> dict[tuple[int, int], Any]:
    """(first port, last port) -> peers, None for everyone."""
    return {
        (port["port"], port.get("endPort", port["port"])): rule.get("from")
        for rule in spec["ingress"]
        for port in rule["ports"]
    }


def test_everyone_reaches_what_clients_need_and_the_operator_alone_the_admin_port() -> None:
    made = policies()
    metadata, nodes = made[f"{POOL}-metadata"], made[f"{POOL}-nodes"]
    assert doors(metadata) == {(7443, 7443): None, (9471, 9471): None}
    (operator,) = doors(nodes)[9470, 9470]
    where = operator["namespaceSelector"]["matchLabels"]
    assert where == {"kubernetes.io/metadata.name": "memkv-system"}
    labels = {"app.kubernetes.io/component": "operator", "app.kubernetes.io/part-of": "memkv"}
    assert operator["podSelector"]["matchLabels"] == labels
    assert doors(nodes) == {(7070, 7070): None, (9470, 9470): [operator], (9471, 9471): None}


def test_what_goes_out_is_left_alone() -> None:
    for spec in policies(networkPolicy={"from": [SEARCH]}).values():
        assert spec["policyTypes"] == ["Ingress"]
        assert "egress" not in spec


def test_where_only_some_clients_may_come_the_pools_own_nodes_may_too() -> None:
    made = policies(networkPolicy={"from": [SEARCH], "metricsFrom": [PROMETHEUS]})
    for name, port in (("metadata", 7443), ("nodes", 7070)):
        assert doors(made[f"{POOL}-{name}"])[port, port] == [SEARCH, OWN_NODES]
        assert doors(made[f"{POOL}-{name}"])[9471, 9471] == [PROMETHEUS]


def test_ports_are_those_of_the_spec_and_of_every_worker() -> None:
    group = SPEC["nodeGroups"][0]
    groups = [{**group, "workers": 3}, {**group, "name": "small", "workers": 2}]
    ports = {"data": 7170, "metadata": 7543, "admin": 9570, "metrics": 9571}
    made = policies(nodeGroups=groups, ports=ports)
    assert set(doors(made[f"{POOL}-nodes"])) == {(7170, 7172), (9570, 9570), (9571, 9571)}
    assert set(doors(made[f"{POOL}-metadata"])) == {(7543, 7543), (9571, 9571)}


@pytest.mark.parametrize("all_host", [False, True])
def test_pods_with_the_network_of_their_node_are_not_chosen(all_host: bool) -> None:
    group = SPEC["nodeGroups"][0]
    own = {**group, "name": "own", "network": HOST, "workers": 9}
    made = policies(nodeGroups=[own] if all_host else [own, group])
    assert set(made) == {f"{POOL}-metadata"} | ({f"{POOL}-nodes"} if not all_host else set())
    if not all_host:
        (chosen,) = made[f"{POOL}-nodes"]["podSelector"]["matchExpressions"]
        assert chosen["values"] == ["flash"]
        assert (7070, 7070) in doors(made[f"{POOL}-nodes"])


def test_a_pool_that_wants_no_policies_has_none_and_loses_those_it_had() -> None:
    assert policies(networkPolicy={"enabled": False}) == {}

    async def test(cluster: Cluster) -> None:
        await ready_pool(cluster, 1)
        async with cluster.operator():
            await cluster.until(cluster.is_ready)
            assert len(cluster.api.all_of("networkpolicies")) == 2
            nodes = cluster.api.all_of("networkpolicies")[1]["spec"]
            (operator,) = doors(nodes)[9470, 9470]
            where = operator["namespaceSelector"]["matchLabels"]
            assert where == {"kubernetes.io/metadata.name": NAMESPACE}  # the operator's, here
            await cluster.change_pool({"spec": {"networkPolicy": {"enabled": False}}})
            await cluster.until(lambda: not cluster.api.all_of("networkpolicies"))

    run_on_a_cluster(test)
