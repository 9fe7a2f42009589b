"""Counters: adding up threads, and the buckets of latencies."""

import threading

from memkv.node.statistics import (
    LATENCY_BUCKETS,
    ConnectionCounters,
    ThreadCounters,
    merge_items,
    merge_latency,
)
from memkv.status import Status
from memkv.wire.opcodes import Opcode


def test_items_of_all_threads_add_up() -> None:
    first, second = ThreadCounters(), ThreadCounters()
    first.item(Opcode.GET, Status.OK)
    second.items_of(Opcode.GET, [Status.OK, Status.MISS, Status.OK])
    assert merge_items([first, second]) == {
        (Opcode.GET, Status.OK): 3,
        (Opcode.GET, Status.MISS): 1,
    }


def test_buckets_are_powers_of_two_microseconds_and_the_last_takes_the_rest() -> None:
    counters = ThreadCounters()
    for duration_us in (0, 1, 3, 4, 1 << 40):
        counters.request(Opcode.GET, duration_us * 1000)
    buckets = merge_latency([counters])[Opcode.GET]
    assert [index for index, count in enumerate(buckets) if count] == [0, 1, 2, 3, 24]
    assert len(buckets) == LATENCY_BUCKETS


def test_connection_counters_lose_nothing_among_threads() -> None:
    counters = ConnectionCounters()

    def add_many() -> None:
        for _ in range(500):
            counters.add("stalled")

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.counts().stalled == 2000
