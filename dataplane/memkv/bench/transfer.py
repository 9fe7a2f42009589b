"""Gets and puts of whole blocks by one client, each turn next to its limit."""

import itertools
import os
from contextlib import closing
from dataclasses import dataclass, field

from memkv.bench.limits import Limit
from memkv.bench.pump import DEPTH_DEFAULT, Pump, Sample
from memkv.bench.results import MeasurementFailed, Result
from memkv.bench.statistics import PAIRS_MIN, Pair, interleave, median, percentile, summarize
from memkv.bench.target import Target
from memkv.client.statistics import ClientStatistics


@dataclass(frozen=True, slots=True)
class Transfer:
    """What to measure. `seconds` of each side, spread over `pairs` turns."""

    op: str
    transport: str
    tier: str
    size_bytes: int
    seconds: float = 5.0
    pairs: int = PAIRS_MIN
    depth: int = DEPTH_DEFAULT
    key_prefix: str = field(default="bench")

    @property
    def turn_s(self) -> float:
        return self.seconds / self.pairs


def keys_of(transfer: Transfer, data_bytes: int) -> list[str]:
    """Return the names of the blocks to measure with."""
    count = max(2, data_bytes // transfer.size_bytes)
    prefix = f"{transfer.key_prefix}/{transfer.size_bytes}"
    return [f"{prefix}/{number}" for number in range(count)]


def measure(transfer: Transfer, target: Target, limit: Limit, data_bytes: int) -> Result:
    """Store the data if it must be read, then measure in turns. MeasurementFailed for a miss."""
    turns = itertools.count()
    pump = Pump(
        target.client, transfer.size_bytes, transfer.depth, target.node_pids,
        shared=transfer.transport == "local",
    )  # fmt: skip
    with closing(pump):
        if transfer.op == "put":

            def one() -> Sample:
                prefix = f"{transfer.key_prefix}/put/{transfer.size_bytes}/{next(turns)}"
                return pump.put(prefix, transfer.turn_s)

        else:
            keys = keys_of(transfer, data_bytes)
            pump.fill_pool(keys)
            if transfer.tier == "dram":
                pump.get_each(keys)

            def one() -> Sample:
                sample = pump.get(keys, transfer.turn_s)
                pump.verify_one(keys)
                return sample

        limit.measure(transfer.turn_s)  # does not count either: fio lays its file out first
        os.sync()  # what filled the pool is not the turns' to bring to the drive
        one()  # a turn that does not count: connections, page tables and clocks warm up
        before = target.client.stats()
        turns_done = interleave(transfer.pairs, one, lambda: limit.measure(transfer.turn_s))
        if transfer.transport == "local":
            _check_local(before, target)
    return result_of(transfer, pump.per_job, turns_done, limit.name)


def _check_local(before: ClientStatistics, target: Target) -> None:
    """Raise MeasurementFailed unless the blocks went through shared memory."""
    after = target.client.stats()
    if after.local_keys == before.local_keys or after.local_fallbacks > before.local_fallbacks:
        sessions = target.client.attachment.core.sessions()
        why = "; ".join(session.local.last_error for session in sessions) or "no socket was found"
        raise MeasurementFailed(
            f"blocks went over TCP, not through shared memory ({why}); is the pool on this machine,"
            " and does `memkv node` have a --local-dir?"
        )


def result_of(
    transfer: Transfer, per_call: int, turns: list[tuple[Sample, float]], limit: str
) -> Result:
    """Return the row of some turns."""
    summary = summarize([Pair(sample.gbps, gbps) for sample, gbps in turns])
    times = [time for sample, _ in turns for time in sample.calls_us]
    return Result(
        op=transfer.op,
        transport=transfer.transport,
        tier=transfer.tier,
        size_bytes=transfer.size_bytes,
        gbps=summary.figure,
        p50_us=percentile(times, 0.5),
        p99_us=percentile(times, 0.99),
        limit=limit,
        limit_gbps=summary.limit,
        ratio=summary.ratio if summary.limit > 0 else None,
        pairs=summary.pairs,
        cpu_s_per_gb=median([sample.cpu_s_per_gb for sample, _ in turns]),
        blocks_per_call=per_call,
    )
