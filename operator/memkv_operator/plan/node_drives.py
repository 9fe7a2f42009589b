"""The drives of one pool on one node: as MemKVNode.status.drives has them, and what is said."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv_operator.api.conditions import FALSE, TRUE, Condition
from memkv_operator.api.node import MemKVNode
from memkv_operator.plan.disks import WipeSeen
from memkv_operator.plan.drives import Chosen, Drive, DriveState
from memkv_operator.plan.facts import NodeFacts

DRIVES_SHOWN_MAX = 64  # what the schema takes; used ones come first
REASON_CHARS_MAX = 1024
COMMAND_CHARS_MAX = 8192  # of a condition: 16 fingerprints of 320 characters, whole


@dataclass(frozen=True, slots=True)
class NodeDrives:
    """What came of deciding on a node's drives."""

    memkv_node: str
    """Name of the MemKVNode."""
    namespace: str
    drives: tuple[Drive, ...] = ()
    workers: int = 1
    approved: frozenset[str] = frozenset()
    """Fingerprints that people approved."""
    agent_problem: str = ""
    """Why its agent does not answer; empty: it does."""
    handing_problem: str = ""
    """Why the agent cannot hand over the drives that were chosen; empty: it can."""
    wipes: tuple[WipeSeen, ...] = ()
    """How far wipes are that the agent was told of, also of drives of other pools."""
    rows: tuple[JsonValue, ...] | None = None
    """What status.drives stays, while the agent has said nothing yet; None: `drives` says it."""

    def of_state(self, *states: DriveState) -> list[Drive]:
        """Return the drives in one of these states."""
        return [drive for drive in self.drives if drive.state in states]

    @property
    def handed(self) -> list[Drive]:
        """Drives that the agent shall hand over: chosen, and written down as that."""
        return [drive for drive in self.of_state(DriveState.READY) if drive.recorded]

    def status(self) -> list[JsonValue]:
        """Return status.drives."""
        if self.rows is not None:
            return list(self.rows)
        return [_row(drive) for drive in self.drives[:DRIVES_SHOWN_MAX]]

    def outdated(self, facts: NodeFacts) -> bool:
        """Return whether a running pod has other drives than one that starts now would get.

        While facts of node and agent are of different moments, a worker may seem to have no drive
        and a drive no worker; neither alone counts.
        """
        if self.rows is not None or self.agent_problem or self.handing_problem:
            return False
        wanted = self.handed
        if 0 < len(facts.workers) < len(wanted):
            return True
        forbidden = {
            drive.worker_uuid for drive in self.of_state(DriveState.DENIED) if drive.worker_uuid
        }
        if wanted and any(worker.uuid in forbidden for worker in facts.workers):
            return True
        there = {worker.uuid for worker in facts.workers}
        held = {drive.worker_uuid for drive in self.drives}
        failed = [w for w in facts.workers if w.phase != "Ready" and w.uuid and w.uuid not in held]
        return bool(failed) and any(drive.worker_uuid not in there for drive in wanted)


def chosen_of(node: MemKVNode | None) -> tuple[Chosen, ...]:
    """Return the drives that a MemKVNode's status has as chosen."""
    if node is None:
        return ()
    return tuple(
        Chosen(
            row.text("id"),
            row.integer("position"),
            row.text("path"),
            row.integer("size"),
            row.text("fingerprint"),
            row.text("workerUUID"),
        )
        for row in Reader(node.status).objects("drives")
        if row.has("position")
    )


def worker_uuids_of(node: MemKVNode) -> Iterable[str]:
    """Return the workers that a MemKVNode's status knows."""
    status = Reader(node.status)
    for row in status.objects("workers"):
        if row.has("uuid"):
            yield row.text("uuid")
    for row in status.objects("drives"):
        if row.has("position") and row.has("workerUUID"):
            yield row.text("workerUUID")


def drives_condition(drives: NodeDrives) -> Condition:
    """Return DrivesReady of one node."""
    reason, message = trouble_of_drives(drives)
    if reason:
        return Condition("DrivesReady", FALSE, reason, message[:COMMAND_CHARS_MAX])
    used, workers = len(drives.of_state(DriveState.READY)), drives.workers
    message = f"{used} drives for up to {workers} workers" if used < workers else f"{used} drives"
    return Condition("DrivesReady", TRUE, "AllReady", message)


def trouble_of_drives(drives: NodeDrives) -> tuple[str, str]:
    """Return (reason, message) of what is wrong with a node's drives, ("", "") when nothing is."""
    if drives.agent_problem:
        return "AgentUnavailable", drives.agent_problem
    faulted = drives.of_state(DriveState.FAULTED)
    if faulted:
        return "DriveFaulted", _each(faulted)
    missing = drives.of_state(DriveState.MISSING)
    if missing:
        return "DriveMissing", _each(missing)
    pending = drives.of_state(DriveState.PENDING_APPROVAL)
    if pending:
        return "DrivePendingApproval", f"{_each(pending)}. To approve: {approve_command(drives)}"
    if not drives.of_state(DriveState.READY):
        return "NoDrives", _why_none(drives.drives)
    if drives.handing_problem:
        return "DriveNotHanded", drives.handing_problem
    return "", ""


def approve_command(drives: NodeDrives) -> str:
    """Return the command that approves the drives that wait, beside what is approved."""
    pending = drives.of_state(DriveState.PENDING_APPROVAL)
    fingerprints = [*sorted(drives.approved), *(drive.fingerprint for drive in pending)]
    patch = json.dumps({"spec": {"approvedDrives": fingerprints}}, separators=(",", ":"))
    return (
        f"kubectl patch memkvnode {drives.memkv_node} -n {drives.namespace} --type=merge "
        f"-p {shlex.quote(patch)}"
    )


def _row(drive: Drive) -> JsonValue:
    row: Manifest = {
        "id": drive.id,
        "path": drive.path,
        "size": drive.size_bytes,
        "state": drive.state.value,
    }
    if drive.fingerprint:
        row["fingerprint"] = drive.fingerprint
    if drive.position >= 0:
        row["position"] = drive.position
        if drive.worker_uuid:
            row["workerUUID"] = drive.worker_uuid
    if drive.reason:
        row["deniedReason"] = drive.reason[:REASON_CHARS_MAX]
    return row


def _each(drives: Sequence[Drive]) -> str:
    return "; ".join(f"{drive.path or drive.id}: {drive.reason}" for drive in drives)


def _why_none(drives: Sequence[Drive]) -> str:
    if not drives:
        return "the node's agent sees no disks"
    shown = _each(drives[:3])
    more = f"; and {len(drives) - 3} more" if len(drives) > 3 else ""
    return f"no disk of the node can be used: {shown}{more}"
