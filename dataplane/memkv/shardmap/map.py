"""The shard map as a value: immutable, checked, with one canonical form that its digest covers.

Rules of this package: no sockets, no clock, no threads, no randomness. Maps are computed by the
publisher alone (`builder`); everyone else indexes them.
"""

import itertools
import math
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from types import MappingProxyType

from memkv import limits
from memkv.errors import CallerError, ProtocolError

UUID_BYTES = 16
UNASSIGNED = 0xFFFF
SLOT_HASH = "xxh3-64-v1"

_CANONICAL_MAGIC = b"memkv-map-1\0"


class MapInvalid(ProtocolError):
    """A map breaks an invariant. It is never used; the message names the first broken one."""


class WorkerState(IntEnum):
    """What a worker may be asked. Values are those of memkv.v1.WorkerState."""

    ACTIVE = 1
    DRAINING = 2
    """Owns fewer and fewer slots; still answers for those it was the owner of."""
    LOST = 3
    """Does not answer. Keeps its place in the map so that its return moves its slots back."""


@dataclass(frozen=True, slots=True)
class MapVersion:
    """Names one map. Only versions of one lineage have an order: by term, then by epoch."""

    lineage: bytes
    """UUID, 16 bytes."""
    term: int
    epoch: int

    def same_lineage(self, other: "MapVersion") -> bool:
        """Return whether the two can be compared at all."""
        return self.lineage == other.lineage

    def newer_than(self, other: "MapVersion") -> bool:
        """Return whether this version replaces `other`. CallerError across lineages."""
        if self.lineage != other.lineage:
            raise CallerError("versions of different lineages have no order")
        return (self.term, self.epoch) > (other.term, other.epoch)

    def __str__(self) -> str:
        return f"{self.lineage.hex()[:8]}/{self.term}/{self.epoch}"


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that owns drives. Its identity follows the drives, not the address."""

    uuid: bytes
    incarnation: int
    node_name: str
    host: str
    port: int
    state: WorkerState = WorkerState.ACTIVE
    failure_domain: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """A slot that changed hands and whose blocks may still lie with previous owners."""

    previous: tuple[int, ...]
    """Indexes into workers, newest first, at most limits.PREVIOUS_OWNERS_MAX."""
    since_epoch: int
    """Epoch of the map in which the owner changed; names the move in reports of its end."""


def pack_owners(indexes: Iterable[int]) -> bytes:
    """Return the owner table as little-endian u16."""
    table = array("H", indexes)
    if sys.byteorder == "big":
        table.byteswap()
    return table.tobytes()


def unpack_owners(owners: bytes) -> "array[int]":
    """Return the owner table as an array of indexes."""
    table = array("H")
    table.frombytes(owners)
    if sys.byteorder == "big":
        table.byteswap()
    return table


@dataclass(frozen=True, slots=True, eq=False)
class ShardMap:
    """Who owns each slot, in one version.

    Compared by digest. The digest is computed when the map is made; `validate` is separate because
    a received map must be refused with a reason, not half made.
    """

    version: MapVersion
    slots: int
    workers: tuple[Worker, ...]
    """Ordered by UUID."""
    owners: bytes
    """One little-endian u16 index into workers for each slot; UNASSIGNED only in an empty map."""
    moving: Mapping[int, Move] = field(default_factory=dict)
    fenced: Mapping[int, int] = field(default_factory=dict)
    """slot -> epoch: an owner that last applied an older map drops what it holds of the slot,
    because blocks of it may have been deleted and nobody is left to say which."""
    tenant_generations: Mapping[bytes, int] = field(default_factory=dict)
    """Tenant tag -> generation; blocks of the tenant with an older generation are misses."""
    intentional_empty: bool = False
    replicas: int = 1
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        for name in ("moving", "fenced", "tenant_generations"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        object.__setattr__(self, "digest", sha256(canonical_form(self)).digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardMap) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def owner_index(self, slot: int) -> int:
        """Return the owner's index into workers, UNASSIGNED in an empty map."""
        return int.from_bytes(self.owners[2 * slot : 2 * slot + 2], "little")

    def owner(self, slot: int) -> Worker | None:
        """Return the owner of a slot, None in an empty map."""
        index = self.owner_index(slot)
        return None if index == UNASSIGNED else self.workers[index]

    def previous_owners(self, slot: int) -> tuple[int, ...]:
        """Return indexes of the workers to ask after the owner missed, newest first."""
        move = self.moving.get(slot)
        if move is None:
            return ()
        return tuple(i for i in move.previous if self.workers[i].state != WorkerState.LOST)

    def index_of(self, uuid: bytes) -> int | None:
        """Return a worker's index, None when the map does not name it."""
        for index, worker in enumerate(self.workers):
            if worker.uuid == uuid:
                return index
        return None

    def slots_of(self, index: int) -> tuple[int, ...]:
        """Return the slots that a worker owns, ascending."""
        return tuple(s for s, owner in enumerate(unpack_owners(self.owners)) if owner == index)

    def validate(self) -> None:
        """Raise MapInvalid naming the first broken invariant."""
        _check_version(self.version)
        _check_workers(self.workers)
        _check_owners(self)
        _check_moving(self)
        for slot, epoch in self.fenced.items():
            _require(0 <= slot < self.slots, f"fenced slot {slot} of {self.slots}")
            _require(1 <= epoch <= self.version.epoch, f"slot {slot} fenced in epoch {epoch}")
        for tag, generation in self.tenant_generations.items():
            _require(len(tag) == limits.TENANT_TAG_BYTES, f"a tenant tag of {len(tag)} bytes")
            _require(1 <= generation < 1 << 32, f"tenant generation {generation}")


