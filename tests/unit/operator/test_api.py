"""Objects of Kubernetes as values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.metadata.kubernetes.json_values import FieldInvalid, JsonObject, Reader
from memkv_operator.api.cluster import read_kube_node, read_pod
from memkv_operator.api.conditions import Condition, condition, merged, read_conditions
from memkv_operator.api.names import DAEMON_SETS, NODES, POOLS, memkv_node_name
from memkv_operator.api.pool import read_pool
from memkv_operator.api.quantity import bytes_of, format_bytes, format_bytes_roughly


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64Gi", 64 << 30), ("1k", 1000), ("1.5Ki", 1536), (7, 7), ("2e3", 2000), ("500m", 1),
        ("1E", 10**18), (".5Mi", 1 << 19), ("100", 100),
    ],
)  # fmt: skip
def test_quantities(text: int | str, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "1 Gi", "Gi", "1GiB", "--1", "1ui", "1mi"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(FieldInvalid, match=r"memory\.size"):
        bytes_of(text, "memory.size")


@given(st.integers(0, 1 << 62))
def test_formatted_bytes_are_exact(count: int) -> None:
    assert bytes_of(format_bytes(count)) == count


def test_rough_bytes_are_for_people() -> None:
    assert format_bytes_roughly(1536 << 20) == "1.5Gi"
    assert format_bytes_roughly(3 << 40) == "3Ti"
    assert format_bytes_roughly(12) == "12"


def test_paths_of_objects() -> None:
    pool = "/apis/memkv.io/v1alpha1/namespaces/n/memkvpools/p/status"
    assert POOLS.path("n", "p", "status") == pool
    assert DAEMON_SETS.path() == "/apis/apps/v1/daemonsets"
    assert NODES.path("ignored", "a") == "/api/v1/nodes/a"


def test_names_of_nodes_are_short_and_their_own() -> None:
    names = {memkv_node_name("p", f"node-{n}.{'x' * 200}") for n in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 10 for name in names)


def test_time_of_a_condition_changes_with_its_status_only() -> None:
    first = merged({}, [condition("Ready", False, "A", "a")], 1, "t1")
    before = read_conditions(Reader({"conditions": first}))
    second = merged(before, [condition("Ready", False, "B", "b")], 2, "t2")
    before = read_conditions(Reader({"conditions": second}))
    assert before["Ready"] == Condition("Ready", "False", "B", "b", 2, "t1")
    third = read_conditions(
        Reader({"conditions": merged(before, [condition("Ready", True, "C")], 2, "t3")})
    )
    assert third["Ready"].last_transition == "t3"
    assert merged(before, [], 2, "t4") == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"nodeGroups": {}}, "nodeGroups"),
        ({"nodeGroups": [{"name": 1}]}, "nodeGroups[0].network"),
        ({"network": {"rdma": {"resources": ["x"]}}}, "rdma.resources[0]"),
        ({"paused": "yes"}, "paused"),
        ({"ports": {"data": True}}, "ports.data"),
        ({"podTemplate": {"extraArgs": [1]}}, "extraArgs"),
        ({"podTemplate": {"labels": {"a": 1}}}, "labels"),
        (
            {
                "network": {},
                "nodeGroups": [
                    {"memory": {"size": 1}, "resources": {"limits": {"memory": "banana"}}}
                ],
            },
            "nodeGroups[0].resources.limits.memory",
        ),
    ],
)
def test_a_spec_of_another_version_is_refused_by_field(spec: JsonObject, field: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        read_pool({"metadata": {"name": "p"}, "spec": spec})
    assert field in str(caught.value)


@pytest.mark.parametrize(
    "manifest",
    [
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}},
        {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}},
        {"metadata": {"labels": {"nvidia.com/ofed-driver-upgrade-state": "drain-required"}}},
    ],
)
def test_nodes_that_somebody_empties_are_leaving(manifest: JsonObject) -> None:
    assert read_kube_node(manifest).leaving
    assert not read_kube_node({"metadata": {"name": "a"}}).leaving


def test_a_pod_says_what_keeps_it() -> None:
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    status: JsonObject = {"containerStatuses": [{"state": {"waiting": waiting}}]}
    assert read_pod({"status": status}).trouble == "ErrImagePull: no such image"
    unschedulable = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room",
    }  # fmt: skip
    assert read_pod({"status": {"conditions": [unschedulable]}}).trouble == (
        "Unschedulable: no room"
    )
    starting: JsonObject = {
        "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]
    }
    assert read_pod({"status": starting}).trouble == ""
