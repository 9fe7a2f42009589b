"""Conditions and Events say what is wrong in whole sentences, and what is true of a pool now."""

from dataclasses import replace
from typing import Any

import pytest

from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.shardmap import WorkerState
from memkv_operator.api.cluster import Pod, Rollout, read_rollout
from memkv_operator.api.conditions import Condition, joined, shortened
from memkv_operator.api.meta import ObjectMeta
from memkv_operator.api.names import COMPONENT_METADATA
from memkv_operator.plan.health import MapView, pool_conditions
from memkv_operator.plan.ownership import unserved_slots
from memkv_operator.plan.preflight import Finding
from memkv_operator.plan.rollout import Rolling
from memkv_operator.run.events import NOTE_BYTES_MAX, note_of
from memkv_operator.testing.pool_model import PoolModel

TOO_LONG = [f"finding {number}: {'word ' * 60}end" for number in range(8)]


def conditions(
    findings: list[Finding] | None = None,
    metadata: Rollout | None = None,
    pods: list[Pod] | None = None,
) -> dict[str, Condition]:
    stated = pool_conditions(findings or [], [], MapView(), metadata, Rolling(), False, pods or [])
    return {one.type: one for one in stated}


def metadata_pod(trouble: str, name: str = "p-metadata-x", created_s: int = 1) -> Pod:
    return Pod(
        name,
        "ns",
        name,
        "p",
        COMPONENT_METADATA,
        "",
        "n1",
        "",
        False,
        False,
        "",
        trouble,
        created_s,
    )


# --- messages ------------------------------------------------------------------------------------


def test_a_list_that_is_too_long_is_cut_between_its_parts() -> None:
    message = joined(TOO_LONG)
    assert len(message) <= 1024
    assert message.endswith("end; and 5 more")
    assert message == f"{'; '.join(TOO_LONG[:3])}; and 5 more"
    assert joined(["one", "two"]) == "one; two"
    assert joined([]) == ""


def test_one_part_that_is_too_long_is_cut_after_a_word() -> None:
    message = joined(["word " * 400, "other"])
    assert len(message) <= 1024
    assert message.endswith("word ...; and 1 more")
    assert shortened("a" * 2000) == "a" * 1020 + " ..."
    assert shortened("whole") == "whole"


@pytest.mark.parametrize("size", range(1000, 1060))
def test_no_message_is_longer_than_it_may_be(size: int) -> None:
    words = ("abc de " * 300)[:size]
    for message in (shortened(words), joined([words]), joined([words, words])):
        assert len(message) <= 1024


def test_config_valid_counts_the_findings_it_leaves_out() -> None:
    found = conditions([Finding("First", text, False) for text in TOO_LONG])["ConfigValid"]
    assert found.reason == "First"
    assert found.message.endswith("; and 5 more")


def test_events_end_where_a_sentence_does_and_name_the_whole() -> None:
    pool = PoolModel(64, 5).pool
    message = "; ".join(TOO_LONG)
    note = note_of(pool, message)
    assert len(note.encode()) <= NOTE_BYTES_MAX
    assert note.endswith("end ... (whole: kubectl describe mkvp -n inference pool-a)")
    assert note_of(pool, "short; and whole") == "short; and whole"
    words = note_of(pool, "wörter " * 400)
    assert len(words.encode()) <= NOTE_BYTES_MAX
    assert "wörter ... (whole: " in words


# --- nodes of a pool that cannot be changed ------------------------------------------------------


def test_a_blocked_pool_whose_nodes_serve_says_that_they_serve() -> None:
    """It said that it had no nodes."""
    model = PoolModel(64, 5)
    model.join("a")
    model.pass_time(10)
    [group] = model.spec["nodeGroups"]
    model.spec["nodeGroups"] = [group, {**group, "name": "twin"}]
    model.pass_time(2)
    assert model.condition("ConfigValid")[1].startswith("NodeInTwoGroups")
    assert model.condition("NodesReady") == ("True", "AllReady: 1 nodes serve")
    model.die("a")
    model.pass_time(2)
    assert model.condition("NodesReady")[0] == "False"
    assert "a: kubelet does not report it ready" in model.condition("NodesReady")[1]


# --- metadata pods -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "reason", "says"),
    [
        ("ImagePullBackOff: not found", "ImagePullFailed", "check spec.image"),
        ("CrashLoopBackOff: Error, exit 2: no space", "CrashLoop", "kubectl logs --previous -n ns"),
        ("Unschedulable: 3 nodes had taints", "Unschedulable", "3 nodes had taints"),
    ],
)
def test_metadata_pods_that_do_not_run_are_explained(trouble: str, reason: str, says: str) -> None:
    found = conditions(metadata=Rollout(2, 0, 2, True), pods=[metadata_pod(trouble)])
    stated = found["MetadataAvailable"]
    assert (stated.status, stated.reason) == ("False", reason)
    assert "no metadata replica is ready; p-metadata-x: " in stated.message
    assert says in stated.message


def test_the_newest_of_them_is_explained_also_while_an_older_one_serves() -> None:
    pods = [
        metadata_pod("CrashLoopBackOff: old", "old", 1),
        metadata_pod("ErrImagePull: new", "new", 2),
        replace(metadata_pod("ErrImagePull: gone", "gone", 3), deleting=True),
        metadata_pod("", "well", 4),
    ]
    stated = conditions(metadata=Rollout(2, 1, 2, True), pods=pods)["MetadataAvailable"]
    assert (stated.status, stated.reason) == ("True", "Available")
    assert stated.message.startswith("1 of 2 replicas are ready; new: ErrImagePull: new")


def test_metadata_pods_that_cannot_be_made_are_explained() -> None:
    meta: JsonObject = {"name": "p-metadata", "namespace": "ns"}
    failure: Any = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    manifest: JsonObject = {"metadata": meta, "status": {"conditions": [failure]}}
    rollout = read_rollout(ObjectMeta("p-metadata", "ns", "u"), manifest)
    stated = conditions(metadata=rollout)["MetadataAvailable"]
    assert (stated.status, stated.reason) == ("False", "PodCreateFailed")
    assert "exceeded quota: pods" in stated.message
    assert conditions()["MetadataAvailable"].reason == "NoReadyReplica"


# --- slots whose owner does not serve ------------------------------------------------------------


def test_slots_of_a_node_that_does_not_answer_are_not_served() -> None:
    model = PoolModel(64, 5)
    for name in ("a", "b", "c"):
        model.join(name)
    model.pass_time(40, finished=True)
    assert model.status["shardMap"]["unservedSlots"] == 0
    model.silent.add("a")  # kubelet says that it is well, so its slots stay
    model.pass_time(20, finished=True)
    assert model.status["shardMap"]["unservedSlots"] == model.owners["a"] > 0
    model.silent.discard("a")
    model.pass_time(5, finished=True)
    assert model.status["shardMap"]["unservedSlots"] == 0


def test_slots_of_a_worker_that_the_map_calls_lost_are_not_served() -> None:
    model = PoolModel(64, 5)
    model.join("a")
    model.pass_time(40)
    shard_map = model.shard_map
    assert shard_map is not None
    serving = {worker.uuid.hex() for worker in shard_map.workers}
    assert unserved_slots(shard_map, serving) == 0
    lost = tuple(replace(worker, state=WorkerState.LOST) for worker in shard_map.workers)
    assert unserved_slots(replace(shard_map, workers=lost), serving) == 64
