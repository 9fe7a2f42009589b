"""Which drives of a node each pool gets. Pure; one call decides for all pools of a node.

The rules, the first that applies wins:
  1. A drive stays with the pool whose worker it holds, and with the pool it was chosen for, until
     excludedDevices names it or the group has fewer workers.
  2. Of pools that ask for the same drive, the older one gets it.
  3. Nothing is taken that holds anything, or whose pool does not take blank drives, before a
     person approved its fingerprint.
  4. One drive for each worker.
Every disk that a pool does not get has the reason beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from memkv_operator.api.drives import DriveRules
from memkv_operator.api.pool import WORKERS_MAX
from memkv_operator.plan.disks import Content, Disk
from memkv_operator.plan.drive_rules import (
    excluded_reason,
    exclusion_of,
    mismatch,
    order_of,
)


class DriveState(Enum):
    """What a disk is to a pool."""

    READY = "Ready"
    PENDING_APPROVAL = "PendingApproval"
    DENIED = "Denied"
    FAULTED = "Faulted"
    MISSING = "Missing"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A drive that was chosen before, as the status of the MemKVNode has it."""

    id: str
    position: int
    path: str = ""
    size_bytes: int = 0
    fingerprint: str = ""
    worker_uuid: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    """What one pool wants of one node."""

    pool: str
    """namespace/name"""
    pool_uid: str
    rank: tuple[str, str]
    """(creation, UID): the lower one is the older pool."""
    resource: str
    rules: DriveRules
    workers: int
    approved: frozenset[str] = frozenset()
    """Fingerprints."""
    chosen: tuple[Chosen, ...] = ()
    frozen: bool = False
    """Whether it may keep what it has and take nothing new, as a paused pool."""
    wipes: bool = False
    """Whether it is being deleted, and its blocks with it."""


@dataclass(frozen=True, slots=True)
class Drive:
    """One disk of a node, as one pool sees it."""

    id: str
    path: str
    size_bytes: int
    fingerprint: str
    state: DriveState
    reason: str = ""
    """Why it is not used; empty only where it is."""
    position: int = -1
    """Of the worker that has it; -1: none."""
    worker_uuid: str = ""
    content: Content = Content.UNKNOWN
    recorded: bool = False
    """Whether the status of the MemKVNode has it as chosen already."""
    erase: bool = False
    """Whether what is on it may go: a person approved it."""
    excluded: bool = False
    claimed_by: str = ""
    """The older pool that has it, where this one asks for it too."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What other nodes and pools have to do with the disks of a node."""

    holders: Mapping[str, str] = field(default_factory=dict)
    """Worker UUID -> pool that it belongs to."""
    keepers: Mapping[str, str] = field(default_factory=dict)
    """Disk.identity of disks that several nodes see -> the one that may use it; "": none may."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Worker UUID -> a node that sees its drive now."""


def choose(
    node: str, disks: Sequence[Disk], wants: Sequence[Want], around: Neighbourhood
) -> dict[str, tuple[Drive, ...]]:
    """Return what each pool (by UID) gets of a node and why it does not get the rest."""
    choice = _Choice(node, disks, around)
    ranked = sorted(wants, key=lambda want: want.rank)
    for want in ranked:
        choice.keep(want)
    for want in ranked:
        choice.take(want)
    return {want.pool_uid: choice.drives_of(want) for want in ranked}


