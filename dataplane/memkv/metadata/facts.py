"""What a node's answer means to the publisher."""

from memkv import limits
from memkv.errors import ProtocolError
from memkv.metadata.roster import WorkerReport
from memkv.shardmap import Worker, WorkerState
from memkv.shardmap.map import UUID_BYTES
from memkv_proto import node_admin_pb2 as pb


def reports_of(answer: pb.GetFactsResponse, pool: str) -> list[WorkerReport]:
    """Return a report for each worker that has an identity.

    ProtocolError when the node serves another pool, or says what no map could hold.
    """
    if answer.pool != pool:
        raise ProtocolError(
            f"node {answer.node_name!r} serves pool {answer.pool!r}, not {pool!r}: check the list "
            "of nodes"
        )
    return [_report(answer, facts) for facts in answer.workers if facts.uuid]


def _report(answer: pb.GetFactsResponse, facts: pb.WorkerFacts) -> WorkerReport:
    host_ok = 0 < len(facts.host) <= limits.HOST_NAME_BYTES_MAX and facts.host.isascii()
    serving = facts.phase == pb.WORKER_PHASE_READY and 0 < facts.port <= 0xFFFF and host_ok
    weight_ok = limits.NODE_WEIGHT_MIN <= answer.weight <= limits.NODE_WEIGHT_MAX
    if len(facts.uuid) != UUID_BYTES or not weight_ok:
        raise ProtocolError(
            f"node {answer.node_name!r} reports a worker UUID of {len(facts.uuid)} bytes and "
            f"weight {answer.weight}: its version does not fit this one"
        )
    draining = (
        answer.state == pb.NODE_STATE_DRAINING
        or facts.drive_state == pb.DRIVE_STATE_FAULTED  # others take what it can take no more
    )
    worker = Worker(
        uuid=bytes(facts.uuid),
        incarnation=facts.incarnation,
        node_name=answer.node_name,
        host=facts.host,
        port=facts.port,
        state=WorkerState.DRAINING if draining else WorkerState.ACTIVE,
        failure_domain=answer.failure_domain or answer.node_name,
        weight=answer.weight * max(1, facts.capacity_bytes) / limits.GIB,
    )
    finished = frozenset((move.slot, move.since_epoch) for move in facts.finished_moves)
    return WorkerReport(worker, serving, bytes(facts.map_lineage), facts.applied_epoch, finished)