def canonical_form(shard_map: ShardMap) -> bytes:
    """Return the bytes that the digest covers: every field, in one order, in one encoding.

    Not the protobuf encoding: that may differ between versions of its library.
    """
    version = shard_map.version
    out = bytearray(_CANONICAL_MAGIC)
    out += version.lineage
    out += struct.pack(
        "<QQIIB", version.term, version.epoch, shard_map.slots, shard_map.replicas,
        shard_map.intentional_empty,
    )  # fmt: skip
    out += _text(SLOT_HASH)
    out += struct.pack("<I", len(shard_map.workers))
    for worker in shard_map.workers:
        out += worker.uuid
        out += struct.pack("<QIBd", worker.incarnation, worker.port, worker.state, worker.weight)
        for text in (worker.node_name, worker.host, worker.failure_domain):
            out += _text(text)
    out += struct.pack("<I", len(shard_map.owners)) + shard_map.owners
    out += struct.pack("<I", len(shard_map.moving))
    for slot in sorted(shard_map.moving):
        move = shard_map.moving[slot]
        out += struct.pack("<IQI", slot, move.since_epoch, len(move.previous))
        out += struct.pack(f"<{len(move.previous)}I", *move.previous)
    out += struct.pack("<I", len(shard_map.fenced))
    for slot in sorted(shard_map.fenced):
        out += struct.pack("<IQ", slot, shard_map.fenced[slot])
    out += struct.pack("<I", len(shard_map.tenant_generations))
    for tag in sorted(shard_map.tenant_generations):
        out += tag + struct.pack("<I", shard_map.tenant_generations[tag])
    return bytes(out)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<I", len(encoded)) + encoded


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise MapInvalid(f"shard map refused: {broken}")


def _check_version(version: MapVersion) -> None:
    _require(len(version.lineage) == UUID_BYTES, f"lineage of {len(version.lineage)} bytes")
    _require(0 <= version.term < 1 << 32, f"term {version.term} does not fit the wire")
    _require(1 <= version.epoch < 1 << 63, f"epoch {version.epoch}")


def _check_workers(workers: tuple[Worker, ...]) -> None:
    _require(len(workers) <= limits.WORKERS_MAX, f"{len(workers)} workers")
    uuids = [worker.uuid for worker in workers]
    _require(all(a < b for a, b in itertools.pairwise(uuids)), "workers not in order")
    for worker in workers:
        name = worker.uuid.hex()
        _require(len(worker.uuid) == UUID_BYTES, f"worker uuid of {len(worker.uuid)} bytes")
        _require(1 <= worker.port <= 0xFFFF, f"worker {name} on port {worker.port}")
        host_ok = 1 <= len(worker.host) <= limits.HOST_NAME_BYTES_MAX and worker.host.isascii()
        _require(host_ok, f"worker {name} has host {worker.host[:80]!r}")  # hints carry ASCII
        _require(0 <= worker.incarnation < 1 << 64, f"worker {name}'s incarnation")
        weight_ok = math.isfinite(worker.weight) and worker.weight > 0
        _require(weight_ok, f"worker {name} has weight {worker.weight}")


def _check_owners(shard_map: ShardMap) -> None:
    slots, workers = shard_map.slots, shard_map.workers
    _require(1 <= slots <= limits.SLOTS_MAX, f"{slots} slots")
    _require(shard_map.replicas == 1, f"{shard_map.replicas} replicas; this version knows 1")
    _require(len(shard_map.owners) == 2 * slots, f"{len(shard_map.owners)} bytes of owners")
    present = set(unpack_owners(shard_map.owners))
    if shard_map.intentional_empty:
        _require(not workers and present == {UNASSIGNED}, "an empty map that names workers")
        return
    _require(bool(workers), "no workers, and nobody says that this is meant")
    _require(UNASSIGNED not in present, "a slot without an owner")
    _require(max(present) < len(workers), f"a slot owned by worker {max(present)}")
    for index in present:
        lost = workers[index].state == WorkerState.LOST
        _require(not lost, f"a slot owned by the lost worker {workers[index].uuid.hex()}")


def _check_moving(shard_map: ShardMap) -> None:
    for slot, move in shard_map.moving.items():
        _require(0 <= slot < shard_map.slots, f"moving slot {slot} of {shard_map.slots}")
        previous = move.previous
        _require(
            1 <= len(previous) <= limits.PREVIOUS_OWNERS_MAX,
            f"slot {slot} with {len(previous)} previous owners",
        )
        _require(len(set(previous)) == len(previous), f"slot {slot} lists an owner twice")
        _require(
            all(0 <= index < len(shard_map.workers) for index in previous),
            f"slot {slot} names a previous owner that is no worker",
        )
        _require(
            shard_map.owner_index(slot) not in previous, f"slot {slot}'s owner is its previous one"
        )
        _require(
            1 <= move.since_epoch <= shard_map.version.epoch,
            f"slot {slot} moving since epoch {move.since_epoch}",
        )
