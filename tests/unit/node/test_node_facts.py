"""What a node says of itself, and what it believes of a NodeSpec."""

from dataclasses import replace
from pathlib import Path

import pytest

from memkv.errors import ConfigError, ProtocolError
from memkv.metadata.facts import reports_of
from memkv.node.admin import SpecKeeper
from memkv.node.children import restart_pause_ms
from memkv.node.facts import NodeView, Phase, WorkerView, facts_of
from memkv.node.messages import Report, Sample
from memkv.node.metrics import NodeCollector, families
from memkv.node.node_config import DriveConfig, NodeConfig, RdmaConfig, RdmaMode
from memkv.node.samples import server_samples
from memkv.node.statistics import ConnectionCounts, WorkerStatistics
from memkv.shardmap import WorkerState
from memkv.status import Status
from memkv.wire.opcodes import Opcode
from memkv_proto import node_admin_pb2 as pb

REPORT = Report("0a" * 16, 3, 7070, 1 << 30, 5, "0b" * 16, 4, ((1, 2),))


def config(**changes: object) -> NodeConfig:
    settings: dict[str, object] = {
        "name": "n1",
        "pool": "p/q",
        "state_dir": Path("state"),
        "drives": (DriveConfig(Path("drive"), 1 << 30),),
    }
    return NodeConfig(**{**settings, **changes})  # type: ignore[arg-type]  # of the right types


def view(*workers: WorkerView, state: "pb.NodeState.ValueType" = pb.NODE_STATE_ACTIVE) -> NodeView:
    return NodeView(workers, state, 7, "r7", True, True)


READY = WorkerView(0, Phase.READY, REPORT, 42, 1)


def test_facts_become_the_publishers_report() -> None:
    facts = facts_of(config(weight=2.0), view(READY), "1.0")
    [report] = reports_of(facts, "p/q")
    assert report.ready
    assert report.worker.uuid == b"\x0a" * 16
    assert (report.worker.host, report.worker.port) == ("127.0.0.1", 7070)
    assert report.worker.weight == 2.0
    assert report.worker.failure_domain == "n1"
    assert report.worker.state is WorkerState.ACTIVE
    assert (report.lineage, report.applied_epoch) == (b"\x0b" * 16, 4)
    assert report.finished == {(1, 2)}


@pytest.mark.parametrize("state", ["", "healthy", "suspect", "faulted"])
def test_a_faulted_drive_is_told_and_its_slots_are_given_away(state: str) -> None:
    """The worker's others on the node are not touched, and it goes on answering."""
    other = replace(READY, position=1, report=replace(REPORT, uuid="0c" * 16))
    sick = replace(READY, report=replace(REPORT, drive_state=state, drive_problem="writes fail"))
    facts = facts_of(config(), view(sick, other), "1.0")
    report, second = reports_of(facts, "p/q")
    faulted = state == "faulted"
    assert report.worker.state is (WorkerState.DRAINING if faulted else WorkerState.ACTIVE)
    assert report.ready
    assert second.worker.state is WorkerState.ACTIVE
    assert ("its drive is faulted: writes fail." in facts.workers[0].message) is faulted
    assert facts.workers[0].drive_problem == ("writes fail" if state else "")
    assert pb.DriveState.Name(facts.workers[0].drive_state) == (
        f"DRIVE_STATE_{state.upper() or 'UNSPECIFIED'}"
    )


def test_facts_name_the_transports_that_are_served() -> None:
    assert list(facts_of(config(), view(READY), "1.0").transports) == ["tcp"]
    local = facts_of(config(local_dir=Path("run")), view(READY), "1.0")
    assert list(local.transports) == ["tcp", "local"]


def test_facts_say_which_rails_serve_and_what_keeps_others() -> None:
    down = "mlx5_1/1: it is DOWN"
    both = replace(READY, report=replace(REPORT, rdma_rails=("mlx5_0/1",), rdma_problem=down))
    facts = facts_of(config(), view(both), "1.0")
    assert list(facts.transports) == ["tcp", "rdma"]
    assert list(facts.workers[0].rdma_rails) == ["mlx5_0/1"]
    assert facts.workers[0].rdma_problem == down
    none = replace(READY, position=1, report=replace(REPORT, rdma_problem=down))
    assert list(facts_of(config(), view(both, none), "1.0").transports) == ["tcp"]


def test_rails_of_a_worker_that_ended_are_not_told() -> None:
    served = replace(REPORT, rdma_rails=("mlx5_0/1",))
    facts = facts_of(config(), view(WorkerView(0, Phase.BACKOFF, served)), "1.0")
    assert list(facts.transports) == ["tcp"]
    assert not facts.workers[0].rdma_rails


@pytest.mark.parametrize("mode", RdmaMode)
def test_facts_say_whether_rdma_is_wanted(mode: RdmaMode) -> None:
    made = config(rdma=RdmaConfig(mode))
    assert facts_of(made, view(READY), "1.0").rdma_wanted is (mode is not RdmaMode.OFF)


def test_facts_name_the_keys_of_tickets_that_are_taken() -> None:
    taking = replace(view(READY), ticket_key_ids=("0a0b0c0d",))
    assert list(facts_of(config(), taking, "1.0").ticket_key_ids) == ["0a0b0c0d"]


