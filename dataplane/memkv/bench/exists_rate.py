"""How many keys a second `batch_is_exist` answers, hashing included."""

import time
from dataclasses import dataclass

from memkv import _hotpath
from memkv.bench.pump import check
from memkv.bench.results import MeasurementFailed
from memkv.bench.statistics import PAIRS_MIN, median, percentile
from memkv.bench.target import Target
from memkv.limits import KIB

KEYS_PER_CALL = 512
STORED_KEYS = 4096


@dataclass(frozen=True, slots=True)
class ExistsRate:
    """Median of turns, and the time of one call."""

    keys_per_s: float
    turns: tuple[float, ...]
    p50_us: float
    p99_us: float


def measure(target: Target, seconds: float = 5.0, turns: int = PAIRS_MIN) -> ExistsRate:
    """Ask for stored and missing keys by turns. MeasurementFailed for a wrong answer."""
    client = target.client
    data = bytearray(4 * KIB)
    keys = [f"exists/{number}" for number in range(STORED_KEYS)]
    address = _hotpath.address_of(data)
    for begin in range(0, STORED_KEYS, KEYS_PER_CALL):
        part = keys[begin : begin + KEYS_PER_CALL]
        sizes = [len(data)] * len(part)
        check(client.batch_put_from(part, [address] * len(part), sizes), (0,), "put")
    missing = [f"exists/missing/{number}" for number in range(KEYS_PER_CALL // 2)]
    half = KEYS_PER_CALL // 2
    asked = [[*keys[i : i + half], *missing] for i in range(0, STORED_KEYS - half, half)]
    expected = [1] * half + [0] * half
    rates, times = [], []
    for _ in range(turns):
        count, begin_s = 0, time.perf_counter()
        now = begin_s
        while now - begin_s < seconds / turns:
            before = now
            answers = client.batch_is_exist(asked[count % len(asked)])
            now = time.perf_counter()
            times.append((now - before) * 1e6)
            count += 1
            if answers != expected:
                raise MeasurementFailed("batch_is_exist gave a wrong answer")
        rates.append(count * KEYS_PER_CALL / (now - begin_s))
    return ExistsRate(median(rates), tuple(rates), percentile(times, 0.5), percentile(times, 0.99))
