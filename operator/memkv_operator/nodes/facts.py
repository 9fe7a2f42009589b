"""A node's answer as values of the planner."""

from dataclasses import replace

from memkv.errors import ProtocolError
from memkv.metadata.facts import reports_of
from memkv.metadata.roster import WorkerReport
from memkv.shardmap import WorkerState
from memkv_operator.plan.facts import NodeFacts, TenantFacts, WorkerFacts
from memkv_proto import node_admin_pb2 as pb

PHASES = {
    pb.WORKER_PHASE_STARTING: "Starting",
    pb.WORKER_PHASE_READY: "Ready",
    pb.WORKER_PHASE_BACKOFF: "Backoff",
    pb.WORKER_PHASE_FAILED: "Failed",
    pb.WORKER_PHASE_STOPPED: "Stopped",
}


def facts_of(answer: pb.GetFactsResponse, pool: str, node_name: str) -> NodeFacts:
    """Return what a node said. ProtocolError when it is another node or serves another pool."""
    if answer.node_name != node_name:
        raise ProtocolError(
            f"the pod on node {node_name} calls itself {answer.node_name!r}: is its address reused?"
        )
    return NodeFacts(
        version=answer.software_version,
        draining=answer.state == pb.NODE_STATE_DRAINING,
        spec_generation=answer.spec_generation,
        spec_revision=answer.spec_revision,
        workers=tuple(_worker(worker) for worker in answer.workers),
        reports=tuple(reports_of(answer, pool)),
        transports=frozenset(answer.transports),
        rdma_wanted=answer.rdma_wanted,
        ticket_keys=frozenset(answer.ticket_key_ids),
    )


def weighted(
    report: WorkerReport, percent: int, failure_domain: str, capacity_share: float = 1.0
) -> WorkerReport:
    """Return a report as the pool's spec sees it: with the group's weight and failure domain.

    `capacity_share`: how much of what the worker says it has counts, to nine digits, so that the
    same share of a capacity that wavers is the same weight.
    A weight of 0 gives a worker no slots, like draining.
    """
    worker = report.worker
    if percent == 0:
        worker = replace(worker, state=WorkerState.DRAINING)
    else:
        weight = worker.weight * percent / 100
        if capacity_share != 1.0:
            weight = float(f"{weight * capacity_share:.9g}")
        worker = replace(worker, weight=weight)
    if failure_domain:
        worker = replace(worker, failure_domain=failure_domain)
    return replace(report, worker=worker)


def _worker(worker: pb.WorkerFacts) -> WorkerFacts:
    return WorkerFacts(
        position=worker.position,
        uuid=worker.uuid.hex(),
        incarnation=worker.incarnation,
        phase=PHASES.get(worker.phase, "Starting"),
        host=worker.host,
        port=worker.port,
        capacity_bytes=worker.capacity_bytes,
        used_bytes=worker.used_bytes,
        applied_epoch=worker.applied_epoch,
        restarts=worker.restarts,
        message=worker.message,
        flash_guaranteed_bytes_max=worker.flash_guaranteed_bytes_max,
        memory_guaranteed_bytes_max=worker.memory_guaranteed_bytes_max,
        tenants=tuple(
            TenantFacts(
                usage.tenant,
                usage.flash_bytes,
                usage.flash_guaranteed_bytes,
                usage.memory_bytes,
                usage.memory_guaranteed_bytes,
            )
            for usage in worker.tenants
        ),
        rdma_rails=tuple(worker.rdma_rails),
        rdma_problem=worker.rdma_problem,
    )
