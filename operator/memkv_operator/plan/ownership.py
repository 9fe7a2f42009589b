"""Which nodes a map needs."""

from collections import Counter
from collections.abc import Collection, Mapping

from memkv.shardmap import ShardMap, WorkerState, unpack_owners


def nodes_in_map(shard_map: ShardMap | None) -> frozenset[str]:
    """Return the names of nodes that own slots, or did of slots that still move."""
    if shard_map is None:
        return frozenset()
    indexes = set(unpack_owners(shard_map.owners))
    for move in shard_map.moving.values():
        indexes.update(move.previous)
    return frozenset(shard_map.workers[index].node_name for index in indexes)


def slots_by_node(shard_map: ShardMap | None) -> Mapping[str, int]:
    """Return how many slots each node owns; those that own none are left out."""
    if shard_map is None:
        return {}
    counts: Counter[str] = Counter()
    for index, slots in Counter(unpack_owners(shard_map.owners)).items():
        counts[shard_map.workers[index].node_name] += slots
    return counts


def unserved_slots(shard_map: ShardMap, serving: Collection[str]) -> int:
    """Return how many slots have an owner that does not serve, so that their keys miss until it is
    back or they are given to others. A map has no slot without an owner.

    `serving`: UUIDs, in hex, of the workers that answer and serve.
    """
    counts = Counter(unpack_owners(shard_map.owners))
    return sum(
        slots
        for index, slots in counts.items()
        if shard_map.workers[index].state is WorkerState.LOST
        or shard_map.workers[index].uuid.hex() not in serving
    )


def lost_nodes(shard_map: ShardMap | None) -> frozenset[str]:
    """Return the nodes that have a lost worker."""
    return nodes_in_state(shard_map, WorkerState.LOST)


def nodes_in_state(shard_map: ShardMap | None, state: WorkerState) -> frozenset[str]:
    """Return the nodes that have a worker of this state."""
    workers = shard_map.workers if shard_map is not None else ()
    return frozenset(worker.node_name for worker in workers if worker.state is state)
