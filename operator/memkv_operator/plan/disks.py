"""What agents say of the disks of their nodes, and what they are told to do with them."""

from dataclasses import dataclass
from enum import Enum


class Content(Enum):
    """What is on a disk."""

    BLANK = "blank"
    MEMKV = "memkv"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"
    """It could not be read."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk, as the agent of its node sees it."""

    id: str
    """Stable name, as under /dev/disk/by-id."""
    path: str
    size_bytes: int
    fingerprint: str
    """Of disk and content: whoever approves it approves what is on it now. Empty: not known."""
    links: tuple[str, ...] = ()
    """Other stable paths of the same disk."""
    model: str = ""
    serial: str = ""
    wwn: str = ""
    transport: str = "nvme"
    rotational: bool = False
    content: Content = Content.BLANK
    content_description: str = ""
    worker_uuid: str = ""
    """Hex; of the worker whose blocks it holds, if its content is MemKV's."""
    unusable_reason: str = ""
    """Why nobody may have it: mounted, root disk, swap, ...; empty: nothing speaks against it."""
    assigned: bool = False
    """Whether the agent was told to hand it to a pool."""
    error: str = ""
    """What is wrong with the disk itself; empty: nothing known."""

    @property
    def identity(self) -> str:
        """What is the same on every node that sees this disk, "" when nothing is: names under
        by-id are made of serials, which virtual disks have in common."""
        return self.worker_uuid or self.wwn


@dataclass(frozen=True, slots=True)
class AssignmentSeen:
    """How far an agent is with the drives of one pool."""

    pool_uid: str
    resource: str
    healthy: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WipeSeen:
    """How far an agent is with a wipe that it was told of; it says so also when the disk looks
    blank by now, whose ends are zeroed first."""

    fingerprint: str
    done: bool
    wiped_bytes: int = 0

    @property
    def disk_id(self) -> str:
        """Disk.id: the fingerprint is of disk, size and content."""
        return self.fingerprint.rsplit(":", 2)[0]


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """An agent's last answer."""

    version: str
    spec_generation: int
    disks: tuple[Disk, ...]
    assignments: tuple["AssignmentSeen", ...] = ()
    wipes: tuple[WipeSeen, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentSeen:
    """What polling of an agent came to."""

    pod_uid: str
    facts: AgentFacts | None
    """The last answer, of this pod; None: it never answered."""
    problem: str = ""
    """Why the very last poll failed; empty: it did not."""

    @property
    def reachable(self) -> bool:
        """Whether the very last poll was answered."""
        return self.facts is not None and not self.problem


@dataclass(frozen=True, slots=True)
class HandedDrive:
    """A drive that an agent hands to a pool's pod."""

    id: str
    fingerprint: str
    position: int
    erase: bool
    """A person approved it with this fingerprint, so that what is on it may go."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The drives of one pool on one node."""

    pool_uid: str
    resource: str
    """What kubelet advertises: one device that is all of these drives."""
    drives: tuple[HandedDrive, ...]


@dataclass(frozen=True, slots=True)
class AgentOrders:
    """What one agent shall do."""

    assignments: tuple[Assignment, ...] = ()
    wipes: tuple[str, ...] = ()
    """Fingerprints of drives whose MemKV content is to go."""
