"""Which worker each slot should have in the end. Pure.

Rows tried in order, for one slot; `built` is what the builder gives it among all active workers:

| case       | the slot's owner                      | the slot should go to                  |
| ---------- | ------------------------------------- | -------------------------------------- |
| held still | is not lost, and nothing may move     | its owner                              |
| cordoned   | is cordoned                           | its owner                              |
| built      | any, and `built` is not cordoned      | `built`                                |
| stay       | is active, and `built` is cordoned    | its owner                              |
| spare      | is lost or draining                   | the builder's choice without cordoned  |
"""

from collections.abc import Collection, Sequence

from memkv.shardmap import Candidate, Scores, Worker, WorkerState, build_owners


class Goals:
    """Remembers what was built last: workers seldom change."""

    def __init__(self, scores: Scores) -> None:
        """`scores`: those that are known already; those of workers that have gone are dropped."""
        self._scores = scores
        self._built: dict[bool, tuple[tuple[Candidate, ...], int, tuple[bytes, ...]]] = {}

    def first(
        self, workers: Sequence[Worker], cordoned: Collection[bytes], slots: int
    ) -> tuple[bytes, ...]:
        """Return the owners of a first map, UUIDs. At least one worker must be active."""
        return self._build(workers, cordoned, slots, open_only=True)

    def next(
        self,
        owners: Sequence[bytes],
        workers: Sequence[Worker],
        cordoned: Collection[bytes],
        *,
        still: bool,
    ) -> tuple[bytes, ...]:
        """Return where the slots of a map should go. `still`: only those of lost workers may move.

        `workers` are those of the next map, of which at least one is active; `cordoned`: UUIDs.
        """
        states = {worker.uuid: worker.state for worker in workers}
        kept = {uuid for uuid in cordoned if states.get(uuid) is WorkerState.ACTIVE}
        built = self._build(workers, kept, len(owners), open_only=False)
        if not kept and not still:
            return built
        spare = self._build(workers, kept, len(owners), open_only=True)

        def goal(slot: int, owner: bytes) -> bytes:
            state = states.get(owner, WorkerState.LOST)
            if state is not WorkerState.LOST and (still or owner in kept):
                return owner
            if built[slot] not in kept:
                return built[slot]
            return owner if state is WorkerState.ACTIVE else spare[slot]

        return tuple(goal(slot, owner) for slot, owner in enumerate(owners))

    def _build(
        self,
        workers: Sequence[Worker],
        cordoned: Collection[bytes],
        slots: int,
        *,
        open_only: bool,
    ) -> tuple[bytes, ...]:
        """`open_only`: leave out cordoned workers, unless nobody else is there."""
        active = [worker for worker in workers if worker.state is WorkerState.ACTIVE]
        if open_only:
            active = [worker for worker in active if worker.uuid not in cordoned] or active
        candidates = tuple(Candidate(worker.uuid, worker.weight) for worker in active)
        known = self._built.get(open_only)
        if known is not None and known[:2] == (candidates, slots):
            return known[2]
        owners = build_owners(candidates, slots, known=self._scores)
        if not open_only:
            self._scores.keep(candidates)
        made = tuple(candidates[index].uuid for index in owners)
        self._built[open_only] = candidates, slots, made
        return made
