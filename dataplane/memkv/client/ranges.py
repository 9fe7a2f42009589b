"""Reading parts of blocks: one request names several byte ranges of one stored put."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memkv.client.buffers import Scatter, scatter_bytes
from memkv.client.calls import Call, Operation
from memkv.client.operations import Started, without_wrong_owner
from memkv.client.routing import Keys
from memkv.client.statistics import ClientCounters
from memkv.client.waves import Router, Waves
from memkv.errors import CallerError
from memkv.limits import RANGES_PER_ITEM_MAX
from memkv.status import Status

ByteRange = tuple[int, int]
"""(offset, bytes) within a block."""


class RangeWorkers(Router, Protocol):
    """What a ranges operation needs of the workers."""

    counters: ClientCounters

    def start_get_ranges(
        self, worker: int, keys: Keys, positions: list[int],
        ranges: Sequence[Sequence[ByteRange]], scatters: Sequence[Scatter],
    ) -> Started: ...


def check_ranges(ranges: Sequence[Sequence[ByteRange]], scatters: Sequence[Scatter]) -> None:
    """Raise CallerError unless every key has ranges that fit its buffer."""
    if len(ranges) != len(scatters):
        raise CallerError(f"{len(ranges)} range lists for {len(scatters)} keys")
    for position, (wanted, scatter) in enumerate(zip(ranges, scatters, strict=True)):
        if not 1 <= len(wanted) <= RANGES_PER_ITEM_MAX:
            raise CallerError(
                f"key {position}: {len(wanted)} ranges; give 1 to {RANGES_PER_ITEM_MAX}"
            )
        if any(offset < 0 or length < 1 for offset, length in wanted):
            raise CallerError(f"key {position}: a range needs an offset >= 0 and a length >= 1")
        total = sum(length for _, length in wanted)
        if total > scatter_bytes(scatter):
            raise CallerError(
                f"key {position}: ranges of {total} bytes do not fit a buffer of "
                f"{scatter_bytes(scatter)}"
            )


def ranges_operation(
    workers: RangeWorkers, keys: Keys, ranges: Sequence[Sequence[ByteRange]],
    scatters: Sequence[Scatter],
) -> Operation[list[int]]:
    """Read ranges back to back into each key's buffer. Result a key: bytes, or negative."""
    check_ranges(ranges, scatters)
    results: list[int] = [Status.MISS] * keys.count

    def on_answer(call: Call, index: int, position: int, status: int) -> None:
        if status == Status.CORRUPT:
            workers.counters.corrupt += 1

    waves = Waves(
        workers, keys, results,
        lambda worker, positions, _: workers.start_get_ranges(
            worker, keys, positions, ranges, scatters
        ),
        previous_owners=True,
    )
    waves.begin_with_owners()
    yield from waves.run(on_answer)
    return without_wrong_owner(results, Status.MISS)
