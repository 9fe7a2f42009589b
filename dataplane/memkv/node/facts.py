"""What a node says of itself: the pure part, from workers' reports to memkv.v1 facts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum

from memkv.node.messages import Report
from memkv.node.node_config import NodeConfig
from memkv_proto import node_admin_pb2 as pb

FAULTED_FIX = (
    "It takes no puts; look at dmesg and smartctl, replace the drive or, if it is sound, start the"
    " worker again"
)


class Phase(IntEnum):
    """How far a worker process is. Values are those of memkv.v1.WorkerPhase."""

    STARTING = 1
    READY = 2
    BACKOFF = 3
    FAILED = 4
    STOPPED = 5


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What a supervisor knows of one worker."""

    position: int
    phase: Phase
    report: Report | None = None
    """The last one, of an earlier process perhaps: identity outlives processes."""
    pid: int | None = None
    restarts: int = 0
    message: str = ""
    """Why it is not ready."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a supervisor knows of its node."""

    workers: Sequence[WorkerView]
    state: "pb.NodeState.ValueType"
    spec_generation: int
    spec_revision: str
    metadata_connected: bool
    has_map: bool
    ticket_key_ids: Sequence[str] = ()
    """Of the keys whose tickets its workers take."""

    def readiness(self, *, needs_map: bool) -> str:
        """Return why the node is not ready, "" when it is."""
        waiting = [w for w in self.workers if w.phase is not Phase.READY]
        if waiting:
            first = waiting[0]
            return f"worker {first.position} is {first.phase.name.lower()}: {first.message}"
        if needs_map and not self.has_map:
            return "no shard map yet: is the metadata service running?"
        return ""


def facts_of(config: NodeConfig, view: NodeView, software_version: str) -> pb.GetFactsResponse:
    """Return the answer to GetFacts."""
    return pb.GetFactsResponse(
        node_name=config.name,
        pool=config.pool,
        failure_domain=config.failure_domain or config.name,
        weight=config.weight,
        state=view.state,
        spec_generation=view.spec_generation,
        spec_revision=view.spec_revision,
        workers=[_worker_facts(config, worker) for worker in view.workers],
        software_version=software_version,
        metadata_connected=view.metadata_connected,
        transports=_transports(config, view),
        huge_page_bytes=config.huge_page_bytes,
        ticket_key_ids=view.ticket_key_ids,
        rdma_wanted=config.serves_rdma,
    )


def _transports(config: NodeConfig, view: NodeView) -> list[str]:
    reports = [worker.report for worker in view.workers if worker.phase is Phase.READY]
    spoken = ["tcp"]
    if config.local_dir is not None:
        spoken.append("local")
    if reports and all(report is not None and report.rdma_rails for report in reports):
        spoken.append("rdma")
    return spoken


def _worker_facts(config: NodeConfig, worker: WorkerView) -> pb.WorkerFacts:
    facts = pb.WorkerFacts(
        position=worker.position,
        phase=pb.WorkerPhase.ValueType(worker.phase.value),
        host=config.client_host,
        restarts=worker.restarts,
        message=worker.message,
    )
    report = worker.report
    if report is None:
        return facts
    facts.uuid = bytes.fromhex(report.uuid)
    facts.incarnation = report.incarnation
    facts.port = report.port if worker.phase is Phase.READY else 0
    facts.capacity_bytes = report.capacity_bytes
    facts.used_bytes = report.used_bytes
    facts.applied_epoch = report.applied_epoch
    facts.map_lineage = bytes.fromhex(report.lineage)
    facts.flash_guaranteed_bytes_max = report.flash_guaranteed_bytes_max
    facts.memory_guaranteed_bytes_max = report.memory_guaranteed_bytes_max
    if report.drive_state:
        facts.drive_state = pb.DriveState.Value(f"DRIVE_STATE_{report.drive_state.upper()}")
        facts.drive_problem = report.drive_problem
    if facts.drive_state == pb.DRIVE_STATE_FAULTED and not facts.message:
        facts.message = f"its drive is faulted: {report.drive_problem}. {FAULTED_FIX}"
    if worker.phase is Phase.READY:
        facts.rdma_rails.extend(report.rdma_rails)
        facts.rdma_problem = report.rdma_problem
    for usage in report.tenants:
        facts.tenants.add(**asdict(usage))
    for slot, since_epoch in report.finished:
        facts.finished_moves.add(slot=slot, since_epoch=since_epoch)
    return facts
