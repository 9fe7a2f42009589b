"""What follows from a node's drives: pods that are replaced, and what is said."""

from dataclasses import replace
from typing import Any

import pytest

from memkv.testing.clock import ManualClock
from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.node import read_memkv_node
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.disks import (
    AgentFacts,
    AgentSeen,
    AssignmentSeen,
    Content,
    Disk,
    WipeSeen,
)
from memkv_operator.plan.drive_desk import DriveDesk, DriveSnapshot
from memkv_operator.plan.drives import Drive, DriveState
from memkv_operator.plan.facts import NodeFacts, WorkerFacts
from memkv_operator.plan.membership import members_of
from memkv_operator.plan.node_drives import NodeDrives, drives_condition
from memkv_operator.plan.nodes import left_unwiped
from memkv_operator.plan.wiping import Quiet
from memkv_operator.run.wipe_watch import WipeWatch
from memkv_operator.testing.cluster import LABELS, SPEC

A, B, C = "0a" * 16, "0b" * 16, "0c" * 16
READY, DENIED = DriveState.READY, DriveState.DENIED
NODES = {"n1": KubeNode("n1", LABELS, True, False, {})}


def drive(uuid: str, state: DriveState = READY, position: int = 0) -> Drive:
    return Drive(
        f"d-{uuid[:2]}", "/dev/d", 100, "f", state, "", position, uuid, Content.MEMKV,
        recorded=state is READY,
    )  # fmt: skip


def facts(**phases: str) -> NodeFacts:
    uuids = {"a": A, "b": B, "c": C}
    workers = tuple(
        WorkerFacts(number, uuids[name], 1, phase, "h", 1, 1, 0, 1, 0, "")
        for number, (name, phase) in enumerate(phases.items())
    )
    return NodeFacts("1", False, 1, "", workers, ())


@pytest.mark.parametrize(
    ("drives", "seen", "outdated"),
    [
        ([drive(A)], facts(a="Ready"), False),
        ([drive(A), drive(B, position=1)], facts(a="Ready"), True),
        ([drive(A), drive(B, position=1)], facts(), False),
        ([drive(B), drive(A, DENIED, -1)], facts(a="Ready"), True),
        ([drive(A, DENIED, -1)], facts(a="Ready"), False),
        ([drive(B)], facts(a="Failed"), True),
        ([drive(B)], facts(a="Ready"), False),
        ([drive(A)], facts(a="Failed"), False),
    ],
    ids=[
        "as it should be", "one more", "nothing heard yet", "one that it may not have",
        "nothing in its place", "one that is gone", "drive seen before its worker", "worker failed",
    ],
)  # fmt: skip
def test_a_pod_is_outdated_when_another_would_have_other_drives(
    drives: list[Drive], seen: NodeFacts, outdated: bool
) -> None:
    known = NodeDrives("p-n1", "ns", tuple(drives))
    assert known.outdated(seen) is outdated
    for unsure in ({"agent_problem": "silent"}, {"handing_problem": "busy"}, {"rows": ()}):
        assert not replace(known, **unsure).outdated(seen)


def pool(**changes: Any) -> Pool:
    group: Any = {**SPEC["nodeGroups"][0], "storage": {"deviceSelector": {}}}
    meta: Any = {"name": "p", "namespace": "ns", "uid": "u"}
    return read_pool({"metadata": meta, "spec": {**SPEC, "nodeGroups": [group], **changes}})


@pytest.mark.parametrize("problem", ["d is missing", ""])
def test_drives_that_are_not_handed_over_are_said_with_the_reason(problem: str) -> None:
    node = read_memkv_node(
        {
            "metadata": {"name": "p-n1", "namespace": "ns"},
            "spec": {"nodeName": "n1"},
            "status": {"drives": [{"id": "d", "position": 0, "workerUUID": A}]},
        }
    )
    disk = Disk("d", "/dev/d", 1, "d:1:sha256-0", content=Content.MEMKV, worker_uuid=A)
    told = AssignmentSeen("u", "drives.memkv.io/flash-u", healthy=False, problem=problem)
    seen = AgentSeen("uid", AgentFacts("1", 1, (disk,), (told,)))
    desk = DriveDesk(DriveSnapshot([pool()], NODES, {"ns/p": [node]}, {"n1": seen}))
    found = drives_condition(desk.of_pool(pool())["n1"])
    assert (found.holds, found.reason) == (False, "DriveNotHanded")
    assert found.message == (problem or "kubelet has not taken the drives yet")


def test_a_node_that_leaves_a_pool_with_its_blocks_is_said() -> None:
    node = read_memkv_node(
        {
            "metadata": {"name": "p-n1", "namespace": "ns"},
            "spec": {"nodeName": "n1"},
            "status": {"drives": [{"id": "d", "path": "/dev/disk/by-id/d", "position": 0}]},
        }
    )
    policy = {"drives": "Wipe", "confirmation": "yes-really-wipe-drives"}
    wiping, keeping = pool(deletionPolicy=policy), pool()
    (event,) = left_unwiped(wiping, members_of(wiping, {}, [node], [], {}), frozenset())
    assert event.reason == "DrivesNotWiped"
    assert "n1" in event.message
    assert "/dev/disk/by-id/d" in event.message
    assert not left_unwiped(keeping, members_of(keeping, {}, [node], [], {}), frozenset())
    assert not left_unwiped(wiping, members_of(wiping, NODES, [node], [], {}), frozenset())


def test_silence_counts_from_the_first_look_and_standstill_from_the_last_step() -> None:
    clock = ManualClock()
    watch = WipeWatch(clock)
    silent = NodeDrives("p-n1", "ns", agent_problem="nobody answers")

    def wiping(wiped_bytes: int) -> NodeDrives:
        wipe = WipeSeen("d-0a:100:sha256-0", False, wiped_bytes)
        return NodeDrives("p-n1", "ns", (drive(A),), wipes=(wipe,))

    def after(seconds: int, found: NodeDrives) -> Quiet:
        clock.advance_ms(1000 * seconds)
        return watch.look(pool(), {"n1": found}, NODES)["n1"]

    assert after(3600, silent) == Quiet(0, 0)
    assert after(20, silent) == Quiet(20, 20)
    assert after(1, wiping(1)) == Quiet(0, 0)
    assert after(200, wiping(1)) == Quiet(0, 200)
    assert after(10, silent) == Quiet(10, 210)
    assert after(1, wiping(1)) == Quiet(0, 211)  # to come and go is no progress
    assert after(1, wiping(2)) == Quiet(0, 0)
    watch.forget("ns/p")
    assert after(100, silent) == Quiet(0, 0)
