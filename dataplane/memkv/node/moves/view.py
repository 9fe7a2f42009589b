"""The shard map as a worker's server shall see it while it may not serve all of its slots. Pure."""

from collections.abc import Collection
from dataclasses import replace

from memkv.shardmap import UNASSIGNED, MapVersion, ShardMap, pack_owners, unpack_owners


def nobodys_map(slots: int) -> ShardMap:
    """Return the map of a worker that has not got one yet: nothing is its own, so it serves
    nothing, and any map is newer."""
    nowhere = MapVersion(bytes(16), 0, 0)
    return ShardMap(nowhere, slots, (), pack_owners([UNASSIGNED] * slots), intentional_empty=True)


def without_owners(shard_map: ShardMap) -> ShardMap:
    """Return the map in which nobody has anything, for as long as no one confirmed that it is still
    the newest: owners may have changed. Same version, for others to compare with theirs."""
    unassigned = pack_owners([UNASSIGNED] * shard_map.slots)
    return replace(shard_map, owners=unassigned, moving={})


def without_slots(shard_map: ShardMap, me: int, closed: Collection[int]) -> ShardMap:
    """Return the map in which `closed` slots are not this worker's.

    They belong to somebody else in it: to a previous owner where there is one, for that is where a
    block is found meanwhile. Same version, so hints made from it are no news to clients.
    """
    if not closed:
        return shard_map
    owners = unpack_owners(shard_map.owners)
    others = [index for index in range(len(shard_map.workers)) if index != me]
    for slot in closed:
        previous = shard_map.previous_owners(slot)
        owners[slot] = previous[0] if previous else (others[0] if others else UNASSIGNED)
    moving = {slot: move for slot, move in shard_map.moving.items() if slot not in closed}
    return replace(shard_map, owners=pack_owners(owners), moving=moving)
