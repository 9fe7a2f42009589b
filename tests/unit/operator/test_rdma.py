"""RDMAReady and PayloadEncrypted follow from what nodes say now; nothing of it stays by itself."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memkv.client import options
from memkv.client.options import DEFAULT_POOL, ConnectOptions
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.conditions import MESSAGE_CHARS_MAX, Condition
from memkv_operator.api.names import CONFIG_MAPS
from memkv_operator.api.node import MemKVNode, read_memkv_node
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.nodes.facts import facts_of
from memkv_operator.plan.draining import Ownership
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.health import MapView, pool_conditions
from memkv_operator.plan.membership import Member
from memkv_operator.plan.nodes import node_status
from memkv_operator.plan.planner import events_of
from memkv_operator.plan.rdma import falling_back, payload_encrypted, rdma_of_node, rdma_ready
from memkv_operator.plan.rollout import Rolling
from memkv_operator.render.children import children_of
from memkv_proto import node_admin_pb2 as pb

WORKER = WorkerFacts(0, "0a" * 16, 1, "Ready", "h", 7070, 1 << 30, 0, 0, 0, "")
DOWN = "mlx5_0/1: it is DOWN: is the cable in, the interface up, the switch port on?"
SERVES = replace(WORKER, rdma_rails=("mlx5_0/1",))
FALLS = replace(WORKER, rdma_problem=DOWN)
RAIL = {"name": "rdma/a"}


def pool_of(*networks: dict[str, Any], **spec: Any) -> Pool:
    groups: list[Any] = [
        {
            "name": f"g{number}", "nodeSelector": {"g": str(number)}, "memory": {"size": "4Gi"},
            "storage": {"file": {"hostPath": "/data", "size": "1Gi"}}, "network": network,
        }
        for number, network in enumerate(networks)
    ]  # fmt: skip
    meta: JsonObject = {"name": "pool-a", "namespace": "ns", "uid": "0123456789ab"}
    return read_pool({"metadata": meta, "spec": {"nodeGroups": groups, **spec}})


def rdma(mode: str = "Preferred", **more: Any) -> dict[str, Any]:
    settings = {"mode": mode, "resources": [RAIL], **more}
    return {"mode": "HostNetwork", "payloadEncryption": "None", "rdma": settings}


TCP = {"mode": "HostNetwork", "payloadEncryption": "None", "rdma": {"mode": "Disabled"}}


def facts(*workers: WorkerFacts, wanted: bool = True) -> NodeFacts:
    ready = [worker for worker in workers if worker.phase == "Ready"]
    serves = bool(ready) and all(worker.rdma_rails for worker in ready)
    transports = frozenset({"tcp", "rdma"} if serves else {"tcp"})
    return NodeFacts("1", False, 0, "", workers, (), transports, wanted)


def member(
    said: NodeFacts | None = None,
    name: str = "n1",
    network: dict[str, Any] | None = None,
    *,
    problem: str = "",
    alive: bool = True,
) -> Member:
    group = pool_of(network or rdma()).spec.groups[0]
    node = KubeNode(name, {"g": "0"}, alive, False, {})
    pod = Pod(f"pod-{name}", "ns", "u", "pool-a", "node", "g0", name, "10.0.0.1", True, False, "t")
    return Member(name, group, node, None, pod, NodeSeen("u", said, problem))


def stated(*members: Member) -> Condition:
    found = rdma_ready(members)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("mode", "said", "holds", "reason"),
    [
        ("Preferred", facts(FALLS), False, "FallbackToTCP"),
        ("Required", facts(FALLS), False, "RDMAUnavailable"),
        ("Required", facts(SERVES), True, "AllNodesServeRDMA"),
        ("Preferred", facts(SERVES, replace(FALLS, position=1)), False, "FallbackToTCP"),
        ("Preferred", facts(SERVES, replace(FALLS, phase="Backoff")), True, "AllNodesServeRDMA"),
        ("Preferred", facts(replace(FALLS, phase="Starting")), False, "WaitingForNodes"),
        ("Preferred", None, False, "WaitingForNodes"),
    ],
)
def test_the_condition_follows_from_what_a_node_says(
    mode: str, said: NodeFacts | None, holds: bool, reason: str
) -> None:
    found = stated(member(said, network=rdma(mode)))
    assert (found.holds, found.reason) == (holds, reason)


def test_nothing_is_stated_of_rdma_that_nobody_wants() -> None:
    one = member(facts(WORKER), network=TCP)
    assert rdma_ready([one]) is None
    assert rdma_of_node(one) is None
    assert not falling_back([one])


def test_no_answer_is_left_over_from_the_one_before() -> None:
    """Every order of three answers ends in the same condition as the last answer alone."""
    answers = (facts(SERVES), facts(FALLS), None)
    for order in itertools.permutations(answers):
        *_, last = (stated(member(said)) for said in order)
        assert last == stated(member(order[-1]))


def test_the_message_has_the_nodes_own_reason_and_the_command() -> None:
    message = stated(member(facts(FALLS)), member(facts(SERVES), "n2")).message
    assert message.startswith("1 of 2 nodes serve over TCP")
    assert f"n1: {DOWN}" in message
    assert "kubectl -n ns exec pod-n1 -- memkv doctor --dir /var/lib/memkv" in message
    assert "Required" not in message
    required = stated(member(facts(FALLS), network=rdma("Required"))).message
    assert "Preferred counts TCP as ready" in required


def test_many_long_reasons_leave_room_for_the_command() -> None:
    worst = replace(WORKER, rdma_problem="; ".join(f"mlx5_{n}/1: {'x' * 90}" for n in range(16)))
    many = [member(facts(worst), f"node-{n:03}.{'y' * 60}", rdma("Required")) for n in range(500)]
    message = stated(*many).message
    assert len(message) <= MESSAGE_CHARS_MAX
    assert "memkv doctor" in message
    assert "500 of 500 nodes" in message
    assert "node-000" in message


def test_workers_that_say_the_same_are_quoted_once() -> None:
    message = stated(member(facts(FALLS, replace(FALLS, position=1)))).message
    assert message.count(DOWN) == 1


def test_a_pod_without_rdma_is_told_from_a_device_that_fails() -> None:
    message = stated(member(facts(WORKER, wanted=False))).message
    assert "n1: RDMA is off in its pod: it is of an earlier template or version" in message
    assert "n1: it gives no reason" in stated(member(facts(WORKER))).message


def test_a_rail_that_is_not_used_is_named_where_another_serves() -> None:
    half = replace(SERVES, rdma_problem="mlx5_1/1: it is DOWN")
    found = stated(member(facts(half)))
    assert found.holds
    assert "n1 does not use mlx5_1/1: it is DOWN" in found.message
    told = rdma_of_node(member(facts(half)))
    assert told is not None
    assert told.holds
    assert "not used: mlx5_1/1: it is DOWN" in told.message


@pytest.mark.parametrize("said", [facts(SERVES), facts(FALLS)])
def test_a_poll_that_fails_changes_nothing_while_the_pod_is_ready(said: NodeFacts) -> None:
    assert stated(member(said, problem="timeout")) == stated(member(said))


@pytest.mark.parametrize("said", [facts(SERVES), facts(FALLS)])
def test_of_a_dead_node_nothing_is_said(said: NodeFacts) -> None:
    dead = member(said, "dead", problem="timeout", alive=False)
    assert stated(dead).reason == "WaitingForNodes"
    assert not falling_back([dead])
    beside = stated(dead, member(facts(SERVES)))
    assert beside.holds
    assert beside.message == "1 of 2 nodes serve it; the others do not answer"
    told = rdma_of_node(dead)
    assert told is not None
    assert told.reason == "NotServing"


def test_only_required_rdma_keeps_a_pool_from_being_ready() -> None:
    for mode, reason in (("Required", "RDMAUnavailable"), ("Preferred", "FallbackToTCP")):
        one = member(facts(FALLS), network=rdma(mode))
        every = pool_conditions([], [one], MapView(), None, Rolling(), False)
        assert [c.reason for c in every if c.type == "RDMAReady"] == [reason]
        # What else fails comes first: map and metadata are not there in this test.
        assert [c.reason for c in every if c.type == "Ready"] == ["ShardMapNotPublished"]


def test_a_node_shows_transports_rails_and_why_not() -> None:
    down = "mlx5_1/1: it is DOWN"
    answer = pb.GetFactsResponse(
        node_name="n1", pool="ns/pool-a", weight=1.0, transports=["tcp", "rdma"], rdma_wanted=True,
        workers=[
            pb.WorkerFacts(
                uuid=b"w" * 16, phase=pb.WORKER_PHASE_READY, host="h", port=7070,
                rdma_rails=["mlx5_0/1"], rdma_problem=down,
            )
        ],
    )  # fmt: skip
    one = member(facts_of(answer, "ns/pool-a", "n1"))
    status: Any = node_status(replace(one, memkv_node=memkv_node()), NOBODY, None, "now")
    [worker] = status["workers"]
    assert status["transports"] == ["rdma", "tcp"]
    assert (worker["rdmaRails"], worker["rdmaProblem"]) == (["mlx5_0/1"], down)
    [condition] = [c for c in status["conditions"] if c["type"] == "RDMAReady"]
    assert (condition["status"], condition["reason"]) == ("True", "ServesRDMA")


def test_a_node_that_falls_back_says_so_with_the_command() -> None:
    one = replace(member(facts(FALLS)), memkv_node=memkv_node())
    status: Any = node_status(one, NOBODY, None, "now")
    [condition] = [c for c in status["conditions"] if c["type"] == "RDMAReady"]
    assert (condition["status"], condition["reason"]) == ("False", "FallbackToTCP")
    assert DOWN in condition["message"]
    assert "memkv doctor" in condition["message"]
    assert "rdmaRails" not in status["workers"][0]


NOBODY = Ownership(frozenset(), frozenset(), frozenset())


def memkv_node() -> MemKVNode:
    return read_memkv_node({"metadata": {"name": "m", "namespace": "ns", "uid": "m"}, "spec": {}})


# --- encryption ----------------------------------------------------------------------------------


def test_what_is_not_encrypted_is_said_where_encryption_is_asked_for() -> None:
    asked = {**rdma(), "payloadEncryption": "TLS"}
    found = payload_encrypted(pool_of({**TCP, "payloadEncryption": "TLS"}, asked))
    assert found is not None
    assert (found.holds, found.reason) == (False, "RDMAIsNotEncrypted")
    assert "(nodeGroups g1) is not encrypted" in found.message
    [event] = events_of({}, [found])
    assert event.warning
    assert not events_of({found.type: found}, [found])


@pytest.mark.parametrize(
    "pool",
    [
        pool_of(rdma()),
        pool_of({**TCP, "payloadEncryption": "TLS"}),
        pool_of({**rdma(), "payloadEncryption": "TLS"}, metadata={"tls": {"mode": "Disabled"}}),
    ],
    ids=["none is asked for", "there is no RDMA", "there are no certificates"],
)
def test_nothing_is_said_of_encryption_that_is_as_asked(pool: Pool) -> None:
    assert payload_encrypted(pool) is None


# --- what clients are told -----------------------------------------------------------------------


def connection(pool: Pool) -> dict[str, Any]:
    made: list[Any] = [
        child.manifest["data"]
        for child in children_of(pool, "memkv:1", authority="CA")
        if child.resource is CONFIG_MAPS
    ]
    [text] = [data["connection.json"] for data in made if "connection.json" in data]
    document: dict[str, Any] = json.loads(text)
    return document


FULL: dict[str, Any] = {"fabric": "RoCEv2", "gidIndex": 3, "trafficClass": 106}
TOLD = {"rdma_fabric": "rocev2", "rdma_gid_index": 3, "rdma_traffic_class": 106}


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        ([TCP], {"rdma": "off"}),
        ([rdma()], {"rdma": "on"}),
        ([rdma(), TCP], {"rdma": "on"}),
        ([rdma(**FULL)], {"rdma": "on", **TOLD}),
        ([TCP, rdma(**FULL)], {"rdma": "on", **TOLD}),
        ([rdma(**FULL), rdma()], {"rdma": "on"}),
        (
            [rdma(**FULL), rdma(trafficClass=106)],
            {"rdma": "on", "rdma_traffic_class": 106},
        ),
    ],
)
def test_clients_are_told_what_all_groups_with_rdma_say(
    networks: list[dict[str, Any]], told: dict[str, Any]
) -> None:
    found = connection(pool_of(*networks))
    assert {key: value for key, value in found.items() if key.startswith("rdma")} == told


def test_a_client_reads_what_the_operator_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MEMKV_ENDPOINT", "MEMKV_RDMA", "MEMKV_RDMA_GID_INDEX", "MEMKV_RDMA_FABRIC"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "connection.json"
    monkeypatch.setattr(options, "CONNECTION_FILE", path)
    plain: dict[str, Any] = {"metadata": {"tls": {"mode": "Disabled"}, "auth": {"mode": "None"}}}
    path.write_text(json.dumps(connection(pool_of(rdma(**FULL), **plain))))
    found = ConnectOptions.resolve(None, DEFAULT_POOL, "default", 1000, None)
    assert found.wants_rdma
    assert found.rdma_options.gid_index == 3
    assert found.rdma_options.traffic_class == 106
    assert found.rdma_options.fabric.value == "rocev2"


def test_nodes_of_each_group_are_told_their_own() -> None:
    made: list[Any] = [c.manifest for c in children_of(pool_of(TCP, rdma(**FULL)), "memkv:1")]
    arguments = [
        manifest["spec"]["template"]["spec"]["containers"][0]["args"]
        for manifest in made
        if manifest["kind"] == "DaemonSet"
    ]
    told = [[one for one in each if one.startswith("--rdma")] for each in arguments]
    assert told == [
        ["--rdma=off"],
        [
            "--rdma=on", "--rdma-fabric=rocev2", "--rdma-gid-index=3", "--rdma-traffic-class=106",
        ],
    ]  # fmt: skip
