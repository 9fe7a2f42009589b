"""How much of a prompt is stored, and where."""

from __future__ import annotations

from collections.abc import Sequence

from memkv.client.routing import Keys
from memkv.shardmap.cache import Route
from memkv.shardmap.map import UNASSIGNED


def leading(found: Sequence[int]) -> int:
    """Return how many of the first answers of EXISTS are 1."""
    return next((count for count, status in enumerate(found) if status != 1), len(found))


def by_node(route: Route, keys: Keys, count: int) -> dict[str, int]:
    """Return how many of the first `count` keys each node owns, nodes with none left out."""
    nodes: dict[str, int] = {}
    for position in range(count):
        owner = route.owner_index(keys.slot_of(position))
        if owner != UNASSIGNED:
            name = route.workers[owner].node_name
            nodes[name] = nodes.get(name, 0) + 1
    return nodes
