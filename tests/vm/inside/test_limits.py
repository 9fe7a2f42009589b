"""The machine's own limits can be measured, beside something of MemKV: gets over TCP."""

import random
import time

from memkv.bench.statistics import gb_per_s
from memkv.limits import MIB
from memkv.pattern import block, seed_of
from memkv.status import Status
from memkv.testing.guest_limits import drive_reads_gbps, fill_drive, write_bandwidth_gbps
from memkv.testing.guest_node import GuestNode, drive, wiped
from memkv.testing.interleaved import Figure, compare, table
from memkv.testing.namespaces import within
from memkv.testing.wire_client import Block, Lane

BLOCK_BYTES = 2 * MIB
DEPTH = 8
TURNS = 3


def gets_gbps(lane: Lane, ids: bytes) -> float:
    began = time.monotonic()
    got = lane.get(ids, deadline_ms=60_000)
    assert all(item.status is Status.OK for item in got.values())
    return gb_per_s(BLOCK_BYTES * len(got), time.monotonic() - began)


def test_limits_and_gets_over_tcp_are_measured_in_turns() -> None:
    fill_drive(drive(1), 64 * MIB)
    node = GuestNode(wiped(drive(0)))
    node.start()
    try:
        with within("client"):
            client = node.client()
            lane = client.lane()
            ids = [random.randbytes(32) for _ in range(DEPTH)]
            blocks = [Block(made, block(seed_of(made), BLOCK_BYTES)) for made in ids]
            assert lane.put(blocks, deadline_ms=60_000) == [Status.OK] * DEPTH
        # The sockets are the client's for good; ib_write_bw runs in the first namespace.
        with client:
            results = compare(
                {
                    "ib_write_bw": lambda: write_bandwidth_gbps(writes=10),
                    "fio": lambda: drive_reads_gbps(drive(1), span_bytes=64 * MIB, seconds=1.0),
                },
                [
                    Figure(
                        "TCP gets, 2 MiB", lambda: gets_gbps(lane, b"".join(ids)), ("ib_write_bw",)
                    )
                ],
                TURNS,
            )
        print(f"\n{table(results)}")
        assert all(pair.limit > 0 for found in results.values() for pair in found.pairs)
    finally:
        node.kill()