class _Choice:
    """One decision for one node."""

    def __init__(self, node: str, disks: Sequence[Disk], around: Neighbourhood) -> None:
        self._node = node
        self._disks = {disk.id: disk for disk in disks}
        self._around = around
        self._owner: dict[str, Want] = {}
        """Disk -> who has it, or waits for its approval."""
        self._workers: dict[str, str] = {}
        """Worker UUID -> the disk that has it: a copied disk has the same."""
        self._rows: dict[str, dict[str, Drive]] = {}
        """Pool -> disk -> what it is to the pool."""
        self._seats: dict[str, dict[int, str]] = {}
        """Pool -> position -> disk."""

    # --- what is there already ---------------------------------------------------------------

    def keep(self, want: Want) -> None:
        """Leave a pool what it has."""
        self._rows[want.pool_uid] = {}
        self._seats[want.pool_uid] = {}
        displaced: list[tuple[str, Chosen | None]] = [
            (chosen.id, chosen)
            for chosen in sorted(want.chosen, key=lambda one: (one.position, one.id))
            if not self._keep_at(want, chosen, chosen.position)
        ]
        known = {chosen.id for chosen in want.chosen}
        displaced += [
            (disk.id, None)
            for disk in sorted(self._disks.values(), key=lambda one: one.id)
            if disk.id not in known and self._around.holders.get(disk.worker_uuid) == want.pool
        ]
        for disk_id, before in displaced:
            position = self._free_seat(want)
            if position >= 0:
                self._keep_at(want, before or Chosen(disk_id, position), position, before is None)

    def _keep_at(self, want: Want, chosen: Chosen, position: int, moved_in: bool = False) -> bool:
        """Seat one drive, if it may stay and the seat is free."""
        if not 0 <= position < want.workers or position in self._seats[want.pool_uid]:
            return False
        disk = self._disks.get(chosen.id)
        if disk is None:
            self._keep_missing(want, chosen, position)
            return True
        if chosen.id in self._owner or self._forbidden(want, disk) or self._is_copy(disk):
            return True  # others say why it is not used
        row = self._kept(want, disk, chosen, position, recorded=not moved_in)
        if row is not None:
            self._seat(want, disk, row)
        return True

    def _kept(
        self, want: Want, disk: Disk, chosen: Chosen, position: int, recorded: bool
    ) -> Drive | None:
        """Return what a drive that stays is now; None: it is like any new one."""
        approved = disk.fingerprint in want.approved
        state, reason, erase = DriveState.READY, "", False
        if disk.error:
            state, reason = DriveState.FAULTED, _faulted(disk)
        elif disk.content is Content.UNKNOWN and not disk.assigned:
            state, reason = DriveState.FAULTED, f"it cannot be read: {disk.unusable_reason}"
        elif disk.content is Content.FOREIGN:
            if disk.unusable_reason:
                return None
            erase = approved
            if not approved:
                state, reason = DriveState.PENDING_APPROVAL, _needs_approval(disk)
        elif not approved and self._is_strange(want, disk, chosen):
            state, reason = DriveState.PENDING_APPROVAL, _needs_approval(disk)
        # What waits is not the pool's: the row goes on naming the worker that was there.
        unread = disk.content is Content.UNKNOWN or state is DriveState.PENDING_APPROVAL
        return Drive(
            disk.id, disk.path, disk.size_bytes, disk.fingerprint or chosen.fingerprint, state,
            reason, position, chosen.worker_uuid if unread else disk.worker_uuid, disk.content,
            recorded, erase,
        )  # fmt: skip

    def _is_strange(self, want: Want, disk: Disk, chosen: Chosen) -> bool:
        """Return whether a drive came back with a store that is not the pool's. A drive that was
        chosen blank gets its first worker from the pool's own pod."""
        return (
            bool(chosen.worker_uuid and disk.worker_uuid)
            and disk.worker_uuid != chosen.worker_uuid
            and self._around.holders.get(disk.worker_uuid) != want.pool
        )

    def _keep_missing(self, want: Want, chosen: Chosen, position: int) -> None:
        if chosen.worker_uuid and chosen.worker_uuid in self._around.elsewhere:
            return  # it moved to another node, and its worker with it
        gone = Disk(chosen.id, chosen.path, chosen.size_bytes, chosen.fingerprint)
        if exclusion_of(want.rules, self._node, gone) is not None:
            return
        reason = (
            "the drive is gone; put it back, or list its path in storage.excludedDevices to give "
            "its place to another one"
        )
        row = Drive(
            chosen.id, chosen.path, chosen.size_bytes, chosen.fingerprint, DriveState.MISSING,
            reason, position, chosen.worker_uuid, recorded=True,
        )  # fmt: skip
        self._rows[want.pool_uid][chosen.id] = row
        self._seats[want.pool_uid][position] = chosen.id

    # --- what is new -------------------------------------------------------------------------

    def take(self, want: Want) -> None:
        """Give a pool drives for its workers that have none, and the rest a reason."""
        rows = self._rows[want.pool_uid]
        permitted: list[Disk] = []
        waiting: list[Disk] = []
        for disk in sorted(self._disks.values(), key=lambda one: order_of(want.rules, one)):
            if disk.id in rows:
                continue
            refusal = self._refusal(want, disk)
            if refusal is not None:
                rows[disk.id] = refusal
            elif _is_permitted(want, disk):
                permitted.append(disk)
            else:
                waiting.append(disk)
        for disk in permitted:
            self._take_one(want, disk, DriveState.READY, "")
        for disk in waiting:
            self._take_one(want, disk, DriveState.PENDING_APPROVAL, _needs_approval(disk))

    def _take_one(self, want: Want, disk: Disk, state: DriveState, reason: str) -> None:
        rows = self._rows[want.pool_uid]
        position = self._free_seat(want)
        if self._is_copy(disk):
            rows[disk.id] = _denied(disk, f"it is a copy of {self._workers[disk.worker_uuid]}")
        elif position < 0:
            rows[disk.id] = _denied(disk, _no_worker_left(want))
        elif want.frozen:
            rows[disk.id] = _denied(disk, "the pool is paused")
        else:
            erase = state is DriveState.READY and disk.content is Content.FOREIGN
            row = Drive(
                disk.id, disk.path, disk.size_bytes, disk.fingerprint, state, reason,
                position if state is DriveState.READY else -1, disk.worker_uuid, disk.content,
                recorded=False, erase=erase,
            )  # fmt: skip
            self._seat(want, disk, row, position)

    def _refusal(self, want: Want, disk: Disk) -> Drive | None:
        """Return a row with the reason why a pool cannot have a disk, None when it can."""
        forbidden = self._forbidden(want, disk)
        if forbidden is not None:
            return forbidden
        unfit = mismatch(want.rules, disk)
        if unfit:
            return _denied(disk, unfit)
        owner = self._owner.get(disk.id)
        if owner is not None:
            reason = f"pool {owner.pool} has it, which is older or holds blocks on it"
            return _denied(disk, reason, claimed_by=owner.pool)
        if disk.error:
            return _denied(disk, f"it is faulty: {disk.error}")
        if disk.unusable_reason:
            return _denied(disk, disk.unusable_reason)
        if disk.content is Content.UNKNOWN or not disk.fingerprint:
            return _denied(disk, "what is on it could not be read; look at the agent's log")
        return None

    def _forbidden(self, want: Want, disk: Disk) -> Drive | None:
        """Return a row for a disk that a pool may not even keep, None when it may."""
        entry = exclusion_of(want.rules, self._node, disk)
        if entry is not None:
            return _denied(disk, excluded_reason(entry), excluded=True)
        holder = self._around.holders.get(disk.worker_uuid, "") if disk.worker_uuid else ""
        if holder and holder != want.pool:
            asked = "" if mismatch(want.rules, disk) else holder
            return _denied(disk, f"it holds blocks of pool {holder}", claimed_by=asked)
        keeper = self._around.keepers.get(disk.identity, self._node) if disk.identity else ""
        if disk.identity and keeper != self._node:
            who = f"node {keeper} uses it" if keeper else "none of them may use it"
            reason = (
                f"several nodes see this disk, and {who}: list it in excludedDevices with nodes: "
                "all but one"
            )
            return _denied(disk, reason)
        return None

    def _is_copy(self, disk: Disk) -> bool:
        return self._workers.get(disk.worker_uuid, disk.id) != disk.id

    # --- places ------------------------------------------------------------------------------

    def _seat(self, want: Want, disk: Disk, row: Drive, position: int | None = None) -> None:
        self._rows[want.pool_uid][disk.id] = row
        self._seats[want.pool_uid][row.position if position is None else position] = disk.id
        self._owner[disk.id] = want
        if disk.worker_uuid:
            self._workers[disk.worker_uuid] = disk.id

    def _free_seat(self, want: Want) -> int:
        taken = self._seats[want.pool_uid]
        return next((seat for seat in range(want.workers) if seat not in taken), -1)

    def drives_of(self, want: Want) -> tuple[Drive, ...]:
        """Return a pool's rows: used ones by position, then the others by id."""
        rows: Iterable[Drive] = self._rows[want.pool_uid].values()
        return tuple(sorted(rows, key=lambda row: (row.position < 0, row.position, row.id)))