def test_memory_of_less_than_a_huge_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one huge page of 1Gi"):
        config(memory_bytes=1 << 20, huge_page_bytes=1 << 30)
    whole = config(memory_bytes=1 << 30, huge_page_bytes=1 << 30)
    assert facts_of(whole, view(READY), "1.0").huge_page_bytes == 1 << 30


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.READY])
def test_worker_that_does_not_serve_keeps_its_identity(phase: Phase) -> None:
    facts = facts_of(config(), view(WorkerView(0, phase, REPORT)), "1.0")
    [report] = reports_of(facts, "p/q")
    assert not report.ready
    assert report.worker.uuid == b"\x0a" * 16


def test_worker_without_identity_is_not_reported() -> None:
    assert reports_of(facts_of(config(), view(WorkerView(0, Phase.STARTING)), "1"), "p/q") == []


def test_draining_node_reports_draining_workers() -> None:
    facts = facts_of(config(), view(READY, state=pb.NODE_STATE_DRAINING), "1")
    assert reports_of(facts, "p/q")[0].worker.state is WorkerState.DRAINING


def test_node_of_another_pool_and_nonsense_are_refused() -> None:
    facts = facts_of(config(), view(READY), "1")
    with pytest.raises(ProtocolError, match="check the list"):
        reports_of(facts, "p/other")
    facts.workers[0].uuid = b"short"
    with pytest.raises(ProtocolError, match="5 bytes"):
        reports_of(facts, "p/q")


def test_readiness_names_what_is_missing() -> None:
    assert view(READY).readiness(needs_map=True) == ""
    failed = WorkerView(0, Phase.FAILED, message="no such drive")
    assert view(failed).readiness(needs_map=False) == "worker 0 is failed: no such drive"
    without = NodeView([READY], pb.NODE_STATE_ACTIVE, 0, "", False, False)
    assert "metadata service" in without.readiness(needs_map=True)
    assert without.readiness(needs_map=False) == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"drives": ()}, "0 drives"),
        ({"weight": 0.0}, "weight"),
        ({"data_port": 65535, "drives": (DriveConfig(Path("a")),) * 2}, "do not fit"),
        ({"host": "0.0.0.0"}, "data port"),
        ({"admin_host": "10.0.0.1"}, "admin port"),
        ({"http_host": "0.0.0.0"}, "metrics"),
    ],
)
def test_config_that_cannot_work_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**changes)


def test_open_network_is_possible_when_it_is_said() -> None:
    made = config(host="0.0.0.0", advertised_host="10.0.0.7", insecure=True)
    assert made.client_host == "10.0.0.7"


def spec(generation: int, *, quota: int = 0) -> pb.NodeSpec:
    made = pb.NodeSpec(generation=generation)
    if quota:
        made.quotas.add(tenant="a", flash_bytes=quota)
    return made


def test_spec_is_kept_and_only_newer_ones_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "spec"
    keeper = SpecKeeper(path)
    assert keeper.spec.generation == 0
    assert keeper.apply(spec(3)) == ""
    assert keeper.apply(spec(3)) == ""
    for refused in (spec(2), spec(0), spec(3, quota=1)):
        with pytest.raises(ValueError):
            keeper.apply(refused)
    assert keeper.apply(spec(4, quota=9)) == ""
    again = SpecKeeper(path)
    assert again.spec == spec(4, quota=9)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, 1e9, float("inf"), float("nan")])
def test_weight_that_no_map_could_hold_is_the_fault_of_its_node(weight: float) -> None:
    """One node that says so must not end the publisher."""
    answer = facts_of(config(), view(READY), "1.0")
    answer.weight = weight
    with pytest.raises(ProtocolError, match="weight"):
        reports_of(answer, "p/q")


def test_damaged_spec_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "spec").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConfigError, match="remove it"):
        SpecKeeper(tmp_path / "spec")


def test_restart_pauses_grow_to_a_limit() -> None:
    pauses = [restart_pause_ms(runs) for runs in range(40)]
    assert pauses[:4] == [0, 100, 200, 400]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10_000


def test_metrics_of_workers_are_merged_with_a_label_each() -> None:
    buckets = (0, 3, 1) + (0,) * 22
    statistics = WorkerStatistics(
        2, 4, 6, {(Opcode.GET, Status.OK): 5}, {Opcode.GET: buckets}, 10, 20, ConnectionCounts()
    )
    samples = tuple(server_samples(statistics))
    workers = [
        WorkerView(n, Phase.READY, Report("0a" * 16, 1, 7070, samples=samples)) for n in range(2)
    ]
    collected = {family.name: family for family in NodeCollector(lambda: view(*workers)).collect()}
    assert [s.labels["worker"] for s in collected["memkv_sessions"].samples] == ["0", "1"]
    [item, _] = collected["memkv_items"].samples
    assert item.name == "memkv_items_total"
    assert item.labels == {"worker": "0", "operation": "get", "status": "ok"}
    durations = collected["memkv_request_duration_seconds"].samples
    count = next(s for s in durations if s.name.endswith("_count"))
    assert count.value == 4
    assert all(name.startswith("memkv_") for name in collected)


def test_samples_of_a_worker_that_is_down_are_not_shown() -> None:
    sample = Sample("memkv_x", "X", {}, 1.0)
    down = WorkerView(0, Phase.BACKOFF, Report("0a" * 16, 1, 7070, samples=(sample,)))
    names = {family.name for family in NodeCollector(lambda: view(down)).collect()}
    assert "memkv_x" not in names
    assert "memkv_worker_ready" in names


def test_gauges_and_counters_keep_their_kind() -> None:
    made = {
        f.name: f.type
        for f in families(
            [Sample("memkv_g", "", {}, 1), Sample("memkv_c", "", {}, 1, counter=True)]
        )
    }
    assert made == {"memkv_g": "gauge", "memkv_c": "counter"}
