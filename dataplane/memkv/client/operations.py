"""Operations: what a get, an exists, a put, a delete and a pin do with the answers they get.

Generators of waves of calls (calls.py, waves.py) that return one result a key, in key order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memkv.client.buffers import Scatter, scatter_bytes
from memkv.client.calls import Call, Operation
from memkv.client.options import PutOptions
from memkv.client.routing import Keys
from memkv.client.statistics import ClientCounters
from memkv.client.waves import Router, Waves
from memkv.limits import BLOCK_BYTES_MAX
from memkv.reasons import MissReason, reason_of
from memkv.status import Status

Started = list[Call] | Status
UNASKED = Status.UNAVAILABLE


class Workers(Router, Protocol):
    """What operations need: the route, and requests to its workers.

    A `start_*` returns the calls for `positions`, or the Status that all of them get at once (no
    session, open breaker, deadline passed).
    """

    counters: ClientCounters

    def start_get(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        verify: bool,
    ) -> Started: ...
    def start_put(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        options: PutOptions, again: bool = False,
    ) -> Started:
        """`again`: over another connection than what broke."""

    def start_exists(
        self, worker: int, keys: Keys, positions: list[int], lease_ms: int, *,
        by_this_map: bool = False,
    ) -> Started:
        """`by_this_map`: the worker says WRONG_OWNER while its map is older than the route's."""
    def start_delete(self, worker: int, keys: Keys, positions: list[int]) -> Started: ...
    def start_pin(self, worker: int, keys: Keys, positions: list[int], ttl_s: int) -> Started: ...
    def start_prefetch(self, worker: int, keys: Keys, positions: list[int]) -> Started:
        """UNSUPPORTED by a worker of an older version; likewise `start_why`."""
    def start_why(self, worker: int, keys: Keys, positions: list[int]) -> Started: ...
    def copy_to_owner(
        self, keys: Keys, position: int, scatter: Scatter, size_bytes: int, previous: int
    ) -> None:
        """Queue a background put of a block that only a previous owner had."""


def get_operation(
    workers: Workers, keys: Keys, scatters: Sequence[Scatter],
    stored_lengths: dict[int, int] | None = None,
) -> Operation[list[int]]:
    """Read blocks into the scatter lists. Result a key: bytes read, or a negative Status.

    `stored_lengths`, when given, receives the length of blocks whose buffer was too small.
    """
    results: list[int] = [Status.MISS] * keys.count

    def on_answer(call: Call, index: int, position: int, status: int) -> None:
        if status >= 0:
            if call.worker in workers.route().previous_owners(keys.slot_of(position)):
                workers.copy_to_owner(
                    keys, position, scatters[position], status, call.worker
                )
        elif status == Status.BUFFER_TOO_SMALL and stored_lengths is not None:
            stored_lengths[position] = call.request.lengths[index]
        elif status == Status.CORRUPT:
            workers.counters.corrupt += 1

    waves = Waves(
        workers, keys, results,
        lambda worker, positions, verify: workers.start_get(
            worker, keys, positions, scatters, verify
        ),
        previous_owners=True, verify=True,
    )
    waves.begin_with_owners()
    yield from waves.run(on_answer)
    return without_wrong_owner(results, Status.MISS)


def exists_operation(workers: Workers, keys: Keys, lease_ms: int) -> Operation[list[int]]:
    """Ask which blocks are stored. Result a key: 1, 0 or a negative Status."""
    results: list[int] = [0] * keys.count
    waves = Waves(
        workers, keys, results,
        lambda worker, positions, _: workers.start_exists(worker, keys, positions, lease_ms),
        previous_owners=True,
    )
    waves.begin_with_owners()
    yield from waves.run(_ignore)
    return without_wrong_owner(results, 0)


def put_operation(
    workers: Workers, keys: Keys, scatters: Sequence[Scatter], options: PutOptions
) -> Operation[list[int]]:
    """Store blocks at their owners. Result a key: 0, or a negative Status (the put is dropped)."""
    results: list[int] = [Status.UNAVAILABLE] * keys.count
    for position, scatter in enumerate(scatters):
        length = scatter_bytes(scatter)
        if not 1 <= length <= BLOCK_BYTES_MAX:
            results[position] = Status.TOO_LARGE if length else Status.INVALID
    waves = Waves(
        workers, keys, results,
        lambda worker, positions, again: workers.start_put(
            worker, keys, positions, scatters, options, again
        ),
        other_way=True,
    )
    waves.begin_with_owners(only=[p for p in range(keys.count) if results[p] == UNASKED])
    yield from waves.run(_ignore)
    return without_wrong_owner(results, Status.UNAVAILABLE)


