"""What an agent tells the operator, as messages."""

from collections.abc import Iterable, Mapping, Sequence

from memkv.agent.content import Content, Kind
from memkv.agent.decisions import Examined, Offer, Wipe
from memkv_proto import agent_admin_pb2 as pb

_KINDS = {
    Kind.BLANK: pb.DRIVE_CONTENT_BLANK,
    Kind.MEMKV: pb.DRIVE_CONTENT_MEMKV,
    Kind.FOREIGN: pb.DRIVE_CONTENT_FOREIGN,
}
_NOTHING = Content(Kind.BLANK, "", "")


def disk_facts(disk: Examined, *, assigned: bool) -> pb.AgentDisk:
    """Return the facts of one disk."""
    device = disk.device
    content = disk.content or _NOTHING
    facts = pb.AgentDisk(
        id=device.id,
        path=device.path,
        by_path=f"/dev/disk/by-path/{device.by_path}" if device.by_path else "",
        device_path=f"/dev/{device.name}",
        size_bytes=device.size_bytes,
        model=device.model,
        serial=device.serial,
        wwn=device.wwid,
        transport=device.transport,
        rotational=device.rotational,
        numa_node=device.numa_node,
        fingerprint=content.fingerprint,
        content=_KINDS[content.kind] if disk.content else pb.DRIVE_CONTENT_UNSPECIFIED,
        content_description=content.description,
        worker_uuid=content.worker_uuid,
        device_uuid=content.device_uuid,
        unusable_reason=disk.reason,
        assigned=assigned,
        error=disk.error,
    )
    if not disk.reason and disk.held:
        facts.unusable_reason = "open exclusively in another process"
    if disk.health is not None:
        facts.health_known = True
        facts.wear_percent = disk.health.wear_percent
        facts.media_errors = disk.health.media_errors
        facts.error = facts.error or disk.health.warning
    return facts


def assignment_facts(offer: Offer, kubelet_problem: str) -> pb.AssignmentFacts:
    """Return how far an assignment is."""
    problem = offer.problem or kubelet_problem
    return pb.AssignmentFacts(
        pool_uid=offer.pool_uid, resource=offer.resource, healthy=not problem, problem=problem
    )


def wipe_facts(
    wipes: Iterable[Wipe], wiped: Iterable[str], asked: Sequence[str], progress: Mapping[str, int]
) -> list[pb.WipeFacts]:
    """Return how far each wipe that was asked for is. `progress`: bytes done, by fingerprint."""
    done = set(wiped)
    problems = {wipe.fingerprint: wipe.problem or "it is being wiped" for wipe in wipes}
    return [
        pb.WipeFacts(
            fingerprint=fingerprint,
            done=fingerprint in done,
            problem="" if fingerprint in done else problems.get(fingerprint, "not looked at yet"),
            wiped_bytes=progress.get(fingerprint, 0),
        )
        for fingerprint in asked
    ]
