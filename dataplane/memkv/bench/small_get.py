"""Small gets: their time against a bare TCP ping-pong, alone and beside bulk loads."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from memkv import _hotpath, pattern
from memkv.bench.ping_limit import PingPong
from memkv.bench.pump import Pump, check
from memkv.bench.results import MeasurementFailed
from memkv.bench.statistics import (
    PAIRS_MIN,
    Pair,
    PairSummary,
    interleave,
    median,
    percentile,
    summarize,
)
from memkv.bench.target import Target
from memkv.client.sync import Client
from memkv.limits import KIB, MIB

SIZE_BYTES = 4 * KIB
BULK_BYTES = 2 * MIB
BULK_DATA_BYTES = 256 * MIB
KEYS = 256
CALLS_PER_TURN = 2000
LOADED_S_MIN = 2.0  # of each side in a turn: over a thousand gets, whose slowest hundredth counts


@dataclass(frozen=True, slots=True)
class SmallGets:
    """Times in microseconds; `alone` holds medians of turns."""

    alone: PairSummary
    alone_p99_us: float
    loaded: tuple["LoadedTurn", ...]

    @property
    def loaded_p50_us(self) -> float:
        return median([turn.p50_us for turn in self.loaded])

    @property
    def loaded_p99_us(self) -> float:
        return median([turn.p99_us for turn in self.loaded])

    @property
    def ping_loaded_p99_us(self) -> float:
        return median([turn.ping_p99_us for turn in self.loaded])

    @property
    def bulk_gbps(self) -> float:
        return median([turn.bulk_gbps for turn in self.loaded])

    @property
    def loaded_ratio(self) -> float:
        """p99 beside bulk loads / median of the bare ping-pong alone."""
        return self.loaded_p99_us / self.alone.limit if self.alone.limit else 0.0


@dataclass(frozen=True, slots=True)
class LoadedTurn:
    """Small gets, and a bare ping-pong, beside bulk loads of the same client.

    The ping-pong shows what the machine's scheduler does to anyone there.
    """

    p50_us: float
    p99_us: float
    ping_p99_us: float
    bulk_gbps: float


def measure(target: Target, pairs: int = PAIRS_MIN) -> SmallGets:
    """Measure alone in turns with the ping-pong, then both beside gets of 2 MiB blocks."""
    with closing(SmallReader(target.client)) as reader, PingPong(SIZE_BYTES) as ping:
        reader.gets_us(CALLS_PER_TURN)
        turns = interleave(
            pairs, lambda: reader.gets_us(CALLS_PER_TURN), lambda: ping.measure_us(CALLS_PER_TURN)
        )
        alone = [time_us for times, _ in turns for time_us in times]
        pump = Pump(target.client, BULK_BYTES)
        with closing(pump):
            keys = [f"small-get/bulk/{number}" for number in range(BULK_DATA_BYTES // BULK_BYTES)]
            pump.fill_pool(keys)
            pump.get_each(keys)
            loaded = tuple(beside_bulk(pump, keys, reader, ping, turn) for turn in range(pairs))
    return SmallGets(
        summarize([Pair(percentile(a, 0.5), percentile(b, 0.5)) for a, b in turns]),
        percentile(alone, 0.99),
        loaded,
    )


def beside_bulk(
    pump: Pump, keys: Sequence[str], reader: "SmallReader", ping: PingPong, turn: int
) -> LoadedTurn:
    """Time small gets and pings while the same client loads blocks; who goes first changes."""
    samples = []
    loaded: list[float] = []
    pinged: list[float] = []
    load = threading.Thread(target=lambda: samples.append(pump.get(keys, 2 * LOADED_S_MIN)))
    load.start()
    sides = [(loaded, reader.gets_us), (pinged, ping.measure_us)]
    for times, run in sides if turn % 2 == 0 else sides[::-1]:
        until = time.monotonic() + LOADED_S_MIN
        while time.monotonic() < until and load.is_alive():
            times.extend(run(100))
    load.join()
    if not samples:
        raise MeasurementFailed("the load beside the small gets failed; see its error above")
    return LoadedTurn(
        percentile(loaded, 0.5), percentile(loaded, 0.99), percentile(pinged, 0.99),
        samples[0].gbps,
    )  # fmt: skip


class SmallReader:
    """Gets of one small block at a time, as a caller would make them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._target = bytearray(SIZE_BYTES)
        self._address = _hotpath.address_of(self._target)
        client.register_buffer(self._address, SIZE_BYTES)
        self._keys = [f"small-get/{number}" for number in range(KEYS)]
        for key in self._keys:
            check([client.put(key, pattern.block(pattern.seed_of(key), SIZE_BYTES))], (0,), "put")
        self._next = 0

    def gets_us(self, count: int) -> list[float]:
        """Return the time of `count` gets."""
        times, clock = [], time.perf_counter
        for _ in range(count):
            self._next = (self._next + 1) % KEYS
            keys = [self._keys[self._next]]
            before = clock()
            result = self._client.batch_get_into(keys, [self._address], [SIZE_BYTES])
            times.append((clock() - before) * 1e6)
            check(result, (SIZE_BYTES,), "get")
        return times

    def close(self) -> None:
        self._client.unregister_buffer(self._address)
