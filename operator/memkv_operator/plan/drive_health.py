"""What is said of the drives of a whole pool."""

from collections.abc import Sequence

from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.conditions import FALSE, TRUE, Condition, joined
from memkv_operator.plan.drives import DriveState
from memkv_operator.plan.membership import Member
from memkv_operator.plan.node_drives import COMMAND_CHARS_MAX, NodeDrives, trouble_of_drives

NODES_EXPLAINED = 3
_WORST_FIRST = (
    "AgentUnavailable",
    "DriveFaulted",
    "DriveMissing",
    "DrivePendingApproval",
    "NoDrives",
    "DriveNotHanded",
)


def pool_drives_condition(members: Sequence[Member]) -> Condition | None:
    """Return DrivesReady of a pool, None for a pool without drives."""
    with_drives = [(m.name, m.drives) for m in members if m.desired and m.drives is not None]
    if not with_drives:
        return None
    troubles = [
        (reason, name, message)
        for name, drives in with_drives
        for reason, message in (trouble_of_drives(drives),)
        if reason
    ]
    if not troubles:
        used = sum(len(drives.of_state(DriveState.READY)) for _, drives in with_drives)
        return Condition("DrivesReady", TRUE, "AllReady", f"{used} drives are in use")
    troubles.sort(key=lambda one: (_WORST_FIRST.index(one[0]), one[1]))
    shown = [f"{name}: {message}" for _, name, message in troubles[:NODES_EXPLAINED]]
    if len(troubles) > NODES_EXPLAINED:
        shown.append(f"and {len(troubles) - NODES_EXPLAINED} more nodes: kubectl get mkvn")
    message = joined(shown, COMMAND_CHARS_MAX)
    return Condition("DrivesReady", FALSE, troubles[0][0], message)


def drive_figures(members: Sequence[Member]) -> Manifest | None:
    """Return status.drives of a pool, None for a pool without drives."""
    found = [member.drives for member in members if member.drives is not None]
    if not found:
        return None
    return {
        "ready": _count(found, DriveState.READY),
        "faulted": _count(found, DriveState.FAULTED, DriveState.MISSING),
        "pendingApproval": _count(found, DriveState.PENDING_APPROVAL),
        "excluded": sum(drive.excluded for drives in found for drive in drives.drives),
    }


def _count(found: Sequence[NodeDrives], *states: DriveState) -> int:
    return sum(len(drives.of_state(*states)) for drives in found)
