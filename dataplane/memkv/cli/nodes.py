"""`memkv nodes`: the workers of a pool, what they hold, and why one is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION
from memkv.cli.tables import Column, plain, table

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.localpool.facts import WorkerFacts

COLUMNS = (
    Column("node"), Column("worker", rank=5), Column("address", rank=3), Column("state"),
    Column("drive", rank=2), Column("slots", figure=True, rank=1), Column("blocks", figure=True),
    Column("flash", figure=True), Column("DRAM", figure=True, rank=2),
    Column("sessions", figure=True, rank=4),
)  # fmt: skip


def run(call: Call) -> int:
    from memkv.localpool.facts import FactsReader

    with open_client(call.settings) as client, FactsReader(client) as reader:
        facts = reader.read()

    def draw(console: Console) -> None:
        console.print(table(COLUMNS, [row(one) for one in facts], console.width))
        for one in facts:
            if one.problem:
                console.print(f"[red]{plain(one.worker.node_name)}[/]: {plain(one.problem)}")
            if one.drive_problem:
                where = f"{plain(one.worker.node_name)}, drive of {one.worker.uuid.hex()[:8]}"
                console.print(f"{where}: {one.drive_state}: {plain(one.drive_problem)}")

    call.output.result({"nodes": [one.document() for one in facts]}, draw)
    return Exit.OK if not any(one.problem for one in facts) else Exit.UNREACHABLE


def row(one: WorkerFacts) -> tuple[str, ...]:
    """Return a worker's line."""
    memory_used = one.memory_bytes - one.memory_free_bytes
    known = not one.problem
    return (
        plain(one.worker.node_name), one.worker.uuid.hex()[:8],
        f"{one.worker.host}:{one.worker.port}", state_of(one), drive_of(one), str(one.slots),
        f"{one.blocks:,}" if known else "-",
        share_of(one.used_bytes, one.capacity_bytes) if known else "-",
        share_of(memory_used, one.memory_bytes) if known else "-",
        str(one.sessions) if known else "-",
    )  # fmt: skip


def share_of(used: int, whole: int) -> str:
    """Return `45% of 2 GiB`."""
    return f"{used / whole if whole else 0:.0%} of {units.format_bytes(whole)}"


def drive_of(one: WorkerFacts) -> str:
    """Return the state of its drive in a colour."""
    colours = {"healthy": "green", "suspect": "yellow", "faulted": "red"}
    if one.drive_state not in colours:
        return "-"
    return f"[{colours[one.drive_state]}]{one.drive_state}[/]"


def state_of(one: WorkerFacts) -> str:
    """Return the state in a colour."""
    state = one.worker.state.name.lower()
    if one.problem:
        return f"[red]{state}, away[/]"
    return f"[green]{state}[/]" if state == "active" else f"[yellow]{state}[/]"


COMMAND = Command(
    "List the workers of a pool with what they hold. Exit code 3: one does not answer.",
    run, CONNECTION, examples=("memkv nodes", "memkv nodes --json"),
)  # fmt: skip
