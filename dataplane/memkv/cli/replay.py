"""`memkv replay`: a trace against a pool that runs already."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION, Field, UsageError
from memkv.cli.tables import pairs_table
from memkv.limits import BLOCK_BYTES_MAX, KIB

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.demo.reference import Reference
    from memkv.demo.tally import ReplayReport

REQUESTS: Field[int] = Field(
    "requests", units.parse_count, 1000, "how many requests of the trace", "replay", "COUNT"
)
SIZE: Field[int] = Field(
    "size", units.parse_size, 512 * KIB, "bytes of a block, 16 MiB at most", "replay", "SIZE"
)
NAMESPACE: Field[str] = Field(
    "namespace", units.parse_name, "replay", "keys are NAMESPACE/block", "replay", "NAME"
)
DURABLE: Field[bool] = Field(
    "durable", units.parse_flag, False, "puts wait until blocks are on flash", "replay"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trace", metavar="TRACE", nargs="?",
        help="a .jsonl or .jsonl.gz file of requests with hash_ids; default: the conversation"
        " trace of the package",
    )  # fmt: skip


def run(call: Call) -> int:
    from memkv.demo.reference import simulate, unique_blocks
    from memkv.demo.replay import Replay
    from memkv.demo.trace import read_trace

    settings = call.settings
    if settings[SIZE] > BLOCK_BYTES_MAX:
        raise UsageError(f"{settings.origin(SIZE)}: a block has 16 MiB at most")
    trace = Path(call.arguments.trace) if call.arguments.trace else None
    blocks = [request.blocks for request in read_trace(trace, settings[REQUESTS])]
    with open_client(settings) as client, call.output.progress() as report:
        replay = Replay(
            client, namespace=settings[NAMESPACE], block_bytes=settings[SIZE],
            durability="durable" if settings[DURABLE] else "cached",
        )  # fmt: skip
        began = time.monotonic()
        try:
            for number, request in enumerate(blocks, 1):
                replay.run(request)
                hits = replay.tally.hit_blocks / max(1, replay.tally.blocks)
                text = f"replaying: {number} of {len(blocks)}, {hits:.1%} hits"
                report(number / len(blocks), text)
        finally:
            replay.close()
        found = replay.tally.report(time.monotonic() - began)
    reference = simulate(blocks, unique_blocks(blocks))
    document = {**asdict(found), "unbounded_ratio": reference.unbounded_ratio}
    call.output.result(document, lambda console: draw(console, found, reference))
    return Exit.FAILED if found.wrong_bytes else Exit.OK


def draw(console: Console, found: ReplayReport, reference: Reference) -> None:
    rows = [
        ("requests", f"{found.requests:,}", f"{found.blocks:,} blocks"),
        (
            "prefix-hit ratio", units.format_percent(found.prefix_hit_ratio),
            f"a cold cache without bound: {units.format_percent(reference.unbounded_ratio)}",
        ),
        (
            "throughput", f"{found.gbps:.2f} GB/s",
            f"{found.bytes_read / 1e9:.1f} GB got at {found.get_gbps:.2f},"
            f" {found.bytes_written / 1e9:.1f} GB put at {found.put_gbps:.2f}",
        ),
        ("get p50", units.format_us(found.get_p50_us), f"{found.get_calls:,} calls"),
        ("get p99", units.format_us(found.get_p99_us), ""),
        ("blocks verified", f"{found.blocks_verified:,}", "every byte of them was compared"),
        ("wrong bytes", f"{found.wrong_bytes:,}", ""),
        ("puts dropped", f"{found.puts_dropped:,}", ""),
        ("time", f"{found.seconds:.1f} s", ""),
    ]  # fmt: skip
    console.print(pairs_table(rows))


COMMAND = Command(
    "Replay a request trace against a running pool: get each request's stored prefix, compare\n"
    "every byte, put the rest. Exit code 1: a byte was wrong.",
    run, (*CONNECTION, REQUESTS, SIZE, NAMESPACE, DURABLE), add_arguments,
    ("memkv replay --requests 200", "memkv replay my-trace.jsonl.gz --endpoint 10.0.0.5:7443"),
)  # fmt: skip
