"""Carries out what maps ask of a worker (see `plan`), and knows which map it may serve by.

A new map is served by at once, but for its closed slots; a thread does the work for those and opens
them. Rule: a slot is opened only after the memory on disk says what makes it safe to, so a crash
at any point leads to the same or more work, never to less. The first map of a process is served by
only after others were asked for a newer one (see `confirm`). Dropped tenants go before the map that
says so is served by: whoever serves by it has nothing left to give to others.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from memkv import limits
from memkv.clock import Clock
from memkv.node.moves.confirm import is_outdated
from memkv.node.moves.hearing import DeletingStore, Hearing
from memkv.node.moves.memory import MoveMemory, save_memory
from memkv.node.moves.pacer import Pacer
from memkv.node.moves.peer import Connect
from memkv.node.moves.plan import Plan, dropped_tenants, make_plan
from memkv.node.moves.pull_slot import PullCounts, PullStore
from memkv.node.moves.puller import Puller, Wanted
from memkv.node.moves.view import without_owners, without_slots
from memkv.shardmap import ShardMap

log = logging.getLogger("memkv.node")


class MoveStore(PullStore, DeletingStore, Protocol):
    """The part of a store that moves use. Thread-safe."""

    @property
    def generation(self) -> int:
        """The number of the last put or delete accepted."""

    def purge_slots(self, slots: Iterable[int]) -> dict[int, int]:
        """Forget the blocks of slots; return the floor of each."""

    def purge_tenant(self, tenant_tag: bytes) -> int:
        """Forget a tenant's blocks; return the floor."""


SetMap = Callable[[ShardMap, Mapping[int, int], int], None]
"""Serve by this map; slot on its way here -> generation since when its deletes are known; epoch of
the oldest map by which a copy may have been found."""


@dataclass(frozen=True, slots=True)
class MoveStatistics:
    """A moment of a worker's moves."""

    lineage: bytes
    applied_epoch: int
    """Of the newest map all of whose slots were taken over, deletes included."""
    finished: frozenset[tuple[int, int]]
    """(slot, since_epoch) of moves that ended and that the map still lists."""
    closed_slots: int
    """Owned by the map, not served yet."""
    moving_slots: int
    """On their way here and not all copied."""
    pulls: PullCounts


