"""`memkv top`: the workers live: what they serve now, and from where."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.nodes import state_of
from memkv.cli.output import plain, table
from memkv.cli.settings import CONNECTION, Field, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from memkv.localpool.facts import WorkerFacts

INTERVAL: Field[float] = Field(
    "interval", units.parse_duration_s, 1.0, "time between looks", "top", "TIME"
)
COLUMNS = (
    ("node", "left"), ("state", "left"), ("slots", "right"), ("blocks", "right"),
    ("flash used", "right"), ("hits/s DRAM", "right"), ("hits/s flash", "right"),
    ("misses/s", "right"), ("puts/s", "right"), ("written/s", "right"), ("evicted/s", "right"),
    ("corrupt", "right"),
)  # fmt: skip
RATES = ("hits_dram", "hits_flash", "misses", "puts", "written_bytes", "evicted_blocks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=0, help="looks before it ends; 0: for ever")


def run(call: Call) -> int:
    from rich.live import Live

    from memkv.localpool.facts import FactsReader

    interval_s, count = call.settings[INTERVAL], call.arguments.count
    if interval_s <= 0:
        raise UsageError(f"{call.settings.origin(INTERVAL)}: it must be longer than 0")
    with open_client(call.settings) as client, FactsReader(client) as reader:
        looks = pairs_of_looks(reader.read, interval_s, count)
        if call.output.as_json or not call.output.stdout.isatty():
            for rates, facts in looks:
                print_look(call, rates, facts)
            return Exit.OK
        with Live(console=call.output.console(), auto_refresh=False) as live:
            for rates, facts in looks:
                live.update(draw(rates, facts), refresh=True)
    return Exit.OK


def print_look(call: Call, rates: Rates, facts: Sequence[WorkerFacts]) -> None:
    """Print one look below the last."""
    call.output.result(
        document(rates, facts), lambda console: console.print(draw(rates, facts))
    )


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


def draw(rates: Rates, facts: Sequence[WorkerFacts]) -> Table:
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
    return table("", COLUMNS, rows)


COMMAND = Command(
    "Watch the workers of a pool: hits by tier, misses, puts and evictions a second. Ctrl-C ends.",
    run, (*CONNECTION, INTERVAL), add_arguments, ("memkv top", "memkv top --count 1 --json"),
)  # fmt: skip
