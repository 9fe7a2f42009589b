"""Operations driven by hand against scripted workers: who is asked, and what the caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from memkv._hotpath import Wave
from memkv.client.buffers import Scatter
from memkv.client.calls import Call, Operation, Request, ResultT
from memkv.client.copies import copy_operation
from memkv.client.operations import (
    delete_operation,
    exists_operation,
    get_operation,
    pin_operation,
    prefetch_operation,
    put_operation,
    why_operation,
)
from memkv.client.options import DEFAULT_PUT, PutOptions
from memkv.client.routing import Keys, hash_keys
from memkv.client.statistics import ClientCounters
from memkv.reasons import MissReason
from memkv.shardmap.cache import MapCache, OwnerHint, Route
from memkv.shardmap.map import MapVersion, Move, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.wire.hints import Hint, encode_hints

SLOTS = 8


@dataclass
class Answer(Request):
    """A finished request."""

    answers: list[int]
    hint_bytes: bytes = b""
    whole: int = 0
    stored: list[int] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.whole

    @property
    def statuses(self) -> list[int]:
        return self.answers

    @property
    def lengths(self) -> list[int]:
        return self.stored

    @property
    def hints(self) -> bytes:
        return self.hint_bytes

    def run(self) -> None: ...
    def submit(self, token: object | None, wave: Wave | None = None) -> None: ...
    def quarantine(self, token: object) -> None: ...
    def wait(self, deadline_ns: int) -> bool:
        return True

    def settled(self) -> None: ...


class Noted:
    def __init__(self) -> None:
        self.calls: list[Call] = []

    def finished(self, call: Call) -> None:
        self.calls.append(call)


class ScriptedWorkers:
    """Workers whose stored keys and answers a test sets; notes every request."""

    def __init__(self, shard_map: ShardMap) -> None:
        self.counters = ClientCounters()
        self.cache = MapCache()
        self.cache.offer(shard_map, trusted=True)
        self.stored: dict[int, dict[bytes, int]] = {}
        self.owners_known_by: dict[int, Hint] = {}
        self.down: set[int] = set()
        self.ending: set[int] = set()
        self.corrupt_until_verified: set[bytes] = set()
        self.always_corrupt: set[bytes] = set()
        self.asked: list[tuple[str, int, list[int], bool]] = []
        self.copied: list[int] = []
        self.old: set[int] = set()
        self.reasons: list[int] = [MissReason.NEVER_STORED] * 3
        self.outcome = Noted()

    def route(self) -> Route:
        route = self.cache.route
        assert route is not None
        return route

    def learn(self, hint: Hint) -> int | None:
        taken = self.cache.learn(
            OwnerHint(hint.slot, hint.map_term, hint.map_epoch, hint.host, hint.port,
                      hint.worker_uuid)
        )
        return self.route().owner_index(hint.slot) if taken else None

    def _answer(
        self, kind: str, worker: int, keys: Keys, positions: list[int], verify: bool, miss: int,
        hit: int | None,
    ) -> list[Call] | Status:
        self.asked.append((kind, worker, list(positions), verify))
        if worker in self.down:
            return Status.UNAVAILABLE
        if worker in self.ending:
            closed = [int(Status.CLOSED)] * len(positions)
            return [Call(Answer(closed), positions, self.outcome, worker, (), verify)]
        statuses, hints = [], []
        for index, position in enumerate(positions):
            block_id = keys.id_of(position)
            hint = self.owners_known_by.get(worker)
            if hint is not None and hint.slot == keys.slot_of(position):
                statuses.append(int(Status.WRONG_OWNER))
                hints.append(
                    Hint(index, hint.slot, hint.map_epoch, hint.map_term, hint.worker_uuid,
                         hint.host, hint.port)
                )
            elif block_id in self.always_corrupt or (
                block_id in self.corrupt_until_verified and not verify
            ):
                statuses.append(int(Status.CORRUPT))
            elif block_id in self.stored.get(worker, {}):
                statuses.append(self.stored[worker][block_id] if hit is None else hit)
            else:
                statuses.append(miss)
        answer = Answer(statuses, encode_hints(hints) if hints else b"")
        return [Call(answer, positions, self.outcome, worker, (), verify)]

    def start_get(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        verify: bool,
    ) -> list[Call] | Status:
        return self._answer("get", worker, keys, positions, verify, Status.MISS, None)

    def start_put(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        options: PutOptions, again: bool = False,
    ) -> list[Call] | Status:
        return self._answer("put", worker, keys, positions, False, Status.OK, Status.OK)

    def start_exists(
        self, worker: int, keys: Keys, positions: list[int], lease_ms: int, *,
        by_this_map: bool = False,
    ) -> list[Call] | Status:
        return self._answer("exists", worker, keys, positions, False, 0, 1)

    def start_delete(self, worker: int, keys: Keys, positions: list[int]) -> list[Call] | Status:
        return self._answer("delete", worker, keys, positions, False, Status.OK, Status.OK)

    def start_pin(
        self, worker: int, keys: Keys, positions: list[int], ttl_s: int
    ) -> list[Call] | Status:
        return self._answer("pin", worker, keys, positions, False, Status.MISS, Status.OK)

    def start_prefetch(self, worker: int, keys: Keys, positions: list[int]) -> list[Call] | Status:
        return self._answer("prefetch", worker, keys, positions, False, 0, 1)

    def start_why(self, worker: int, keys: Keys, positions: list[int]) -> list[Call] | Status:
        if worker in self.old:
            return Status.UNSUPPORTED
        return self._answer(
            "why", worker, keys, positions, False, self.reasons[worker], MissReason.PRESENT
        )

    def copy_to_owner(
        self, keys: Keys, position: int, scatter: Scatter, size_bytes: int, previous: int
    ) -> None:
        self.copied.append(position)


def pool(moving: dict[int, Move] | None = None, epoch: int = 5) -> ShardMap:
    """Three workers; worker 0 owns every slot."""
    workers = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in range(3))
    return ShardMap(
        MapVersion(bytes(16), 1, epoch), SLOTS, workers, pack_owners([0] * SLOTS), moving or {}
    )


def drive(operation: Operation[ResultT]) -> ResultT:
    try:
        next(operation)
        while True:
            operation.send(None)
    except StopIteration as end:
        result: ResultT = end.value
        return result


def all_moving(*previous: int) -> dict[int, Move]:
    return {slot: Move(previous, 5) for slot in range(SLOTS)}


KEYS = hash_keys(["a", "b", "c"], b"salt", SLOTS)
BUFFERS = [((4096, 100),)] * 3


def test_one_wave_when_the_owner_has_everything() -> None:
    workers = ScriptedWorkers(pool())
    workers.stored[0] = {KEYS.id_of(n): 100 for n in range(3)}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [100, 100, 100]
    assert workers.asked == [("get", 0, [0, 1, 2], False)]
    assert len(workers.outcome.calls) == 1


def test_previous_owners_are_asked_newest_first_and_the_block_is_copied() -> None:
    workers = ScriptedWorkers(pool(all_moving(2, 1)))
    workers.stored[0] = {KEYS.id_of(0): 100}
    workers.stored[1] = {KEYS.id_of(1): 100}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [100, 100, Status.MISS]
    assert workers.asked == [
        ("get", 0, [0, 1, 2], False), ("get", 2, [1, 2], False), ("get", 1, [1, 2], False)
    ]
    assert workers.copied == [1]


def test_an_owner_without_a_session_leaves_the_previous_owner() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.down = {0}
    workers.stored[1] = {KEYS.id_of(0): 100}
    results = drive(get_operation(workers, KEYS, BUFFERS))
    assert results == [100, Status.MISS, Status.MISS]


def test_nobody_reachable_is_unavailable() -> None:
    workers = ScriptedWorkers(pool())
    workers.down = {0}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [Status.UNAVAILABLE] * 3
    assert drive(put_operation(workers, KEYS, BUFFERS, DEFAULT_PUT)) == [Status.UNAVAILABLE] * 3


def test_a_session_that_ends_under_a_call_is_unavailable() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.ending = {0}
    workers.stored[1] = {KEYS.id_of(0): 100}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [100, Status.MISS, Status.MISS]
    workers.ending = {0, 1}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [Status.UNAVAILABLE] * 3


def test_a_hint_is_learned_and_followed_once() -> None:
    workers = ScriptedWorkers(pool())
    slot = KEYS.slot_of(1)
    workers.owners_known_by[0] = Hint(0, slot, 9, 1, bytes([2]) * 16, "127.0.0.1", 7072)
    workers.stored[2] = {KEYS.id_of(1): 100}
    assert drive(get_operation(workers, KEYS, BUFFERS))[1] == 100
    assert workers.route().owner_index(slot) == 2
    workers.asked.clear()
    single = hash_keys(["b"], b"salt", SLOTS)
    assert drive(get_operation(workers, single, BUFFERS[:1])) == [100]
    assert workers.asked == [("get", 2, [0], False)]


def test_workers_that_point_at_each_other_end_in_a_miss() -> None:
    workers = ScriptedWorkers(pool())
    slot = KEYS.slot_of(0)
    workers.owners_known_by[0] = Hint(0, slot, 9, 1, bytes([1]) * 16, "127.0.0.1", 7071)
    workers.owners_known_by[1] = Hint(0, slot, 10, 1, bytes([16]) * 16, "127.0.0.1", 7070)
    single = hash_keys(["a"], b"salt", SLOTS)
    assert drive(get_operation(workers, single, BUFFERS[:1])) == [Status.MISS]
    assert drive(put_operation(workers, single, BUFFERS[:1], DEFAULT_PUT)) in (
        [Status.UNAVAILABLE], [Status.OK]
    )


def test_corrupt_is_read_once_more_verified() -> None:
    workers = ScriptedWorkers(pool())
    workers.stored[0] = {KEYS.id_of(n): 100 for n in range(3)}
    workers.corrupt_until_verified = {KEYS.id_of(1)}
    workers.always_corrupt = {KEYS.id_of(2)}
    assert drive(get_operation(workers, KEYS, BUFFERS)) == [100, 100, Status.CORRUPT]
    assert workers.asked == [("get", 0, [0, 1, 2], False), ("get", 0, [1, 2], True)]
    assert workers.counters.corrupt == 3


def test_exists_asks_previous_owners_for_what_is_absent() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.stored[0] = {KEYS.id_of(0): 1}
    workers.stored[1] = {KEYS.id_of(2): 1}
    assert drive(exists_operation(workers, KEYS, 0)) == [1, 0, 1]


def test_a_delete_needs_every_owner() -> None:
    workers = ScriptedWorkers(pool(all_moving(1, 2)))
    assert drive(delete_operation(workers, KEYS)) == [Status.OK] * 3
    assert {worker for _, worker, _, _ in workers.asked} == {0, 1, 2}
    workers.down = {2}
    assert drive(delete_operation(workers, KEYS)) == [Status.UNAVAILABLE] * 3


def test_a_delete_follows_the_slot_to_its_new_owner() -> None:
    workers = ScriptedWorkers(pool())
    single = hash_keys(["a"], b"salt", SLOTS)
    workers.owners_known_by[0] = Hint(
        0, single.slot_of(0), 9, 1, bytes([2]) * 16, "127.0.0.1", 7072
    )
    # The old owner did not store a tombstone and may still be asked, so this is not a success.
    assert drive(delete_operation(workers, single)) == [Status.UNAVAILABLE]
    assert ("delete", 2, [0], False) in workers.asked


def test_quarantined_calls_end_their_keys_so() -> None:
    workers = ScriptedWorkers(pool())
    operation = get_operation(workers, KEYS, BUFFERS)
    for call in next(operation):
        call.quarantined = True
    with pytest.raises(StopIteration) as end:
        operation.send(None)
    assert end.value.value == [Status.QUARANTINED] * 3


def test_pins_are_for_owners_only() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.stored[0] = {KEYS.id_of(0): 1}
    assert drive(pin_operation(workers, KEYS, 60)) == [Status.OK, Status.MISS, Status.MISS]


@pytest.mark.parametrize(
    ("there", "down", "result", "asked"),
    [
        (True, set(), Status.OK, [("exists", 1), ("put", 0)]),
        (False, set(), Status.MISS, [("exists", 1)]),
        (True, {1}, Status.UNAVAILABLE, [("exists", 1)]),
        (True, {0}, Status.UNAVAILABLE, [("exists", 1), ("put", 0)]),
    ],
    ids=["still-there", "deleted-meanwhile", "previous-away", "owner-away"],
)
def test_a_copy_is_sent_only_while_its_previous_owner_has_the_block(
    there: bool, down: set[int], result: Status, asked: list[tuple[str, int]]
) -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    keys = hash_keys(["a"], b"salt", SLOTS)
    workers.stored[1] = {keys.id_of(0): 100} if there else {}
    workers.down = down
    assert drive(copy_operation(workers, keys, BUFFERS[0], 1)) == result
    assert [(kind, worker) for kind, worker, _, _ in workers.asked] == asked


def test_the_owner_of_a_slot_that_came_lately_must_know_how() -> None:
    """Else it may have owned it before and missed deletes since."""
    cache = MapCache()
    cache.offer(pool({2: Move((1,), 4)}), trusted=True)
    assert cache.route is not None
    assert dict(cache.route.needed) == {2: 4}
    assert cache.learn(OwnerHint(3, 1, 6, "127.0.0.1", 7071, b"\x01" * 16))
    assert dict(cache.route.needed) == {2: 4, 3: 6}
    cache.offer(pool(epoch=7), trusted=True)
    assert dict(cache.route.needed) == {}


# --- prefetch and why -------------------------------------------------------------------------
def test_prefetch_asks_previous_owners_for_what_the_owner_has_not() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.stored = {0: {KEYS.id_of(0): 100}, 1: {KEYS.id_of(1): 100}}
    assert drive(prefetch_operation(workers, KEYS)) == [1, 1, 0]
    assert workers.asked == [("prefetch", 0, [0, 1, 2], False), ("prefetch", 1, [1, 2], False)]


def test_why_asks_the_owner() -> None:
    workers = ScriptedWorkers(pool())
    workers.stored[0] = {KEYS.id_of(0): 100}
    workers.reasons[0] = MissReason.EVICTED
    assert drive(why_operation(workers, KEYS)) == [
        MissReason.PRESENT, MissReason.EVICTED, MissReason.EVICTED
    ]


@pytest.mark.parametrize(
    ("owner", "previous", "shown"),
    [
        (MissReason.NEVER_STORED, MissReason.EXPIRED, MissReason.EXPIRED),
        (MissReason.DELETED, MissReason.NEVER_STORED, MissReason.DELETED),
        (MissReason.NEVER_STORED, Status.UNAVAILABLE, MissReason.UNAVAILABLE),
        (MissReason.EVICTED, Status.UNAVAILABLE, MissReason.EVICTED),
        (Status.UNAVAILABLE, MissReason.NEVER_STORED, MissReason.UNAVAILABLE),
        (MissReason.NEVER_STORED, MissReason.NEVER_STORED, MissReason.NEVER_STORED),
        (99, MissReason.NEVER_STORED, MissReason.OTHER),
    ],
)
def test_while_a_slot_moves_the_most_telling_reason_is_shown(
    owner: int, previous: int, shown: MissReason
) -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    for worker, answer in ((0, owner), (1, previous)):
        if answer == Status.UNAVAILABLE:
            workers.down.add(worker)
        else:
            workers.reasons[worker] = answer
    assert drive(why_operation(workers, KEYS)) == [shown] * 3


def test_what_is_still_at_a_previous_owner_is_present() -> None:
    workers = ScriptedWorkers(pool(all_moving(1)))
    workers.stored[1] = {KEYS.id_of(0): 100}
    assert drive(why_operation(workers, KEYS))[0] is MissReason.PRESENT


def test_an_owner_of_an_older_version_explains_nothing() -> None:
    workers = ScriptedWorkers(pool())
    workers.old.add(0)
    assert drive(why_operation(workers, KEYS)) == [MissReason.UNEXPLAINED] * 3
    assert workers.asked == []
