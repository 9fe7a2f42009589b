"""Whether a key is this worker's, by one shard map. Immutable: a new map makes a new object.

| key's slot              | GET, EXISTS | DELETE | PUT, PIN |
| ----------------------- | ----------- | ------ | -------- |
| owned by this worker    | yes         | yes    | yes      |
| owned by it before      | yes         | yes    | no       |
| another worker's        | no          | no     | no       |
| there is no map at all  | yes         | yes    | yes      |

A previous owner still answers reads while blocks move, and takes deletes so that none of its blocks
comes back. A refusal names the owner when the map knows one.

A read names the epoch of a map that this worker must know for its answer to count (0: any). By an
older one it may take itself for the owner of a slot that was another's meanwhile, with deletes that
it has not heard of: then every key of the request is another worker's.

A delete is judged by two maps, since it counts only when everyone who may have the block took it.
Where the sender's is older than the move of the slot, it knows too few: the delete is done and
answered with WRONG_OWNER. Where this worker's is older than the sender's, it is refused whole.
"""

from array import array
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from memkv import limits
from memkv._hotpath import group_by_owner, slots_of
from memkv.shardmap import UNASSIGNED, ShardMap, pack_owners, unpack_owners
from memkv.wire.hints import Hint
from memkv.wire.messages import NO_LINEAGE

_MINE, _ELSEWHERE = 0, 1
_NONE: Mapping[int, int] = MappingProxyType({})
_FEW = 16  # bytes of slots up to which looking at each is cheaper than grouping them


class Ownership:
    """Decides for whole batches without a step of Python for each served key."""

    def __init__(
        self,
        worker_uuid: bytes,
        shard_map: ShardMap | None,
        deletes_known_since: Mapping[int, int] = _NONE,
        copies_from_epoch: int = 0,
    ) -> None:
        """Without a map (a worker that stands alone) everything is served.

        `deletes_known_since`: slot on its way here -> generation of the store since when it has
        every delete of the slot; nothing is known to be missing for a slot without an entry.
        `copies_from_epoch`: copies found by a map before this one may be of a dropped tenant.
        """
        self.shard_map = shard_map
        self._deletes_known_since = deletes_known_since
        self._copies_from_epoch = copies_from_epoch
        self.lineage, self.term, self.epoch = NO_LINEAGE, 0, 0
        self._reads = self._writes = b""
        if shard_map is not None:
            version = shard_map.version
            self.lineage, self.term, self.epoch = version.lineage, version.term, version.epoch
            me = shard_map.index_of(worker_uuid)
            owners = unpack_owners(shard_map.owners)
            owned = {slot for slot, index in enumerate(owners) if index == me}
            before = {slot for slot, move in shard_map.moving.items() if me in move.previous}
            self._writes = _table(shard_map.slots, owned)
            self._reads = _table(shard_map.slots, owned | before)

    def is_behind(self, epoch: int) -> bool:
        """Return whether this worker goes by an older map than that of a request."""
        return self.shard_map is not None and self.epoch < epoch

    def copies_since(self, block_id: bytes, epoch: int) -> int | None:
        """Return the generation after which a delete outweighs a copy of this block; None: copies
        of it are not wanted (any more), since its slot is not on its way here, or only since a
        later map than that of `epoch` by which the copy was found."""
        if self.shard_map is None:
            return None
        slot = int.from_bytes(slots_of(block_id, self.shard_map.slots), "little")
        move = self.shard_map.moving.get(slot)
        if move is None or self._writes[2 * slot] != _MINE:
            return None
        if epoch < max(move.since_epoch, self._copies_from_epoch):
            return None
        return self._deletes_known_since.get(slot, 0)

    def half_deleted(self, ids: bytes, epoch: int) -> dict[int, Hint | None]:
        """Return the positions of ids whose slot moved after the map of a delete was made, with
        the owner: others than the sender knows may have the block."""
        if self.shard_map is None or epoch >= self.epoch:
            return {}
        moving = self.shard_map.moving
        slots = array("H", slots_of(ids, self.shard_map.slots))
        return {
            position: self._hint(position, slot)
            for position, slot in enumerate(slots)
            if slot in moving and moving[slot].since_epoch > epoch
        }

    def refused(self, ids: bytes, is_write: bool, epoch: int = 0) -> dict[int, Hint | None]:
        """Return the positions of ids that are another worker's, with the way there if known.

        `epoch`: of a map that this worker must know at least.
        """
        if self.shard_map is None:
            return {}
        if self.epoch < epoch:
            return dict.fromkeys(range(len(ids) // limits.BLOCK_ID_BYTES))
        slots = slots_of(ids, self.shard_map.slots)
        table = self._writes if is_write else self._reads
        if len(slots) <= _FEW and not any(table[2 * slot] for slot in array("H", slots)):
            return {}
        groups = group_by_owner(slots, table)
        owner, positions = groups[-1]
        if owner == _MINE:
            return {}
        slot_of = array("H", slots)
        return {
            position: self._hint(position, slot_of[position]) for position in array("I", positions)
        }

    def _hint(self, position: int, slot: int) -> Hint | None:
        assert self.shard_map is not None
        index = self.shard_map.owner_index(slot)
        if index == UNASSIGNED:
            return None
        owner = self.shard_map.workers[index]
        if not owner.host.isascii():
            return None  # a hint's host is ASCII; the client asks the metadata service instead
        return Hint(position, slot, self.epoch, self.term, owner.uuid, owner.host, owner.port)


def _table(slots: int, served: Iterable[int]) -> bytes:
    table = array("H", [_ELSEWHERE]) * slots
    for slot in served:
        table[slot] = _MINE
    return pack_owners(table)
