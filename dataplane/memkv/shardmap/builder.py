"""From workers and weights to an owner for each slot: weighted rendezvous hashing, then a cap.

Every slot ranks all workers by score(worker, slot) = -weight / ln((h + 1) / 2^64), where h is
xxh3_64 of the worker's UUID and the slot (u32, little-endian). A joining or leaving worker changes
only the slots it wins or held. Plain rendezvous leaves some workers 20% over their share; the
bounded-load pass hands slots out strongest preference first and skips workers at their cap, so the
slots that spill over are those that cared least.
"""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memkv import limits
from memkv._hotpath import xxh3_64
from memkv.errors import CallerError, InternalBug
from memkv.shardmap.map import UUID_BYTES

_SPACE = float(1 << 64)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may own slots."""

    uuid: bytes
    weight: float = 1.0


def score(uuid: bytes, weight: float, slot: int) -> float:
    """Return how strongly a slot wants a worker; larger wins, ties go to the smaller UUID."""
    hashed = xxh3_64(uuid + slot.to_bytes(4, "little"))
    # hashed + 1 may round to 2^64 as a float: ln 1 = 0, the strongest score there is.
    logarithm = math.log((hashed + 1) / _SPACE)
    return math.inf if logarithm == 0.0 else -weight / logarithm


class Scores:
    """Scores of workers for all slots, kept from one map to the next: 8 bytes a pair.

    A thousand workers take seconds to score and a fraction of one to compare, so whoever must not
    stop for so long scores each worker as it comes (`add`).
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._rows: dict[bytes, tuple[float, array[float]]] = {}

    def add(self, uuid: bytes, weight: float) -> "array[float]":
        """Return a worker's scores by slot."""
        known = self._rows.get(uuid)
        if known is not None and known[0] == weight:
            return known[1]
        row = array("d", (score(uuid, weight, slot) for slot in range(self.slots)))
        self._rows[uuid] = weight, row
        return row

    def keep(self, candidates: Sequence[Candidate]) -> None:
        """Forget all other workers."""
        wanted = {candidate.uuid for candidate in candidates}
        self._rows = {uuid: row for uuid, row in self._rows.items() if uuid in wanted}


def load_caps(weights: Sequence[float], slots: int, cap: float) -> list[int]:
    """Return the most slots each worker may own. Their sum is at least `slots`.

    Rounded up, so a single slot always has a home however many workers share few slots.
    """
    total = math.fsum(weights)
    return [math.ceil(cap * slots * weight / total) for weight in weights]


def build_owners(
    candidates: Sequence[Candidate],
    slots: int,
    *,
    cap: float = limits.LOAD_CAP,
    known: Scores | None = None,
) -> "array[int]":
    """Return for each slot an index into `candidates`. `known`: scores from earlier, of as many
    slots; they are added to.

    Pure: the same candidates in any order give the same worker to each slot. CallerError when there
    are no candidates, two have one UUID, a weight is not above 0 or the cap is below 1.
    """
    _check(candidates, slots, cap)
    order = sorted(range(len(candidates)), key=lambda i: candidates[i].uuid)
    weights = [candidates[i].weight for i in order]
    room = load_caps(weights, slots, cap)
    table = known if known is not None else Scores(slots)
    scores = [table.add(candidates[i].uuid, candidates[i].weight) for i in order]
    best = _best(scores)
    by_strength = sorted(range(slots), key=lambda s: (-scores[best[s]][s], s))
    owners = array("H", bytes(2 * slots))
    for slot in by_strength:
        winner = best[slot]
        if room[winner] == 0:
            winner = _next_with_room(scores, room, slot)
        room[winner] -= 1
        owners[slot] = order[winner]
    check_owners(candidates, owners, slots, cap)
    return owners


def _best(scores: "list[array[float]]") -> list[int]:
    """Return the worker that each slot wants most; of equals the first."""
    best, top = [0] * len(scores[0]), list(scores[0])
    for worker, row in enumerate(scores):
        for slot, value in enumerate(row):
            if value > top[slot]:
                best[slot], top[slot] = worker, value
    return best


def check_owners(
    candidates: Sequence[Candidate], owners: "array[int]", slots: int, cap: float
) -> None:
    """Raise InternalBug unless every slot has an owner and nobody is over the cap."""
    counts = Counter(owners)
    caps = load_caps([candidate.weight for candidate in candidates], slots, cap)
    if len(owners) != slots or not counts.keys() <= set(range(len(candidates))):
        raise InternalBug(f"{len(owners)} slots of {slots} have owners, {sorted(counts)}")
    over = [index for index, count in counts.items() if count > caps[index]]
    if over:
        raise InternalBug(f"{candidates[over[0]]} got {counts[over[0]]} slots, {caps[over[0]]} may")


def _next_with_room(scores: "list[array[float]]", room: list[int], slot: int) -> int:
    open_workers = [w for w in range(len(room)) if room[w] > 0]
    return max(open_workers, key=lambda w: (scores[w][slot], -w))


def _check(candidates: Sequence[Candidate], slots: int, cap: float) -> None:
    if not candidates or len(candidates) > limits.WORKERS_MAX:
        raise CallerError(f"cannot spread slots over {len(candidates)} workers")
    if not 1 <= slots <= limits.SLOTS_MAX:
        raise CallerError(f"{slots} slots; 1 to {limits.SLOTS_MAX} are possible")
    if not cap >= 1.0:
        raise CallerError(f"a load cap of {cap} leaves slots without a home")
    if len({candidate.uuid for candidate in candidates}) != len(candidates):
        raise CallerError("two workers have the same UUID")
    for candidate in candidates:
        if len(candidate.uuid) != UUID_BYTES:
            raise CallerError(f"a worker UUID of {len(candidate.uuid)} bytes")
        if not (math.isfinite(candidate.weight) and candidate.weight > 0):
            raise CallerError(f"weight {candidate.weight} of worker {candidate.uuid.hex()}")