def _is_permitted(want: Want, disk: Disk) -> bool:
    if disk.fingerprint in want.approved:
        return True
    return disk.content is Content.BLANK and want.rules.takes_blank


def _needs_approval(disk: Disk) -> str:
    if disk.content is Content.BLANK:
        return "it is blank; initPolicy RequireApproval wants its fingerprint in approvedDrives"
    if disk.content is Content.MEMKV:
        return "it holds blocks of a pool that is not here; approving it takes it over as it is"
    what = disk.content_description or "something"
    return f"it holds {what}: approving its fingerprint ERASES that"


def _no_worker_left(want: Want) -> str:
    plural = "s, each with its drive" if want.workers > 1 else ", which has its drive"
    have = f"the group has {want.workers} worker{plural}"
    if want.workers >= WORKERS_MAX:
        return f"{have}, and a node cannot have more"
    return f"{have}: set workers: {want.workers + 1} to use one drive more of each node"


def _faulted(disk: Disk) -> str:
    return (
        f"{disk.error}; replace the drive, or list it in storage.excludedDevices to give its place "
        "to another one"
    )


def _denied(disk: Disk, reason: str, *, excluded: bool = False, claimed_by: str = "") -> Drive:
    return Drive(
        disk.id,
        disk.path,
        disk.size_bytes,
        disk.fingerprint,
        DriveState.DENIED,
        reason,
        worker_uuid=disk.worker_uuid,
        content=disk.content,
        excluded=excluded,
        claimed_by=claimed_by,
    )
