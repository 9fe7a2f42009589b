"""`memkv nodes`: the workers of a pool, what they hold, and why one is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.output import plain, table
from memkv.cli.settings import CONNECTION

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.localpool.facts import WorkerFacts

COLUMNS = (
    ("node", "left"), ("worker", "left"), ("address", "left"), ("state", "left"),
    ("slots", "right"), ("blocks", "right"), ("flash", "right"), ("DRAM", "right"),
    ("sessions", "right"), ("", "left"),
)  # fmt: skip


def run(call: Call) -> int:
    from memkv.localpool.facts import FactsReader

    with open_client(call.settings) as client, FactsReader(client) as reader:
        facts = reader.read()

    def draw(console: Console) -> None:
        console.print(table("", COLUMNS, [row(one) for one in facts]))

    call.output.result({"nodes": [one.document() for one in facts]}, draw)
    return Exit.OK if not any(one.problem for one in facts) else Exit.UNREACHABLE


def row(one: WorkerFacts) -> tuple[str, ...]:
    """Return a worker's line."""
    used = units.format_bytes(one.used_bytes)
    memory_used = one.memory_bytes - one.memory_free_bytes
    known = not one.problem
    return (
        plain(one.worker.node_name), one.worker.uuid.hex()[:8],
        f"{one.worker.host}:{one.worker.port}", state_of(one), str(one.slots),
        f"{one.blocks:,}" if known else "-",
        f"{used} of {units.format_bytes(one.capacity_bytes)}" if known else "-",
        f"{units.format_bytes(memory_used)} of {units.format_bytes(one.memory_bytes)}"
        if known else "-",
        str(one.sessions) if known else "-",
        plain(one.problem),
    )  # fmt: skip


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
