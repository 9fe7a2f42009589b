"""The thread that copies blocks of slots on their way to this worker from their previous owners.

One slot at a time, one block at a time in memory, and never faster than the pacer says. What fails
is tried again after a pause; a move that the newest map does not list any more is given up.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from memkv import limits
from memkv.clock import Clock
from memkv.errors import RetryLater
from memkv.node.moves.pacer import Pacer
from memkv.node.moves.peer import Connect, Peer
from memkv.node.moves.pull_slot import PullCounts, PullStore, SlotPull
from memkv.shardmap import Move, ShardMap

log = logging.getLogger("memkv.node")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Moves whose blocks are still to be copied, by one map."""

    shard_map: ShardMap | None = None
    slots: Mapping[int, tuple[Move, int]] = field(default_factory=dict)
    """Slot -> (its move, generation for `PutRequest.unless_deleted_since`)."""


class Puller:
    """Works on what `wanted` returns until nothing is left. `wake` when that may have changed."""

    def __init__(
        self,
        store: PullStore,
        connect: Connect,
        pacer: Pacer,
        clock: Clock,
        wanted: Callable[[], Wanted],
        is_wanted: Callable[[int, int], bool],
        finished: Callable[[int, int], None],
    ) -> None:
        """`is_wanted(slot, since_epoch)`: whether one move of `wanted` still is, asked often;
        `finished(slot, since_epoch)`: every block of the slot is here."""
        self._store = store
        self._connect = connect
        self._pacer = pacer
        self._clock = clock
        self._wanted = wanted
        self._is_wanted = is_wanted
        self._finished = finished
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memkv-pull", daemon=True)
        self.counts = PullCounts()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request under way, which takes PEER_TIMEOUT_MS at most."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """There may be more to pull, or less. Any thread may call this."""
        self._woken.set()

    def _run(self) -> None:
        pause_ms = limits.PULL_RETRY_MS_MIN
        while not self._stopping.is_set():
            self._woken.clear()
            before = self.counts.blocks
            if self.step():
                self._woken.wait()
            else:
                self._woken.wait(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, limits.PULL_RETRY_MS_MAX)
            if self._woken.is_set() or self.counts.blocks > before:
                pause_ms = limits.PULL_RETRY_MS_MIN

    def step(self) -> bool:
        """Try each wanted slot once; return whether none is left."""
        wanted = self._wanted()
        if wanted.shard_map is None or not wanted.slots:
            return True
        return self._round(wanted.shard_map, wanted.slots) and not self._wanted().slots

    def _round(self, shard_map: ShardMap, slots: Mapping[int, tuple[Move, int]]) -> bool:
        """Try each slot once; return whether all were copied or are not wanted any more."""
        peers: dict[int, Peer] = {}
        failed: set[int] = set()
        clean = True
        try:
            for slot, (move, since) in slots.items():
                if self._stopping.is_set():
                    break
                if not failed.isdisjoint(move.previous):
                    clean = False  # its peer failed a moment ago; others first
                    continue
                clean = self._slot(shard_map, slot, move, since, peers, failed) and clean
        finally:
            for peer in peers.values():
                peer.close()
        return clean

    def _slot(
        self, shard_map: ShardMap, slot: int, move: Move, since: int, peers: dict[int, Peer],
        failed: set[int],
    ) -> bool:  # fmt: skip
        complete = True
        for index in move.previous:
            if not self._is_wanted(slot, move.since_epoch):
                return True
            try:
                if index not in peers:
                    peers[index] = self._connect(shard_map.workers[index], shard_map.version)
                pull = SlotPull(peers[index], self._store, slot, since, self.counts, self._clock)
                complete = pull.run(lambda size: self._go_on(size, slot, move)) and complete
            except RetryLater as error:
                self.counts.failures += 1
                log.info("slot %d is not copied yet, trying again: %s", slot, error)
                failed.add(index)
                broken = peers.pop(index, None)
                if broken is not None:
                    broken.close()
                return False
        if complete:
            self._finished(slot, move.since_epoch)
        return complete or not self._is_wanted(slot, move.since_epoch)

    def _go_on(self, received_bytes: int, slot: int, move: Move) -> bool:
        self._stopping.wait(self._pacer.took(received_bytes))
        return not self._stopping.is_set() and self._is_wanted(slot, move.since_epoch)
