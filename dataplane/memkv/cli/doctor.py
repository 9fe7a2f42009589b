"""`memkv doctor`: what this machine can do, and what to fix."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.settings import UsageError
from memkv.cli.tables import Column, plain, table

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.cli.check import Check

COLUMNS = (Column("check"), Column(""), Column("found", wraps=True), Column("fix", wraps=True))
STYLES = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[bold red]broken[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", metavar="DIR", default="",
        help="directory where nodes would keep their files (default: that of temporary files)",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true",
        help="end with exit code 1 when nothing is broken and something is to be looked at",
    )  # fmt: skip


def run(call: Call) -> int:
    from memkv.cli.check import BROKEN, WARNING
    from memkv.cli.checks import all_checks

    directory = Path(call.arguments.dir or temporary())
    if not directory.is_dir():
        raise UsageError(f"--dir {directory}: no such directory; make it first")
    checks = all_checks(directory)
    broken = sum(check.state == BROKEN for check in checks)
    warnings = sum(check.state == WARNING for check in checks)

    def draw(console: Console) -> None:
        console.print(table(COLUMNS, [row(check) for check in checks]))
        for check in (check for check in checks if check.details):
            text = "\n".join((check.name, *check.details, ""))
            console.print(plain(text), soft_wrap=True, highlight=False)
        if broken:
            console.print(f"[bold red]{broken} broken[/]: MemKV cannot run here until fixed")
        elif warnings:
            console.print(f"fit to run; {warnings} to look at")
        else:
            console.print("[green]fit to run[/]")

    document = {"fit": not broken, "checks": [asdict(check) for check in checks]}
    call.output.result(document, draw)
    if broken:
        return Exit.UNFIT
    return Exit.FAILED if warnings and call.arguments.strict else Exit.OK


def temporary() -> str:
    """Return the directory of temporary files. A pod's root may be read-only and have none."""
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise UsageError("nothing can be written to here: name a directory by --dir") from error


def row(check: Check) -> tuple[str, str, str, str]:
    return check.name, STYLES[check.state], plain(check.found), plain(check.fix)


COMMAND = Command(
    "Check what this machine can do for MemKV and say what to fix. Changes nothing.\n"
    "Exit code 0: fit to run, with or without warnings. 1: with --strict, there are warnings.\n"
    "4: something is broken.",
    run, (), add_arguments,
    ("memkv doctor --dir /var/lib/memkv", "memkv doctor --strict --json"),
)  # fmt: skip
