"""The end of a pool that wipes its drives: bounded, whoever is dead."""

from typing import Any

import pytest

from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.names import COMPONENT_NODE, FINALIZER
from memkv_operator.api.node import read_memkv_node
from memkv_operator.api.pool import read_pool
from memkv_operator.plan.actions import DeleteObject, SetFinalizer, WritePoolStatus
from memkv_operator.plan.deletion import SILENT_S, STUCK_S, Ending, deletion_actions
from memkv_operator.plan.disks import Content, WipeSeen
from memkv_operator.plan.drives import Drive, DriveState
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.wiping import Quiet, wipe_orders
from memkv_operator.testing.cluster import SPEC

AT = "2026-01-01T00:0{}:{:02}Z"


def after(seconds: int) -> str:
    return AT.format(seconds // 60, seconds % 60)


def ending(policy: str = "Wipe", **changes: Any) -> Ending:
    meta: Any = {
        "name": "p", "namespace": "ns", "uid": "u", "finalizers": [FINALIZER],
        "deletionTimestamp": after(0),
    }  # fmt: skip
    group: Any = {**SPEC["nodeGroups"][0], "storage": {"deviceSelector": {}}}
    spec: Any = {**SPEC, "nodeGroups": [group], "deletionPolicy": {"drives": policy}}
    content = changes.get("content", Content.MEMKV)
    drive = Drive(
        "d", "/dev/d", 100, "f", DriveState.READY, "", 0, "0a", content,
        recorded=True,
    )  # fmt: skip
    problem = changes.get("problem", "")
    node = read_memkv_node(
        {
            "metadata": {"name": "p-n1", "namespace": "ns"},
            "spec": {"nodeName": "n1"},
            "status": {"drives": [{"id": "d", "position": 0}]},
        }
    )
    pod = Pod("pod", "ns", "x", "p", COMPONENT_NODE, "flash", "n1", "", True, True, "")
    daemon_set: Any = {
        "metadata": {"name": "p-flash", "uid": "ds", "ownerReferences": [{"uid": "u"}]}
    }
    nodes = {"n1": KubeNode("n1", {}, changes.get("ready", True), False, {})}
    return Ending(
        read_pool({"metadata": meta, "spec": spec}),
        nodes if changes.get("there", True) else {},
        [node],
        [pod] if changes.get("pod") else [],
        {("DaemonSet", "p-flash"): daemon_set},
        {
            "n1": NodeDrives(
                "p-n1", "ns", (drive,), agent_problem=problem, wipes=changes.get("wipes", ())
            )
        },
        {"n1": Quiet(changes.get("silent_s", 0), changes.get("stuck_s", 0))},
    )


def test_pods_end_before_drives_are_wiped_and_the_pool_says_what_it_waits_for() -> None:
    actions, events = deletion_actions(ending(pod=True), after(1))
    assert actions[0] == DeleteObject("DaemonSet", "p-flash", "ds")
    assert isinstance(actions[1], WritePoolStatus)
    status: Any = actions[1].status
    (condition,) = status["conditions"]
    assert (condition["type"], condition["reason"]) == ("DeletionBlocked", "WipingDrives")
    assert "n1" in condition["message"]
    assert not events


def test_a_drive_that_looks_blank_is_waited_for_until_its_agent_has_wiped_it() -> None:
    begun = ending(content=Content.BLANK, wipes=(WipeSeen("d:100:sha256-0", False, 57),))
    actions, events = deletion_actions(begun, after(1))
    assert SetFinalizer(False) not in actions
    assert not events
    assert isinstance(actions[-1], WritePoolStatus)
    status: Any = actions[-1].status
    assert "50% done" in status["conditions"][0]["message"]
    assert wipe_orders(begun.drives["n1"]) == ["d:100:sha256-0"]
    done = ending(content=Content.BLANK, wipes=(WipeSeen("d:100:sha256-0", True),))
    assert deletion_actions(done, after(1)) == ((SetFinalizer(False),), ())
    assert wipe_orders(done.drives["n1"]) == ["d:100:sha256-0"]


def test_a_wipe_that_gets_on_may_take_hours() -> None:
    busy = ending(content=Content.BLANK, wipes=(WipeSeen("d:100:sha256-0", False, 57),))
    actions, events = deletion_actions(busy, "2026-01-01T09:00:00Z")
    assert SetFinalizer(False) not in actions
    assert not events


def test_a_pool_goes_when_its_drives_are_blank() -> None:
    assert deletion_actions(ending(content=Content.BLANK), after(1)) == ((SetFinalizer(False),), ())
    assert deletion_actions(ending(policy="Retain"), after(0)) == ((SetFinalizer(False),), ())


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"there": False}, 0),
        ({"ready": False, "pod": True}, SILENT_S),
        ({"problem": "nobody answers", "pod": True}, SILENT_S),
        ({"pod": True}, STUCK_S),
        ({}, STUCK_S),
    ],
    ids=["node gone", "node silent", "agent silent", "pod that does not end", "wipe that fails"],
)
def test_nobody_is_waited_for_longer_than_said(changes: dict[str, Any], seconds: int) -> None:
    which = "silent_s" if seconds == SILENT_S else "stuck_s"
    if seconds:
        actions, events = deletion_actions(ending(**{**changes, which: seconds - 1}), after(0))
        assert SetFinalizer(False) not in actions
        assert not events
    actions, (event,) = deletion_actions(ending(**{**changes, which: seconds}), after(0))
    assert actions == (SetFinalizer(False),)
    assert event.reason == "DrivesNotWiped"
    assert "n1" in event.message
