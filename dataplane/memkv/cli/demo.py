"""`memkv demo`: a pool, real requests, a killed node, the figures."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.settings import Field, UsageError
from memkv.cli.tables import pairs_table

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.demo.report import DemoReport

REQUESTS: Field[int] = Field(
    "requests", units.parse_count, 1000, "requests of the trace to replay", "demo", "COUNT"
)
NODES: Field[int] = Field("nodes", units.parse_count, 3, "nodes of the pool", "demo", "COUNT")
MEMORY: Field[int] = Field(
    "memory", units.parse_size, 128 << 20, "DRAM of each node for blocks", "demo", "SIZE"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", metavar="DIR", help="where the nodes' files go; default: a temporary directory"
    )
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument(
        "--trace", metavar="FILE", help="another trace (.jsonl or .jsonl.gz); see `memkv replay`"
    )


def run(call: Call) -> int:
    from memkv.demo.story import Demo, DemoPlan
    from memkv.demo.trace import read_trace

    arguments, settings = call.arguments, call.settings
    trace = Path(arguments.trace) if arguments.trace else None
    requests = list(read_trace(trace, settings[REQUESTS]))
    directory = make_directory(arguments.dir)
    try:
        plan = DemoPlan(directory, settings[NODES], settings[MEMORY])
        with call.output.progress() as report:
            found = Demo(plan, requests, report).run()
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    call.output.result(found.document(), lambda console: draw(console, found))
    return Exit.OK if found.passed else Exit.FAILED


def make_directory(name: str | None) -> Path:
    """Return a new directory below `name`; what is there already is never touched."""
    try:
        if name:
            Path(name).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="memkv-demo-", dir=name))
    except OSError as error:
        raise UsageError(f"--dir {name}: {error.strerror}; choose a directory you can write to") \
            from None


def rows_of(found: DemoReport) -> list[tuple[str, str, str]]:
    """Return the table: figure, value, what it means."""
    replay, reference, outage = found.replay, found.reference, found.outage
    return [
        ("requests", f"{replay.requests:,}", f"they asked for {replay.blocks:,} blocks"),
        (
            "prefix-hit ratio", units.format_percent(replay.prefix_hit_ratio),
            f"an ideal LRU cache of this size: {units.format_percent(reference.lru_ratio)},"
            f" without bound: {units.format_percent(reference.unbounded_ratio)}",
        ),
        (
            "throughput", f"{replay.gbps:.2f} GB/s",
            f"get {replay.get_gbps:.2f} GB/s of {replay.bytes_read / 1e9:.1f} GB,"
            f" durable put {replay.put_gbps:.2f} GB/s of {replay.bytes_written / 1e9:.1f} GB",
        ),
        (
            "get p50", units.format_us(replay.get_p50_us),
            f"one call fetches a request's whole prefix; {replay.get_calls:,} calls",
        ),
        ("get p99", units.format_us(replay.get_p99_us), ""),
        ("blocks verified", f"{found.blocks_verified:,}", "every byte of them was compared"),
        ("wrong bytes", f"{found.wrong_bytes:,}", ""),
        (
            "node killed", outage.node,
            f"SIGKILL to {outage.processes_killed} processes after request"
            f" {outage.after_request:,}; back after {outage.away_s:.1f} s and"
            f" {outage.requests_without_it} requests",
        ),
        (
            "warm ratio", units.format_percent(outage.warm_ratio),
            f"{outage.served_again:,} of {outage.durable_blocks:,} durable blocks served again"
            + (f"; {outage.replaced:,} of the others stored anew" if outage.replaced else ""),
        ),
        ("time", f"{found.total_s:.0f} s", f"{replay.seconds:.0f} s of it replaying"),
    ]  # fmt: skip


def draw(console: Console, found: DemoReport) -> None:
    capacity = units.format_bytes(found.capacity_bytes)
    console.print(
        f"\n{found.nodes} nodes with {capacity} of flash together: 20% of"
        f" {found.reference.unique_blocks:,} blocks of {units.format_bytes(found.block_bytes)}"
    )
    console.print(pairs_table(rows_of(found)))
    if found.passed:
        console.print("[bold green]passed[/]: no wrong byte, and the killed node came back warm")
        return
    if found.wrong_bytes:
        console.print("[bold red]failed[/]: wrong bytes were served; please report this")
    if found.outage.warm_ratio < 0.99:
        console.print("[bold red]failed[/]: under 99% of the durable blocks came back")


COMMAND = Command(
    "Run a pool of real processes on this machine, replay real requests against it as puts and\n"
    "gets, kill a node in the middle with SIGKILL, bring it back, and print the figures.\n"
    "Exit code 1: a byte was wrong, or under 99% of the killed node's durable blocks came back.",
    run, (REQUESTS, NODES, MEMORY), add_arguments,
    ("memkv demo", "memkv demo --requests 5000 --json figures.json"), json_takes_file=True,
)  # fmt: skip
