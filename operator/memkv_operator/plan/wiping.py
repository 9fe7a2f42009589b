"""The drives of a pool that is deleted with its blocks.

A wipe is ordered until its agent says that it is done, however the disk looks meanwhile: blank for
most of the time, as its ends are zeroed first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from memkv_operator.plan.disks import Content, WipeSeen
from memkv_operator.plan.drives import Drive, DriveState
from memkv_operator.plan.node_drives import NodeDrives


@dataclass(frozen=True, slots=True)
class Quiet:
    """How long a node has been quiet while its drives are to be wiped."""

    silent_s: float = 0.0
    """Since its agent answered."""
    stuck_s: float = 0.0
    """Since its wipes got on."""


def wipe_orders(drives: NodeDrives) -> list[str]:
    """Return the fingerprints that an agent shall wipe. Those that are done are among them: the
    agent forgets what it is not asked any more."""
    orders: set[str] = set()
    for drive in _own(drives):
        told = _told(drives, drive)
        orders |= {wipe.fingerprint for wipe in told}
        if drive.content is Content.MEMKV and not any(wipe.done for wipe in told):
            orders.add(drive.fingerprint)
    return sorted(orders)


def unwiped(drives: NodeDrives) -> list[Drive]:
    """Return a pool's drives that hold blocks, or may: who is away or cannot be read, too."""
    found = []
    for drive in _own(drives):
        told = _told(drives, drive)
        if any(wipe.done for wipe in told):
            continue
        if told or drive.content is not Content.BLANK:
            found.append(drive)
    return found


def progress_of(drives: NodeDrives) -> tuple[WipeSeen, ...]:
    """Return what changes while an agent gets on with the wipes of a pool."""
    return tuple(wipe for drive in _own(drives) for wipe in _told(drives, drive))


def wiped_percent(several: Iterable[NodeDrives]) -> int:
    """Return how much of these drives is wiped, in steps of ten: it is written to a status."""
    done_bytes = size_bytes = 0
    for drives in several:
        for drive in _own(drives):
            told = _told(drives, drive)
            size_bytes += drive.size_bytes
            done_bytes += max(
                (drive.size_bytes if wipe.done else wipe.wiped_bytes for wipe in told), default=0
            )
    return 10 * (10 * done_bytes // size_bytes) if size_bytes else 0


def _own(drives: NodeDrives) -> list[Drive]:
    """Return the drives that have a place in the pool, unless they hold what is not the pool's and
    nobody approved. An erasure that was cut off may look like that, too."""
    return [
        drive
        for drive in drives.drives
        if drive.position >= 0
        and (drive.state is not DriveState.PENDING_APPROVAL or _told(drives, drive))
    ]


def _told(drives: NodeDrives, drive: Drive) -> list[WipeSeen]:
    return [wipe for wipe in drives.wipes if wipe.disk_id == drive.id]
