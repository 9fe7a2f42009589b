"""What to do with a node's disks: a pure function of what is wanted and of what is there.

A drive is handed out while it is what the spec named by its fingerprint. Two changes are ours: the
agent erased it, and the pool's own worker formatted it. A `Grant` remembers that a drive was taken
into use, so that these pass and a swapped disk does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memkv.agent.content import Content, Kind
from memkv.agent.disks import BlockDevice
from memkv.io.nvme_health import Health


@dataclass(frozen=True, slots=True)
class Examined:
    """A disk, and what is known of it."""

    device: BlockDevice
    reason: str = ""
    """Why no pool can have it."""
    content: Content | None = None
    """None: it was not read, or could not be."""
    error: str = ""
    held: bool = False
    """Somebody has it open exclusively; not asked of granted disks, whose pod may start now."""
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A drive of an assignment."""

    id: str
    fingerprint: str
    position: int
    erase: bool


@dataclass(frozen=True, slots=True)
class Assigned:
    """The drives of one pod."""

    pool_uid: str
    resource: str
    drives: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """A drive that a pool has taken into use."""

    pool_uid: str
    identity: str
    device_uuid: str = ""
    """Of the store on it, in hexadecimal; "": it was blank."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """A disk to erase, for a pool."""

    device: BlockDevice
    fingerprint: str
    kind: Kind
    pool_uid: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What kubelet is told of a resource."""

    pool_uid: str
    resource: str
    devices: tuple[BlockDevice, ...]
    """By position; of no use unless healthy."""
    problem: str = ""

    @property
    def healthy(self) -> bool:
        """Whether every drive can be handed out."""
        return not self.problem

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """NUMA nodes of the drives."""
        return tuple(sorted({d.numa_node for d in self.devices if d.numa_node >= 0}))


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a look."""

    offers: tuple[Offer, ...]
    erasures: tuple[Erasure, ...]
    grants: Mapping[str, Grant]
    """All that hold from now on, by id of the disk; to be kept before anything is handed out."""


def decide(
    assignments: Sequence[Assigned], grants: Mapping[str, Grant], disks: Iterable[Examined],
    begun: Mapping[str, str],
) -> Decision:
    """Return what to do. `begun`: fingerprints of erasures under way, by id of the disk."""
    by_id = {disk.device.id: disk for disk in disks}
    offers: list[Offer] = []
    erasures: list[Erasure] = []
    kept: dict[str, Grant] = {}
    for assignment in assignments:
        problems, devices = [], []
        for drive in sorted(assignment.drives, key=lambda drive: drive.position):
            disk = by_id.get(drive.id)
            grant = _grant_of(assignment.pool_uid, drive.id, grants)
            if grant is not None:
                kept[drive.id] = grant
            problem = _problem(disk, drive, grant)
            if not problem:
                assert disk is not None
                assert disk.content is not None
                kept[drive.id] = _granted(assignment.pool_uid, disk.device, disk.content)
            elif disk is not None and _may_erase(disk, drive, begun.get(drive.id, "")):
                erasure = Erasure(disk.device, drive.fingerprint, Kind.FOREIGN, assignment.pool_uid)
                erasures.append(erasure)
                problem = f"{drive.id} is being erased"
            if problem:
                problems.append(problem)
            if disk is not None:
                devices.append(disk.device)
        offer = Offer(
            assignment.pool_uid, assignment.resource, tuple(devices), "; ".join(problems)
        )
        offers.append(offer)
    return Decision(tuple(offers), tuple(erasures), kept)


def _grant_of(pool_uid: str, disk_id: str, grants: Mapping[str, Grant]) -> Grant | None:
    grant = grants.get(disk_id)
    return grant if grant is not None and grant.pool_uid == pool_uid else None


def _granted(pool_uid: str, device: BlockDevice, content: Content) -> Grant:
    return Grant(pool_uid, device.identity, content.device_uuid.hex())


def _problem(disk: Examined | None, drive: Wanted, grant: Grant | None) -> str:
    """Return why a drive is not handed out now; "": it is."""
    if disk is None:
        return f"{drive.id} is missing: it was removed or does not answer (lsblk, dmesg)"
    if disk.reason:
        return f"{drive.id}: {disk.reason}"
    if disk.content is None:
        return f"{drive.id} cannot be read: {disk.error or 'it was not looked at yet'}"
    if disk.held and grant is None:
        return f"{drive.id} is open in another process, such as the pod that had it before"
    return _problem_of_content(disk.device, disk.content, drive, grant)


def _problem_of_content(
    device: BlockDevice, content: Content, drive: Wanted, grant: Grant | None
) -> str:
    if grant is not None and grant.identity != device.identity:
        return f"{drive.id} is another disk than the one that was approved"
    if content.kind is not Kind.FOREIGN:
        if content.fingerprint == drive.fingerprint:
            return ""
        uuid = content.device_uuid.hex()
        # Blank since it was erased, formatted since it was blank, or still the same store.
        if grant is not None and (not uuid or grant.device_uuid in ("", uuid)):
            return ""
    return (
        f"{drive.id} has other content than was decided upon: {content.description}, fingerprint"
        f" {content.fingerprint} instead of {drive.fingerprint}"
    )


def _may_erase(disk: Examined, drive: Wanted, begun: str) -> bool:
    """Return whether a disk's foreign content was approved, or is what an erasure left of it."""
    if disk.reason or disk.held or disk.content is None or not drive.erase:
        return False
    if disk.content.kind is Kind.FOREIGN:
        return drive.fingerprint in (disk.content.fingerprint, begun)
    # Its end was zeroed, its head was not reached, and now it looks like something harmless.
    return begun == drive.fingerprint


@dataclass(frozen=True, slots=True)
class Wipe:
    """A store to wipe: `device`, or the reason why not now."""

    fingerprint: str
    device: BlockDevice | None
    problem: str = ""


def decide_wipes(
    fingerprints: Iterable[str], assignments: Sequence[Assigned], disks: Iterable[Examined],
    begun: Mapping[str, str],
) -> list[Wipe]:
    """Return what of `fingerprints` can be wiped now. `begun` as in `decide`."""
    known = list(disks)
    assigned = {drive.id for assignment in assignments for drive in assignment.drives}
    return [_wipe(fingerprint, assigned, known, begun) for fingerprint in fingerprints]


def _wipe(
    fingerprint: str, assigned: set[str], disks: Sequence[Examined], begun: Mapping[str, str]
) -> Wipe:
    for disk in disks:
        content, device = disk.content, disk.device
        is_meant = content is not None and content.fingerprint == fingerprint
        if not is_meant and begun.get(device.id) != fingerprint:
            continue
        if device.id in assigned:
            return Wipe(fingerprint, None, f"{device.id} is assigned to a pool")
        if disk.reason or content is None:
            return Wipe(fingerprint, None, f"{device.id}: {disk.reason or disk.error}")
        if disk.held:
            return Wipe(fingerprint, None, f"{device.id} is still open in another process")
        if is_meant and content.kind is not Kind.MEMKV:
            return Wipe(fingerprint, None, f"{device.id} holds no MemKV store")
        return Wipe(fingerprint, device)
    return Wipe(fingerprint, None, "no disk of this node has this fingerprint: it was taken out, or"
                " somebody wrote to it")  # fmt: skip
