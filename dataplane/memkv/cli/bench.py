"""`memkv bench`: figures beside the limits measured in the same run."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import credentials
from memkv.cli.exits import Exit
from memkv.cli.settings import ENDPOINT, POOL, TENANT, Field, UsageError
from memkv.cli.tables import Column, pairs_table, table
from memkv.limits import BLOCK_BYTES_MAX, MIB

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.bench.limits import Limit
    from memkv.bench.results import Result, Verdict
    from memkv.bench.target import Target
    from memkv.bench.transfer import Transfer

OPS = ("get", "put", "exists")
TRANSPORTS = ("tcp", "local")
TIERS = ("dram", "flash")
PAIRS_MIN = 5

RESULT_COLUMNS = (
    Column("op"), Column("over"), Column("tier"), Column("block", figure=True),
    Column("GB/s", figure=True), Column("limit", figure=True), Column("ratio", figure=True),
    Column("p50", figure=True), Column("p99", figure=True),
    Column("CPU s/GB", figure=True, rank=1), Column("the limit is", wraps=True),
)  # fmt: skip
VERDICT_COLUMNS = (
    Column("what", wraps=True), Column("measured", figure=True),
    Column("limit in the same run", wraps=True, rank=1), Column("wanted"),
    Column("ratio", figure=True), Column(""), Column("", wraps=True, rank=2),
)  # fmt: skip

SIZE: Field[int] = Field(
    "size", units.parse_size, 2 * MIB, "bytes of a block, 16 MiB at most", "bench", "SIZE"
)
SECONDS: Field[float] = Field(
    "seconds", units.parse_duration_s, 5.0,
    "time to measure each side of a figure, spread over its turns", "bench", "TIME",
)  # fmt: skip
PAIRS: Field[int] = Field(
    "pairs", units.parse_count, PAIRS_MIN, "turns of figure and limit, one after the other",
    "bench", "COUNT",
)  # fmt: skip
DEPTH: Field[int] = Field(
    "depth", units.parse_count, 16, "blocks in flight", "bench", "COUNT"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", choices=OPS, default="get", help="(default: %(default)s)")
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="tcp", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--tier", choices=TIERS, default="dram",
        help="where the blocks lie; of a pool of one's own only (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--suite", choices=("must-reach",), help="measure every figure of docs/performance.md"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="groups of the suite: tcp, ...")
    parser.add_argument(
        "--dir", metavar="DIR", help="where the pool's files go; default: a temporary directory"
    )


def run(call: Call) -> int:
    if call.settings[SIZE] > BLOCK_BYTES_MAX:
        raise UsageError(f"{call.settings.origin(SIZE)}: a block has 16 MiB at most")
    try:
        directory = Path(tempfile.mkdtemp(prefix="memkv-bench-", dir=call.arguments.dir))
    except OSError as error:
        raise UsageError(f"--dir {call.arguments.dir}: {error.strerror}") from None
    try:
        if call.arguments.suite:
            return run_suite(call, directory)
        return run_one(call, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# --- one figure ------------------------------------------------------------------------------


def run_one(call: Call, directory: Path) -> int:
    from memkv.bench import exists_rate
    from memkv.bench.results import Result
    from memkv.bench.target import SIZINGS, Target, attach, own_pool

    arguments, settings = call.arguments, call.settings
    with ExitStack() as stack:
        report = stack.enter_context(call.output.progress())
        report(0.0, "preparing the pool")
        if settings.is_default(ENDPOINT):
            sizing = SIZINGS[arguments.tier]
            opened = own_pool(directory, sizing, transport=arguments.transport)
            target = stack.enter_context(opened)
        else:
            client = attach(
                settings[ENDPOINT], settings[POOL], settings[TENANT],
                credentials=credentials(settings),
            )  # fmt: skip
            target = Target(stack.enter_context(client), (), None, directory)
        report(0.2, f"measuring {arguments.op}")
        if arguments.op == "exists":
            rate = exists_rate.measure(target, settings[SECONDS], settings[PAIRS])
            result = Result(
                "exists", "tcp", "dram", 0, p50_us=rate.p50_us, p99_us=rate.p99_us,
                blocks_per_call=exists_rate.KEYS_PER_CALL,
                remark=f"{rate.keys_per_s:,.0f} keys/s",
            )  # fmt: skip
        else:
            result = measure_transfer(call, target, directory)
    document = {"results": [result.document()]}
    draw = draw_rate if arguments.op == "exists" else draw_result
    call.output.result(document, lambda console: draw(console, result))
    return Exit.OK


def measure_transfer(call: Call, target: Target, directory: Path) -> Result:
    """Measure gets or puts next to the limit that fits."""
    from memkv.bench import transfer
    from memkv.bench.target import SIZINGS

    arguments, settings = call.arguments, call.settings
    spec = transfer.Transfer(
        arguments.op, arguments.transport, arguments.tier, settings[SIZE],
        settings[SECONDS], settings[PAIRS], settings[DEPTH],
    )  # fmt: skip
    with closing(limit_of(spec, directory)) as limit:
        return transfer.measure(spec, target, limit, SIZINGS[spec.tier].data_bytes)


def limit_of(spec: Transfer, directory: Path) -> Limit:
    """Return what bounds this transfer on this machine."""
    from memkv.bench.disk_limit import DiskLimit
    from memkv.bench.limits import FioLimit, MemoryLimit, SmallestOf, StreamLimit
    from memkv.bench.suite import FIO_FILE_BYTES

    disk = DiskLimit(directory, spec.size_bytes, FIO_FILE_BYTES, spec.depth)
    kind = "randwrite" if spec.op == "put" else "randread"
    touches_disk = spec.op == "put" or spec.tier == "flash"
    limits: list[Limit] = [FioLimit(disk, kind)] if touches_disk else []
    if spec.transport == "tcp":
        limits.append(StreamLimit(spec.size_bytes))
    elif not touches_disk:
        limits.append(MemoryLimit(spec.size_bytes))
    return limits[0] if len(limits) == 1 else SmallestOf(limits)


def draw_result(console: Console, result: Result) -> None:
    """Print gets or puts beside their limit."""
    known = result.ratio is not None
    row = (
        result.op, result.transport, result.tier, units.format_bytes(result.size_bytes),
        f"{result.gbps:.2f}", f"{result.limit_gbps:.2f}" if known else "-",
        f"{result.ratio:.2f}" if result.ratio is not None else "-",
        units.format_us(result.p50_us), units.format_us(result.p99_us),
        f"{result.cpu_s_per_gb:.2f}" if result.cpu_s_per_gb is not None else "-", result.limit,
    )  # fmt: skip
    console.print(table(RESULT_COLUMNS, [row], console.width))
    console.print(
        "GB = 10^9 bytes; medians of interleaved pairs; p50 and p99 are of one call of"
        f" {result.blocks_per_call} blocks; checksums on"
    )


def draw_rate(console: Console, result: Result) -> None:
    """Print how fast existence is answered."""
    keys = f"{result.blocks_per_call} keys a call, hashing included, half of them stored"
    rows = [
        ("batch_is_exist", result.remark, keys),
        ("p50 of a call", units.format_us(result.p50_us), ""),
        ("p99 of a call", units.format_us(result.p99_us), ""),
    ]
    console.print(pairs_table(rows))


# --- the suite -------------------------------------------------------------------------------


def run_suite(call: Call, directory: Path) -> int:
    from memkv.bench import suite

    settings = call.settings
    plan = suite.Plan(directory, settings[SECONDS], settings[PAIRS])
    verdicts: list[Verdict] = []
    with call.output.progress() as report:
        for verdict in suite.run(plan, report, call.arguments.only):
            verdicts.append(verdict)
            call.output.note(one_line(verdict))
    document = {"verdicts": [verdict.document() for verdict in verdicts]}
    call.output.result(document, lambda console: draw_verdicts(console, verdicts))
    return Exit.OK if all(verdict.reached for verdict in verdicts) else Exit.FAILED


def one_line(verdict: Verdict) -> str:
    """Return a verdict for a log."""
    word = {True: "reached", False: "NOT reached", None: "unknown"}[verdict.reached]
    ratio = f", ratio {verdict.ratio:.2f}" if verdict.ratio is not None else ""
    return f"{word}: {verdict.what}: {verdict.measured}{ratio} {verdict.remark}"


def draw_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    words = {
        True: "[green]reached[/]", False: "[bold red]not reached[/]", None: "[yellow]unknown[/]"
    }
    rows = [
        (
            verdict.what, verdict.measured, verdict.limit, verdict.wanted,
            f"{verdict.ratio:.2f}" if verdict.ratio is not None else "-", words[verdict.reached],
            verdict.remark,
        )
        for verdict in verdicts
    ]  # fmt: skip
    console.print(table(VERDICT_COLUMNS, rows, console.width))


COMMAND = Command(
    "Measure a pool. Each figure stands beside a limit measured in the same run, in turns with\n"
    "it. Runs a pool of its own on this machine unless --endpoint names one.",
    run, (ENDPOINT, POOL, TENANT, SIZE, SECONDS, PAIRS, DEPTH), add_arguments,
    (
        "memkv bench --transport tcp --tier dram --op get --size 2MiB --seconds 4 --json",
        "memkv bench --suite must-reach --json figures.json",
    ),
    json_takes_file=True,
)  # fmt: skip
