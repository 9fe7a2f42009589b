"""`memkv top`: the workers live: what they serve now, and from where."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit, Terminated
from memkv.cli.nodes import state_of
from memkv.cli.settings import CONNECTION, Field, UsageError
from memkv.cli.tables import Column, plain, table

if TYPE_CHECKING:
    from rich.table import Table

    from memkv.localpool.facts import WorkerFacts

INTERVAL: Field[float] = Field(
    "interval", units.parse_duration_s, 1.0, "time between looks", "top", "TIME"
)
COLUMNS = (
    Column("\nnode"), Column("\nstate", rank=3), Column("\nslots", figure=True, rank=4),
    Column("\nblocks", figure=True, rank=1), Column("flash\nused", figure=True, rank=1),
    Column("hits/s\nDRAM", figure=True), Column("hits/s\nflash", figure=True),
    Column("misses\n/s", figure=True), Column("puts\n/s", figure=True),
    Column("written\n/s", figure=True, rank=1), Column("evicted\n/s", figure=True, rank=2),
    Column("\ncorrupt", figure=True, rank=1),
)  # fmt: skip
RATES = ("hits_dram", "hits_flash", "misses", "puts", "written_bytes", "evicted_blocks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--count", type=int, default=0, metavar="COUNT",
        help="looks before it ends; 0, the default: until Ctrl-C",
    )  # fmt: skip


def run(call: Call) -> int:
    from memkv.localpool.facts import FactsReader

    interval_s, count = call.settings[INTERVAL], call.arguments.count
    if interval_s <= 0:
        raise UsageError(f"{call.settings.origin(INTERVAL)}: it must be longer than 0")
    with open_client(call.settings) as client, FactsReader(client) as reader:
        looks = pairs_of_looks(reader.read, interval_s, count)
        try:
            show(call, looks)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if count:
                raise  # it was asked for more looks than it got
    return Exit.OK


def show(call: Call, looks: Iterator[tuple[Rates, list[WorkerFacts]]]) -> None:
    """Draw looks over one another on a terminal, below one another elsewhere."""
    from rich.live import Live

    console = call.output.console()
    if call.output.as_json:
        for rates, facts in looks:
            call.output.record(document(rates, facts))
    elif not call.output.stdout.isatty():
        for rates, facts in looks:
            console.print(draw(rates, facts, console.width))
            call.output.stdout.flush()
    else:
        with Live(console=console, auto_refresh=False) as live:
            for rates, facts in looks:
                live.update(draw(rates, facts, console.width), refresh=True)


Rates = dict[bytes, dict[str, float]]
"""Worker uuid -> counter -> per second since the look before."""


def pairs_of_looks(
    look: Callable[[], list[WorkerFacts]], interval_s: float, count: int
) -> Iterator[tuple[Rates, list[WorkerFacts]]]:
    """Look again and again; yield rates between neighbours."""
    before, then = look(), time.monotonic()
    done = 0
    while not count or done < count:
        time.sleep(interval_s)
        after, now = look(), time.monotonic()
        yield rates_between(before, after, now - then), after
        before, then = after, now
        done += 1


def rates_between(
    before: Sequence[WorkerFacts], after: Sequence[WorkerFacts], seconds: float
) -> Rates:
    """Return rates of workers that were there both times; a restart counts from zero."""
    old = {one.worker.uuid: one for one in before}
    found: Rates = {}
    for one in after:
        earlier = old.get(one.worker.uuid)
        if earlier is None or one.problem or earlier.problem or seconds <= 0:
            continue
        found[one.worker.uuid] = {
            name: rate(earlier.counters.get(name, 0), one.counters.get(name, 0), seconds)
            for name in RATES
        }
    return found


def rate(before: int, after: int, seconds: float) -> float:
    """Return the rate of a counter that may have started anew."""
    return (after - before if after >= before else after) / seconds


def document(rates: Rates, facts: Sequence[WorkerFacts]) -> dict[str, object]:
    """Return the JSON form of a look."""
    return {
        "nodes": [
            {**one.document(), "per_second": rates.get(one.worker.uuid, {})} for one in facts
        ]
    }


def draw(rates: Rates, facts: Sequence[WorkerFacts], width: int) -> Table:
    """Return the table of a look."""
    rows = []
    for one in facts:
        mine = rates.get(one.worker.uuid, {})
        used = one.used_bytes / one.capacity_bytes if one.capacity_bytes else 0.0
        figures = [f"{mine[name]:,.0f}" if name in mine else "-" for name in RATES]
        if "written_bytes" in mine:
            figures[4] = units.format_bytes(mine["written_bytes"])
        rows.append(
            (
                plain(one.worker.node_name), state_of(one), str(one.slots), f"{one.blocks:,}",
                f"{used:.0%}", *figures, f"{one.counters.get('corrupt', 0):,}",
            )
        )  # fmt: skip
    return table(COLUMNS, rows, width)


COMMAND = Command(
    "Watch the workers of a pool: hits by tier, misses, puts and evictions a second. Ctrl-C ends.\n"
    "A narrow terminal gets fewer columns; --json prints a document a line for each look.",
    run, (*CONNECTION, INTERVAL), add_arguments,
    ("memkv top", "memkv top --interval 5s", "memkv top --count 1 --json"),
)  # fmt: skip
