"""What a client or node does with the maps it is offered: a pure state machine.

The contract, as a table. `*` is anything; rows are tried in order and exactly one matches.

| case           | has a map | usable | lineage | order | digest | trusted source | result     |
| -------------- | --------- | ------ | ------- | ----- | ------ | -------------- | ---------- |
| unusable       | *         | no     | *       | *     | *      | *              | UNUSABLE   |
| first          | no        | yes    | *       | *     | *      | *              | APPLIED    |
| foreign        | yes       | yes    | other   | *     | *      | no             | FOREIGN    |
| new lineage    | yes       | yes    | other   | *     | *      | yes            | APPLIED    |
| older          | yes       | yes    | same    | older | *      | *              | OLDER      |
| known          | yes       | yes    | same    | equal | same   | *              | UNCHANGED  |
| diverged       | yes       | yes    | same    | equal | other  | *              | DIVERGED   |
| newer          | yes       | yes    | same    | newer | *      | *              | APPLIED    |

Unusable means an invariant does not hold: above all no workers or a slot without an owner, unless
the map says that this is meant. DIVERGED drops the map: two maps with one version mean a split
brain or a flipped bit, and nobody can tell which one is wrong. The caller fetches one anew; until
then every key is a miss, which is safe. After that nothing older than the dropped map is taken.

A map is kept for ever when nobody offers another one. Between maps, single slots are learned from
WRONG_OWNER hints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from memkv import limits
from memkv.shardmap.map import (
    UNASSIGNED,
    MapInvalid,
    MapVersion,
    Move,
    ShardMap,
    Worker,
    WorkerState,
)


class Offer(Enum):
    """What became of an offered map."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    OLDER = "older"
    DIVERGED = "diverged"
    """The map in use was dropped; fetch a snapshot."""
    UNUSABLE = "unusable"
    FOREIGN = "foreign lineage"


@dataclass(frozen=True, slots=True)
class OwnerHint:
    """What a node that is not the owner knows about a slot, from a WRONG_OWNER answer."""

    slot: int
    term: int
    epoch: int
    host: str
    port: int
    worker_uuid: bytes


@dataclass(frozen=True, slots=True)
class Route:
    """What requests are sent by: a map and the slots learned since. Immutable."""

    shard_map: ShardMap
    workers: tuple[Worker, ...]
    """Those of the map, then workers known only from hints."""
    owners: bytes
    """u16 indexes into `workers`, for `memkv._hotpath.group_by_owner`."""
    learned: Mapping[int, int]
    """slot -> index into `workers`, for slots that a hint corrected."""
    needed: Mapping[int, int]
    """slot -> epoch of the map in which its owner got it, while that is recent. An owner that goes
    by an older map may have owned the slot before and missed deletes since: it must not be
    believed."""

    @property
    def version(self) -> MapVersion:
        """Version of the map; goes into requests."""
        return self.shard_map.version

    @property
    def moving(self) -> Mapping[int, Move]:
        """Moves of the map."""
        return self.shard_map.moving

    @property
    def is_still(self) -> bool:
        """Whether no slot has a previous owner."""
        return not self.learned and not self.shard_map.moving

    def owner_index(self, slot: int) -> int:
        """Return the index of a slot's owner in `workers`, UNASSIGNED in an empty map."""
        return int.from_bytes(self.owners[2 * slot : 2 * slot + 2], "little")

    def previous_owners(self, slot: int) -> tuple[int, ...]:
        """Return whom to ask after the owner missed, newest first.

        A slot that a hint moved was owned by the map's owner a moment ago, so that one comes first.
        """
        previous = self.shard_map.previous_owners(slot)
        if slot not in self.learned:
            return previous
        former = self.shard_map.owner_index(slot)
        now = self.learned[slot]
        chain = (former, *previous)
        kept = tuple(i for i in chain if i not in (now, UNASSIGNED))
        return kept[: limits.PREVIOUS_OWNERS_MAX]