class MoveKeeper:
    """Owns which map a worker serves by. `offer` may be called by any thread."""

    def __init__(
        self,
        me: bytes,
        store: MoveStore,
        connect: Connect,
        set_map: SetMap,
        state_file: Path,
        memory: MoveMemory,
        clock: Clock,
        served_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """`memory`: what `state_file` says, or what `first_memory` made of its absence."""
        self._me = me
        self._store = store
        self._connect = connect
        self._set_map = set_map
        self._state_file = state_file
        self._changed = threading.Condition()
        self._memory = memory
        self._newest: ShardMap | None = None
        self._plan = Plan()
        self._done: ShardMap | None = None
        self._closed: set[int] = set()
        self._finished: set[tuple[int, int]] = set()
        self._applied = (memory.lineage, memory.epoch)
        self._confirmed = not memory.heard  # without a past there is nothing outdated to serve
        self._copies_from_epoch = 0
        self._stopping = False
        self._hearing = Hearing(store, connect, clock)
        pacer = Pacer(clock.monotonic_ns, served_bytes)
        self._puller = Puller(
            store, connect, pacer, clock, self._wanted, self._is_wanted, self._slot_finished
        )
        self._thread = threading.Thread(target=self._run, name="memkv-moves", daemon=True)

    def start(self) -> None:
        """Begin with the work that maps bring."""
        self._thread.start()
        self._puller.start()

    def stop(self) -> None:
        """End after the requests under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._puller.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def offer(self, shard_map: ShardMap) -> bool:
        """Serve by this map, which replaces earlier ones; closed slots open by and by.

        False: it is older than a map that this worker served by, perhaps in an earlier life.
        """
        with self._changed:
            if self._is_old(shard_map):
                return False
            plan = make_plan(self._newest, shard_map, self._me, self._memory)
            memory = self._memory.in_lineage(shard_map.version.lineage)
            dropped = dropped_tenants(shard_map, self._memory)
            for tag, generation in dropped.items():
                floor = self._store.purge_tenant(tag)
                memory = memory.dropped_tenant(tag, generation, floor)
            if dropped or self._newest is None:
                self._copies_from_epoch = shard_map.version.epoch
            if plan.stale:
                memory = memory.emptied(self._store.purge_slots(plan.stale))
            self._memory = memory.serving(shard_map.version.epoch, self._store.generation)
            self._newest, self._plan, self._closed = shard_map, plan, set(plan.closed)
            moves = {(slot, move.since_epoch) for slot, move in plan.pull.items()}
            self._finished &= moves
            self._serve()
            self._changed.notify_all()
        self._puller.wake()
        return True

    def generation_at(self, epoch: int) -> int:
        """Return a generation of the store from before any delete by a newer map was accepted."""
        return self._memory.generation_at(epoch)

    def statistics(self) -> MoveStatistics:
        """Return a moment of the moves."""
        with self._changed:
            lineage, epoch = self._applied
            moving = len(self._plan.pull) - len(self._finished)
            return MoveStatistics(
                lineage, epoch, frozenset(self._finished), len(self._closed), moving,
                replace(self._puller.counts),
            )  # fmt: skip

    # --- maps --------------------------------------------------------------------------------
    def _is_old(self, shard_map: ShardMap) -> bool:
        version, newest = shard_map.version, self._newest
        if newest is not None and version.same_lineage(newest.version):
            return not version.newer_than(newest.version)
        history = self._memory.history
        served = history[-1][0] if history else 0
        return version.lineage == self._memory.lineage and version.epoch < served

    def _serve(self) -> None:
        """Let the server go by the newest map without the closed slots. Under the lock."""
        shard_map = self._newest
        assert shard_map is not None
        me = shard_map.index_of(self._me)
        if not self._confirmed:
            seen = without_owners(shard_map)
        else:
            seen = shard_map if me is None else without_slots(shard_map, me, self._closed)
        opened = {slot: generation for slot, (_, generation) in self._memory.opened.items()}
        self._set_map(seen, opened, self._copies_from_epoch)

    # --- the thread --------------------------------------------------------------------------
    def _run(self) -> None:
        pause_ms = limits.TAKEOVER_RETRY_MS_MIN
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._newest is not self._done)
                if self._stopping:
                    return
            if self.step():
                pause_ms = limits.TAKEOVER_RETRY_MS_MIN
            else:
                self._rest(pause_ms)
                pause_ms = min(2 * pause_ms, limits.TAKEOVER_RETRY_MS_MAX)

    def step(self) -> bool:
        """Try to do what the newest map asks; return whether nothing of it is left. For the thread,
        or for a caller who did not `start` one."""
        with self._changed:
            shard_map, plan = self._newest, self._plan
        if shard_map is None or shard_map is self._done:
            return True
        if not self._confirm(shard_map) or not self._take_over(shard_map, plan):
            return False
        self._done = shard_map
        return True

    def pull_step(self) -> bool:
        """Try once to copy each slot that is on its way; return whether none is left. As `step`."""
        return self._puller.step()

    def _confirm(self, shard_map: ShardMap) -> bool:
        """Serve by the first map of this process unless somebody knows a newer one."""
        if self._confirmed:
            return True
        if is_outdated(shard_map, self._me, self._connect):
            log.info("others go by a newer map than %s: waiting for it", shard_map.version)
            return False
        with self._changed:
            self._confirmed = True
            self._serve()
        return True

    def _take_over(self, shard_map: ShardMap, plan: Plan) -> bool:
        """Do what a map asks; return whether all is done, or a newer map makes it superfluous."""
        try:
            self._empty(plan)
            # What was to be heard of may have been forgotten since the plan was made, while the
            # thread was still at work on an older one: then there is nothing to hear of.
            forgotten = frozenset(plan.hear) - frozenset(self._memory.heard)
            if not self._open(shard_map, plan, plan.start | plan.purge | plan.keep | forgotten):
                return True
            left = {slot: previous for slot, previous in plan.hear.items() if slot in self._closed}
            self._hear(shard_map, plan, left)
            with self._changed:
                if self._newest is not shard_map:
                    return True
                if self._closed:
                    return False
                applied = replace(self._memory, epoch=shard_map.version.epoch)
                save_memory(self._state_file, applied)
                self._memory = applied
                self._applied = applied.lineage, applied.epoch
                return True
        except OSError as error:
            # Nothing was opened that is not written down; the publisher sees an old epoch.
            log.warning("cannot keep %s: %s; slots stay closed", self._state_file, error.strerror)
            return False

    def _rest(self, pause_ms: int) -> None:
        """Wait before another try, unless there is a newer map."""
        with self._changed:
            shard_map = self._newest
            self._changed.wait_for(
                lambda: self._stopping or self._newest is not shard_map, pause_ms / 1000
            )

    def _empty(self, plan: Plan) -> None:
        """Forget the blocks of slots that are gone; what is done is not done again."""
        gone = (plan.drop | plan.purge) & self._memory.heard.keys()
        wanted = [slot for slot in sorted(gone) if slot in plan.drop or slot in self._closed]
        if wanted:
            floors = self._store.purge_slots(wanted)
            with self._changed:
                self._memory = self._memory.emptied(floors)

    def _open(self, shard_map: ShardMap, plan: Plan, slots: frozenset[int]) -> bool:
        """Write down that all deletes of these slots are known, then serve them.

        False: a newer map came.
        """
        moves = {slot: move.since_epoch for slot, move in plan.pull.items()}
        with self._changed:
            if self._newest is not shard_map:
                return False
            generation = self._store.generation
            opened = {
                slot: (moves[slot], generation if slot in self._closed else 0)
                for slot in slots & moves.keys()
                if self._memory.opened.get(slot, (0, 0))[0] != moves[slot]
            }
            memory = self._memory.settled(slots, shard_map.version.epoch, opened).moving(moves)
            save_memory(self._state_file, memory)
            self._memory = memory
            self._closed -= slots
            self._serve()
        self._puller.wake()
        return True

    def _hear(
        self, shard_map: ShardMap, plan: Plan, slots: Mapping[int, tuple[int, ...]]
    ) -> None:
        """Take over the deletes of slots from their previous owners; opens what succeeds."""
        ready: set[int] = set()

        def heard(slot: int, complete: bool) -> bool:
            if not complete:
                log.info("slot %d begins empty: not all of its deletes are known any more", slot)
                floors = self._store.purge_slots([slot])
                with self._changed:
                    self._memory = self._memory.emptied(floors)
            ready.add(slot)
            if len(ready) >= limits.HEARD_SLOTS_AT_ONCE:
                self._open(shard_map, plan, frozenset(ready))
                ready.clear()
            return self._newest is shard_map and not self._stopping

        self._hearing.run(shard_map, slots, self._memory.heard, heard)
        if ready:
            self._open(shard_map, plan, frozenset(ready))

    # --- pulls -------------------------------------------------------------------------------
    def _wanted(self) -> Wanted:
        with self._changed:
            slots = {
                slot: (move, self._memory.opened[slot][1])
                for slot, move in self._plan.pull.items()
                if self._is_open_move(slot, move.since_epoch)
            }
            return Wanted(self._newest, slots)

    def _is_wanted(self, slot: int, since_epoch: int) -> bool:
        with self._changed:
            move = self._plan.pull.get(slot)
            known = move is not None and move.since_epoch == since_epoch
            return known and self._is_open_move(slot, since_epoch)

    def _is_open_move(self, slot: int, since_epoch: int) -> bool:
        """Say whether a move of the plan is open and has blocks left to copy. Under the lock."""
        return (
            slot not in self._closed
            and (slot, since_epoch) not in self._finished
            and self._memory.opened.get(slot, (0, 0))[0] == since_epoch
        )

    def _slot_finished(self, slot: int, since_epoch: int) -> None:
        with self._changed:
            move = self._plan.pull.get(slot)
            if move is not None and move.since_epoch == since_epoch:
                self._finished.add((slot, since_epoch))


def first_memory(store: MoveStore, slots: int, *, formatted: bool) -> MoveMemory:
    """Return the memory of a worker that has none on disk.

    Unless its store was made this moment, nobody knows which of its blocks were deleted since: they
    are forgotten.
    """
    if formatted:
        return MoveMemory()
    log.warning("what this worker knew of its slots is lost: its blocks are forgotten")
    return MoveMemory(floors=store.purge_slots(range(slots)))
