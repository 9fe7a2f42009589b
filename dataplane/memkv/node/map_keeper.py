"""Carries out takeovers: one thread that brings a worker from map to map (see `takeover`)."""

import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from memkv import limits
from memkv.clock import Clock, deadline_after_ms
from memkv.errors import PeerGone, RetryLater
from memkv.metadata.files import write_durably
from memkv.node.peers import Peer
from memkv.node.takeover import Applied, open_moves, plan_takeover, without_slots
from memkv.shardmap import Move, ShardMap
from memkv.status import Status
from memkv.store.listing import ListedBlock
from memkv.wire.messages import ListKind

log = logging.getLogger("memkv.node")

PAGE_ITEMS = 256
DELETE_TIMEOUT_MS = 10_000
_OK = int(Status.OK).to_bytes(4, "little", signed=True)


class TakeoverStore(Protocol):
    """The part of a store that a takeover uses."""

    def list_slot(self, slot: int, cursor: int, limit: int) -> tuple[int, list[ListedBlock]]:
        """Return (next cursor or -1, blocks)."""

    def delete_tagged(self, tenant_tag: bytes, ids: bytes, deadline_ns: int) -> bytes:
        """Return an i32 status for each id once its tombstone is durable."""


class MapKeeper:
    """Owns which map a worker serves by. `offer` may be called by any thread."""

    def __init__(
        self,
        pool: str,
        uuid: bytes,
        store: TakeoverStore,
        set_map: Callable[[ShardMap], None],
        state_file: Path,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._uuid = uuid
        self._store = store
        self._set_map = set_map
        self._state_file = state_file
        self._clock = clock
        self._wakeup = threading.Condition()
        self._newest: ShardMap | None = None
        self._current: ShardMap | None = None
        self._stopping = False
        self.applied = _read_applied(state_file)
        self.finished: frozenset[tuple[int, int]] = frozenset()
        self.closed_slots = 0
        self._thread = threading.Thread(target=self._run, name="memkv-takeover", daemon=True)

    def start(self) -> None:
        """Begin with the work that maps bring."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def offer(self, shard_map: ShardMap) -> None:
        """Serve by this map, which replaces all earlier ones. Closed slots open by and by."""
        plan = plan_takeover(shard_map, shard_map.index_of(self._uuid), self.applied)
        with self._wakeup:
            self._newest = shard_map
            self._serve(shard_map, plan.closed)
            self._wakeup.notify_all()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wakeup:
                if not self._stopping and self._newest is self._current:
                    self._wakeup.wait(limits.MOVE_CHECK_INTERVAL_MS / 1000)
                if self._stopping:
                    return
                shard_map = self._newest
            if shard_map is None:
                continue
            if shard_map is not self._current:
                self._take_over(shard_map)
            else:
                self._check_moves(shard_map)

    def _take_over(self, shard_map: ShardMap) -> None:
        """Work until the map is applied or a newer one is there."""
        me = shard_map.index_of(self._uuid)
        plan = plan_takeover(shard_map, me, self.applied)
        closed = set(plan.closed)
        while closed and not self._superseded(shard_map):
            try:
                for slot in plan.purge & closed:
                    self._purge(slot)
                    closed.discard(slot)
                wanted = {slot: prev for slot, prev in plan.hear.items() if slot in closed}
                self._hear(shard_map, wanted, closed)
            except RetryLater as error:
                log.info("slots stay closed, trying again: %s", error)
                self._rest(shard_map)
            with self._wakeup:
                if self._newest is shard_map:
                    self._serve(shard_map, closed)
        if closed or self._superseded(shard_map):
            return
        applied = Applied(shard_map.version.lineage, shard_map.version.epoch)
        if self._keep(applied):
            self.applied = applied
            self._current = shard_map
            self._check_moves(shard_map)
        else:
            self._rest(shard_map)

    def _rest(self, shard_map: ShardMap) -> None:
        """Wait before another try, unless there is a newer map."""
        with self._wakeup:
            self._wakeup.wait_for(
                lambda: self._stopping or self._newest is not shard_map,
                limits.TAKEOVER_RETRY_MS / 1000,
            )

    def _superseded(self, shard_map: ShardMap) -> bool:
        with self._wakeup:
            return self._stopping or self._newest is not shard_map

    def _serve(self, shard_map: ShardMap, closed: Collection[int]) -> None:
        """Let the server go by the map without the closed slots. Under the lock."""
        me = shard_map.index_of(self._uuid)
        self.closed_slots = len(closed)
        self._set_map(shard_map if me is None else without_slots(shard_map, me, closed))

    def _keep(self, applied: Applied) -> bool:
        document = {"lineage": applied.lineage.hex(), "epoch": applied.epoch}
        try:
            write_durably(self._state_file, json.dumps(document).encode())
        except OSError as error:
            # Not believed to be applied, so after a restart the same work is done again.
            log.warning("cannot keep the map's epoch: %s", error.strerror)
            return False
        return True

    # --- deletes -----------------------------------------------------------------------------

    def _hear(
        self, shard_map: ShardMap, wanted: Mapping[int, tuple[int, ...]], closed: set[int]
    ) -> None:
        """Take over the deletes of slots from their previous owners; opens what succeeds."""
        peers: dict[int, Peer] = {}
        try:
            for slot, previous in wanted.items():
                if self._superseded(shard_map):
                    return
                for index in previous:
                    if index not in peers:
                        worker = shard_map.workers[index]
                        peers[index] = Peer(self._pool, self._uuid, worker, self._clock)
                    self._hear_slot(peers[index], slot)
                closed.discard(slot)
        finally:
            for peer in peers.values():
                peer.close()

    def _hear_slot(self, peer: Peer, slot: int) -> None:
        complete = True
        for page in peer.pages(slot, ListKind.TOMBSTONES):
            complete = complete and page.complete
            self._delete([(entry.tenant_tag, entry.block_id) for entry in page.entries])
        if not complete:
            self._purge(slot)

    def _purge(self, slot: int) -> None:
        """Delete everything of a slot, so that it stays deleted after a restart."""
        for blocks in self._own_pages(slot):
            self._delete([(block.tenant_tag, block.block_id) for block in blocks])

    def _delete(self, entries: list[tuple[bytes, bytes]]) -> None:
        by_tag: dict[bytes, list[bytes]] = {}
        for tag, block_id in entries:
            by_tag.setdefault(tag, []).append(block_id)
        for tag, ids in by_tag.items():
            deadline_ns = deadline_after_ms(self._clock, DELETE_TIMEOUT_MS)
            statuses = self._store.delete_tagged(tag, b"".join(ids), deadline_ns)
            if statuses != _OK * len(ids):
                raise RetryLater("the drive did not take a delete in time")

    # --- the end of moves --------------------------------------------------------------------

    def _check_moves(self, shard_map: ShardMap) -> None:
        """Find moves whose blocks are all here, and report them."""
        me = shard_map.index_of(self._uuid)
        moves = open_moves(shard_map, me)
        ended = {entry for entry in self.finished if _names(moves, entry)}
        peers: dict[int, Peer] = {}
        try:
            for slot, move in moves.items():
                if self._superseded(shard_map):
                    break
                if (slot, move.since_epoch) in ended:
                    continue
                for index in move.previous:
                    if index not in peers:
                        worker = shard_map.workers[index]
                        peers[index] = Peer(self._pool, self._uuid, worker, self._clock)
                if all(self._has_all_of(peers[index], slot) for index in move.previous):
                    ended.add((slot, move.since_epoch))
        except PeerGone as error:
            log.info("cannot see whether moves ended: %s", error)
        finally:
            for peer in peers.values():
                peer.close()
            self.finished = frozenset(ended)

    def _has_all_of(self, peer: Peer, slot: int) -> bool:
        theirs = {
            (entry.tenant_tag, entry.block_id)
            for page in peer.pages(slot, ListKind.BLOCKS)
            for entry in page.entries
        }
        if theirs:
            for blocks in self._own_pages(slot):
                theirs -= {(block.tenant_tag, block.block_id) for block in blocks}
        return not theirs

    def _own_pages(self, slot: int) -> list[list[ListedBlock]]:
        pages: list[list[ListedBlock]] = []
        cursor = 0
        while cursor >= 0:
            cursor, blocks = self._store.list_slot(slot, cursor, PAGE_ITEMS)
            pages.append(blocks)
        return pages


def _names(moves: Mapping[int, Move], entry: tuple[int, int]) -> bool:
    move = moves.get(entry[0])
    return move is not None and move.since_epoch == entry[1]


def _read_applied(path: Path) -> Applied:
    """Return what was kept; nothing for a missing or damaged file: all work is done again."""
    try:
        document = json.loads(path.read_bytes())
        return Applied(bytes.fromhex(document["lineage"]), int(document["epoch"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Applied()