@dataclass(frozen=True, slots=True)
class MapCacheStatistics:
    """Counts since the cache was made."""

    applied: int = 0
    regressions: int = 0
    """Older maps offered, and ignored."""
    divergences: int = 0
    """Times the map was dropped because another one had the same version."""
    unusable: int = 0
    """Maps that break an invariant, empty ones included."""
    foreign: int = 0
    """Maps of another lineage from a source that does not prove itself."""
    hints_learned: int = 0
    hints_ignored: int = 0
    """Hints not newer than the map, or about no slot of it."""


@dataclass(frozen=True, slots=True)
class _Situation:
    """The inputs of the table above."""

    has_map: bool
    usable: bool
    same_lineage: bool
    order: int
    same_digest: bool
    trusted: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One row; None matches anything."""

    label: str
    result: Offer
    has_map: bool | None = None
    usable: bool | None = True
    same_lineage: bool | None = None
    order: int | None = None
    same_digest: bool | None = None
    trusted: bool | None = None

    def matches(self, situation: _Situation) -> bool:
        """Return whether this row is about the situation."""
        return all(
            wanted is None or wanted == getattr(situation, name)
            for name, wanted in (
                ("has_map", self.has_map),
                ("usable", self.usable),
                ("same_lineage", self.same_lineage),
                ("order", self.order),
                ("same_digest", self.same_digest),
                ("trusted", self.trusted),
            )
        )


CASES: tuple[Case, ...] = (
    Case("unusable", Offer.UNUSABLE, usable=False),
    Case("first", Offer.APPLIED, has_map=False),
    Case("foreign", Offer.FOREIGN, has_map=True, same_lineage=False, trusted=False),
    Case("new lineage", Offer.APPLIED, has_map=True, same_lineage=False, trusted=True),
    Case("older", Offer.OLDER, has_map=True, same_lineage=True, order=-1),
    Case("known", Offer.UNCHANGED, has_map=True, same_lineage=True, order=0, same_digest=True),
    Case("diverged", Offer.DIVERGED, has_map=True, same_lineage=True, order=0, same_digest=False),
    Case("newer", Offer.APPLIED, has_map=True, same_lineage=True, order=1),
)


class MapCache:
    """Holds the map in use. Not thread-safe; `route` may be read by any thread."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self._floor: MapVersion | None = None
        """Version of a dropped map; nothing older of its lineage is taken."""
        self._counts = MapCacheStatistics()
        self._heard_ns: int | None = None
        self._interval_ms = limits.BOOKMARK_INTERVAL_MS

    @property
    def shard_map(self) -> ShardMap | None:
        """The map in use."""
        return None if self.route is None else self.route.shard_map

    def offer(self, shard_map: ShardMap, *, trusted: bool) -> Offer:
        """Take or refuse a map. `trusted`: its source proved itself, or is on this machine."""
        result = _decide(self._situation(shard_map, trusted))
        if result is Offer.APPLIED:
            self._apply(shard_map)
        elif result is Offer.DIVERGED:
            self._floor = shard_map.version
            self.route = None
            self._count("divergences")
        elif result is not Offer.UNCHANGED:
            self._count(
                {Offer.OLDER: "regressions", Offer.UNUSABLE: "unusable", Offer.FOREIGN: "foreign"}[
                    result
                ]
            )
        return result

    def offer_undecodable(self) -> Offer:
        """Count something that did not even decode to a map. The map in use stays."""
        self._count("unusable")
        return Offer.UNUSABLE

    def learn(self, hint: OwnerHint) -> bool:
        """Send one slot elsewhere until the next map. Returns False when the hint was ignored."""
        route = self.route
        if route is None or not _hint_applies(route, hint):
            self._count("hints_ignored")
            return False
        workers, index = _with_worker(route.workers, hint)
        owners = bytearray(route.owners)
        owners[2 * hint.slot : 2 * hint.slot + 2] = index.to_bytes(2, "little")
        self.route = Route(
            route.shard_map,
            workers,
            bytes(owners),
            {**route.learned, hint.slot: index},
            {**route.needed, hint.slot: hint.epoch},
        )
        self._count("hints_learned")
        return True

    def heard(self, now_ns: int, interval_ms: int | None = None) -> None:
        """Note a sign of life from the metadata service; `interval_ms`: until the next one."""
        self._heard_ns = now_ns
        if interval_ms:
            self._interval_ms = interval_ms

    def age_ms(self, now_ns: int) -> int | None:
        """Return how long ago the service was heard, None when it never was."""
        return None if self._heard_ns is None else max(0, now_ns - self._heard_ns) // 1_000_000

    def stale(self, now_ns: int) -> bool:
        """Return whether nothing says that the map is the newest. It is used all the same."""
        age_ms = self.age_ms(now_ns)
        return age_ms is None or age_ms > self._interval_ms * limits.BOOKMARKS_MISSED_MAX

    def statistics(self) -> MapCacheStatistics:
        """Return counts since the cache was made."""
        return self._counts

    def _situation(self, shard_map: ShardMap, trusted: bool) -> _Situation:
        current = self.shard_map
        known = self._floor if current is None else current.version
        same_lineage = known is not None and known.same_lineage(shard_map.version)
        return _Situation(
            has_map=known is not None,
            usable=_usable(shard_map, current if same_lineage else None),
            same_lineage=same_lineage,
            order=self._order(shard_map.version, known) if same_lineage and known else 0,
            same_digest=current is not None and current.digest == shard_map.digest,
            trusted=trusted,
        )

    def _order(self, version: MapVersion, known: MapVersion) -> int:
        """Return 1 for newer, 0 for equal, -1 for older."""
        if version.newer_than(known):
            return 1
        if known.newer_than(version):
            return -1
        # What was dropped for a divergence is fetched again: its version is news then.
        return 1 if self.route is None else 0

    def _apply(self, shard_map: ShardMap) -> None:
        needed = _needed_epochs(shard_map)
        self.route = Route(shard_map, shard_map.workers, shard_map.owners, {}, needed)
        self._floor = None
        self._count("applied")

    def _count(self, name: str) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + 1})


