"""How often people are told, by statuses and by Events."""

import asyncio
from collections import Counter

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.plan.actions import Event, WriteNodeStatus, WritePoolStatus
from memkv_operator.plan.pace import (
    EVENT_PAUSE_MS,
    NODE_BURST,
    NODE_PAUSE_MS,
    POOL_BURST,
    POOL_PAUSE_MS,
    EventPace,
    StatusPace,
)
from memkv_operator.testing.cluster import Cluster, ready_pool
from memkv_operator.testing.faulty_api import FaultyApi


def status(ready: bool, **more: JsonValue) -> Manifest:
    condition: Manifest = {"type": "Ready", "status": str(ready), "reason": "Any"}
    return {"conditions": [condition], **more}


def test_a_node_that_flaps_is_written_some_times_at_once_and_then_now_and_then() -> None:
    pace = StatusPace()
    written, ready, there = [], False, status(False)
    for now_ms in range(0, 120_000, 500):
        ready = not ready
        paced = pace.paced([WriteNodeStatus("n", status(ready))], {}, {"n": there}, now_ms)
        assert bool(paced.actions) != bool(paced.wait_ms)
        assert paced.held == (set() if paced.actions else {"n"})
        if paced.actions:
            written.append(now_ms)
            there = status(ready)
        else:
            # Who comes back when told to is not sent away again.
            assert 0 < paced.wait_ms <= NODE_PAUSE_MS
    assert written[:NODE_BURST] == list(range(0, 500 * NODE_BURST, 500))
    assert len(written) <= NODE_BURST + 120_000 // NODE_PAUSE_MS


def test_what_was_held_back_is_written_when_it_was_said_to_be() -> None:
    pace = StatusPace()
    action, there = WriteNodeStatus("n", status(True)), {"n": status(False)}
    for _ in range(NODE_BURST):
        assert pace.paced([action], {}, there, 0).actions
    wait_ms = pace.paced([action], {}, there, 0).wait_ms
    assert not pace.paced([action], {}, there, wait_ms - 1).actions
    assert pace.paced([action], {}, there, wait_ms).actions


def test_what_the_operator_goes_by_is_written_at_once() -> None:
    pace, there = StatusPace(), {"n": status(True)}
    decisions: list[Manifest] = [
        status(True, restart={"phase": "Draining"}),
        status(True, drives=[{"id": "a"}]),
        status(True, podUID="u"),
        status(True, workers=[{"uuid": "w", "phase": "Ready"}]),
        {"conditions": [{"type": "Drained", "status": "True", "reason": "NothingLeft"}]},
    ]
    for decision in decisions * 10:
        assert pace.paced([WriteNodeStatus("n", decision)], {}, there, 0).actions
    assert not pace.paced([WriteNodeStatus("n", status(False))], {}, there, 0).actions
    for _ in range(POOL_BURST + 5):
        update = WritePoolStatus({"update": {"phase": "Canary"}})
        assert pace.paced([update], {}, there, 0).actions
    told = pace.paced([WritePoolStatus({"readyNodes": 1})], {}, there, 0)
    assert not told.actions
    assert told.wait_ms == POOL_PAUSE_MS
    assert told.held == {""}


def test_other_actions_pass_and_nodes_that_are_gone_are_forgotten() -> None:
    pace = StatusPace()
    write = WriteNodeStatus("n", status(False))
    for _ in range(NODE_BURST + 1):
        paced = pace.paced([write], {}, {"n": status(True)}, 0)
    assert not paced.actions
    assert pace.paced([], {}, {}, 0).actions == []
    assert pace.paced([write], {}, {"n": status(True)}, 0).actions


def test_events_of_one_reason_are_told_once_a_minute_and_the_newest_in_the_end() -> None:
    pace = EventPace()
    first, second = Event(True, "A", "one"), Event(True, "A", "two")
    other = Event(False, "B", "other")
    assert pace.paced([first, other], 0) == ([first, other], 0)
    assert pace.paced([first], 1000) == ([], EVENT_PAUSE_MS - 1000)
    assert pace.paced([second], 2000) == ([], EVENT_PAUSE_MS - 2000)
    assert pace.paced([], EVENT_PAUSE_MS - 1) == ([], 1)
    (told,), wait_ms = pace.paced([], EVENT_PAUSE_MS)
    assert told.message.startswith("two (the newest of 2")
    assert wait_ms == 0
    assert pace.paced([], 3 * EVENT_PAUSE_MS) == ([], 0)
    assert pace.paced([first], 3 * EVENT_PAUSE_MS) == ([first], 0)


def test_conditions_with_one_reason_have_events_of_their_own() -> None:
    """`AllReady` is said of nodes and of drives, a moment apart."""
    pace = EventPace()
    nodes = Event(False, "AllReady", "2 nodes are ready", about="NodesReady")
    drives = Event(False, "AllReady", "2 drives are ready", about="DrivesReady")
    assert pace.paced([nodes], 0) == ([nodes], 0)
    assert pace.paced([drives], 1000) == ([drives], 0)


def test_half_of_the_nodes_flap_for_two_minutes_and_writes_are_few_and_the_end_is_right() -> None:
    nodes, minutes, period_s = 6, 2, 1.0

    async def main() -> None:
        cluster = Cluster(LoopClock(), 0.25)
        way = FaultyApi(cluster.api)
        await ready_pool(cluster, nodes, disruption={"nodeLostGraceSeconds": 300})
        async with cluster.operator(api=way):
            await cluster.until(cluster.is_ready)
            loop = asyncio.get_running_loop()
            begun, before = loop.time(), len(way.requests)
            flapping = [f"n{number}" for number in range(1, nodes // 2 + 1)]

            def flap() -> bool:
                passed_s = loop.time() - begun
                up = int(passed_s / period_s) % 2 == 1
                for name in flapping:
                    cluster.kubelets.nodes.of(name).up = up
                return passed_s >= 60 * minutes

            await cluster.until(flap)
            writes = Counter(
                kind
                for request in way.requests[before:]
                for kind in ("memkvnodes", "memkvpools", "events")
                if not request.startswith("GET") and f"/{kind}" in request
            )
            per_node = NODE_BURST + 60_000 * minutes // NODE_PAUSE_MS
            assert writes["memkvnodes"] <= len(flapping) * per_node
            assert writes["memkvpools"] <= POOL_BURST + 60_000 * minutes // POOL_PAUSE_MS
            reasons = {event["reason"] for event in cluster.api.all_of("events")}
            assert writes["events"] <= len(reasons) * (minutes + 1)
            for name in flapping:
                cluster.kubelets.nodes.of(name).up = True
            ended = loop.time()
            await cluster.until(lambda: loop.time() - ended > 2 * NODE_PAUSE_MS / 1000)
            assert cluster.is_ready()
            for node in cluster.api.all_of("memkvnodes"):
                conditions = {one["type"]: one["status"] for one in node["status"]["conditions"]}
                assert conditions["Ready"] == "True"

    run_simulated(main())
