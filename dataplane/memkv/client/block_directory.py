"""What a router makes of updates: which worker holds which blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memkv.client.block_watch import BlockUpdate, Change

STORED = 0


class BlockDirectory:
    """Digests by worker. For one thread."""

    def __init__(self) -> None:
        self._held: dict[bytes, set[bytes]] = {}
        self._names: dict[bytes, str] = {}
        self._synced: set[bytes] = set()

    def apply(self, updates: Iterable[BlockUpdate]) -> None:
        """Take news in."""
        for update in updates:
            uuid = update.worker_uuid
            self._names[uuid] = update.node_name
            if update.change in (Change.GAP, Change.GONE):
                self._held.pop(uuid, None)
                self._synced.discard(uuid)
            elif update.change is Change.SYNCED:
                self._synced.add(uuid)
            held = self._held.setdefault(uuid, set())
            for event in update.events:
                if event.kind == STORED:
                    held.add(event.digest)
                else:
                    held.discard(event.digest)

    @property
    def blocks(self) -> int:
        """How many blocks are known."""
        return sum(len(held) for held in self._held.values())

    @property
    def synced(self) -> int:
        """Of how many workers everything is known."""
        return len(self._synced)

    def scores(self, digests: Sequence[bytes]) -> dict[str, int]:
        """Return how many of the leading blocks that are stored somewhere each node holds, as
        `Client.match_prefix_by_node` does, without a question to anyone."""
        nodes: dict[str, int] = {}
        for digest in digests:
            holders = {self._names[uuid] for uuid, held in self._held.items() if digest in held}
            if not holders:
                break
            for name in holders:
                nodes[name] = nodes.get(name, 0) + 1
        return nodes