def delete_operation(workers: Workers, keys: Keys) -> Operation[list[int]]:
    """Delete at the owner and at every previous owner.

    OK only when each of them stored a tombstone; otherwise UNAVAILABLE: some may have stored one,
    so the block may be gone or not, and the caller repeats the delete.
    """
    results: list[int] = [Status.OK] * keys.count
    failed: dict[int, Status] = {}

    def on_answer(call: Call, index: int, position: int, status: int) -> None:
        if status < 0 and status != Status.WRONG_OWNER:
            failed[position] = Status.DENIED if status == Status.DENIED else Status.UNAVAILABLE
        elif status == Status.OK:
            stored_at.setdefault(position, set()).add(call.worker)

    stored_at: dict[int, set[int]] = {}
    waves = Waves(
        workers, keys, results,
        lambda worker, positions, _: workers.start_delete(worker, keys, positions),
        every_answer=True,
    )
    waves.begin_with_owners()
    for position in range(keys.count):
        for previous in workers.route().previous_owners(keys.slot_of(position)):
            waves.add(previous, position)
    yield from waves.run(on_answer)
    # Judged by the route as it is now: an owner learned on the way must have answered too.
    route = workers.route()
    for position in range(keys.count):
        slot = keys.slot_of(position)
        wanted = {route.owner_index(slot), *route.previous_owners(slot)}
        if not wanted <= stored_at.get(position, set()):
            failed.setdefault(position, Status.UNAVAILABLE)
        results[position] = failed.get(position, Status.OK)
    return results


def pin_operation(workers: Workers, keys: Keys, ttl_s: int) -> Operation[list[int]]:
    """Pin at the owner for `ttl_s` seconds (0 unpins). Result a key: 0 or a negative Status."""
    results: list[int] = [Status.UNAVAILABLE] * keys.count
    waves = Waves(
        workers, keys, results,
        lambda worker, positions, _: workers.start_pin(worker, keys, positions, ttl_s),
    )
    waves.begin_with_owners()
    yield from waves.run(_ignore)
    return without_wrong_owner(results, Status.UNAVAILABLE)


def prefetch_operation(workers: Workers, keys: Keys) -> Operation[list[int]]:
    """Have owners bring blocks into their DRAM. Result a key: 2 in DRAM, 1 on its way, 0 not there,
    or a negative Status."""
    results: list[int] = [0] * keys.count
    waves = Waves(
        workers, keys, results,
        lambda worker, positions, _: workers.start_prefetch(worker, keys, positions),
        previous_owners=True,
    )
    waves.begin_with_owners()
    yield from waves.run(_ignore)
    return without_wrong_owner(results, 0)


def why_operation(workers: Workers, keys: Keys) -> Operation[list[MissReason]]:
    """Ask the owner and every previous owner why a block is not there; the most telling answer
    counts: it is there, then what happened to it, then who could not say."""
    results: list[int] = [Status.UNAVAILABLE] * keys.count
    found: dict[int, set[MissReason]] = {}

    def on_answer(call: Call, index: int, position: int, status: int) -> None:
        if status != Status.WRONG_OWNER:
            found.setdefault(position, set()).add(reason_on_wire(status))

    def ask(worker: int, positions: list[int], _: bool) -> Started:
        started = workers.start_why(worker, keys, positions)
        if isinstance(started, Status):
            for position in positions:
                found.setdefault(position, set()).add(reason_of(started))
        return started

    waves = Waves(workers, keys, results, ask, every_answer=True)
    waves.begin_with_owners()
    for position in range(keys.count):
        for previous in workers.route().previous_owners(keys.slot_of(position)):
            waves.add(previous, position)
    yield from waves.run(on_answer)
    nobody = {MissReason.UNAVAILABLE}
    return [min(found.get(position, nobody), key=_telling) for position in range(keys.count)]


def reason_on_wire(status: int) -> MissReason:
    """Return the reason that a node gave; of a later version's, OTHER."""
    if status < 0:
        return reason_of(status)
    return MissReason(status) if status in _REASONS else MissReason.OTHER


_REASONS = frozenset(int(reason) for reason in MissReason)
_SAY_LITTLE = (MissReason.UNAVAILABLE, MissReason.TIMEOUT, MissReason.BUSY, MissReason.UNEXPLAINED)


def _telling(reason: MissReason) -> tuple[bool, bool, bool, int]:
    """Order reasons of several workers, the one to show first."""
    return (
        reason is not MissReason.PRESENT, reason is MissReason.NEVER_STORED,
        reason in _SAY_LITTLE, reason,
    )


def _ignore(call: Call, index: int, position: int, status: int) -> None:
    """The result list already has it."""


def without_wrong_owner(results: list[int], instead: int) -> list[int]:
    """Return `results` without what only means something between workers."""
    if Status.WRONG_OWNER not in results:
        return results
    return [instead if status == Status.WRONG_OWNER else status for status in results]
