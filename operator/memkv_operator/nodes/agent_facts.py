"""An agent's answer as values of the planner, and the planner's orders as a message."""

from memkv.errors import ProtocolError
from memkv_operator.plan.disks import (
    AgentFacts,
    AgentOrders,
    AssignmentSeen,
    Content,
    Disk,
    WipeSeen,
)
from memkv_proto import agent_admin_pb2 as pb

_CONTENTS = {
    pb.DRIVE_CONTENT_BLANK: Content.BLANK,
    pb.DRIVE_CONTENT_MEMKV: Content.MEMKV,
    pb.DRIVE_CONTENT_FOREIGN: Content.FOREIGN,
}


def agent_facts_of(answer: pb.AgentFacts, node_name: str) -> AgentFacts:
    """Return what an agent said. ProtocolError when it is the agent of another node."""
    if answer.node_name != node_name:
        raise ProtocolError(
            f"the agent on node {node_name} calls itself {answer.node_name!r}: is its address "
            "reused?"
        )
    return AgentFacts(
        answer.software_version,
        answer.spec_generation,
        tuple(_disk(disk) for disk in answer.disks),
        tuple(
            AssignmentSeen(one.pool_uid, one.resource, one.healthy, one.problem)
            for one in answer.assignments
        ),
        tuple(WipeSeen(one.fingerprint, one.done, one.wiped_bytes) for one in answer.wipes),
        tuple(answer.problems),
    )


def spec_of(orders: AgentOrders, generation: int) -> pb.AgentSpec:
    """Return orders as the message that carries them."""
    return pb.AgentSpec(
        generation=generation,
        assignments=[
            pb.Assignment(
                pool_uid=one.pool_uid,
                resource=one.resource,
                drives=[
                    pb.AssignedDrive(
                        id=drive.id,
                        fingerprint=drive.fingerprint,
                        position=drive.position,
                        erase=drive.erase,
                    )
                    for drive in one.drives
                ],
            )
            for one in orders.assignments
        ],
        wipes=orders.wipes,
    )


def _disk(disk: pb.AgentDisk) -> Disk:
    return Disk(
        id=disk.id,
        path=disk.path,
        size_bytes=disk.size_bytes,
        fingerprint=disk.fingerprint,
        links=(disk.by_path,) if disk.by_path else (),
        model=disk.model,
        serial=disk.serial,
        wwn=disk.wwn,
        transport=disk.transport,
        rotational=disk.rotational,
        content=_CONTENTS.get(disk.content, Content.UNKNOWN),
        content_description=disk.content_description,
        worker_uuid=disk.worker_uuid.hex(),
        unusable_reason=disk.unusable_reason,
        assigned=disk.assigned,
        error=disk.error,
    )