def _decide(situation: _Situation) -> Offer:
    return next(case.result for case in CASES if case.matches(situation))


def _needed_epochs(shard_map: ShardMap) -> dict[int, int]:
    needed = dict(shard_map.fenced)
    for slot, move in shard_map.moving.items():
        needed[slot] = max(move.since_epoch, needed.get(slot, 0))
    return needed


def _usable(shard_map: ShardMap, current: ShardMap | None) -> bool:
    try:
        shard_map.validate()
    except MapInvalid:
        return False
    # Slots are fixed when a pool is made: with another number every block would change its owner.
    return current is None or current.slots == shard_map.slots


def _hint_applies(route: Route, hint: OwnerHint) -> bool:
    version = route.shard_map.version
    return (
        0 <= hint.slot < route.shard_map.slots
        and (hint.term, hint.epoch) > (version.term, version.epoch)
        and 1 <= hint.port <= 0xFFFF
        and bool(hint.host)
        and not route.shard_map.intentional_empty
    )


def _with_worker(workers: tuple[Worker, ...], hint: OwnerHint) -> tuple[tuple[Worker, ...], int]:
    """Return the workers with the hinted one among them, and its index."""
    for index, worker in enumerate(workers):
        if (worker.uuid, worker.host, worker.port) == (hint.worker_uuid, hint.host, hint.port) and (
            worker.state != WorkerState.LOST
        ):
            return workers, index
    known = next((worker for worker in workers if worker.uuid == hint.worker_uuid), None)
    template = known or Worker(hint.worker_uuid, 0, "", hint.host, hint.port)
    added = replace(template, host=hint.host, port=hint.port, state=WorkerState.ACTIVE)
    return (*workers, added), len(workers)
