"""`memkv why KEY...`: say why blocks are not there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memkv.cli import keys
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION
from memkv.cli.tables import Column, plain, table
from memkv.limits import GHOSTS_MAX
from memkv.reasons import MissReason

if TYPE_CHECKING:
    from rich.console import Console

R = MissReason

TEXTS: dict[MissReason, str] = {
    R.PRESENT: "it is there",
    R.NEVER_STORED: (
        f"nothing is remembered of it: never stored, or gone for long. Each worker remembers the "
        f"last {GHOSTS_MAX} blocks that left, since it started. If engines store and never find, "
        "compare their namespaces: docs/keys.md"
    ),
    R.NOT_ADMITTED: "a put came and was not taken: no room, over a quota, or a bad drive",
    R.EVICTED: "it made room for others; see the evictions in `memkv nodes`",
    R.EXPIRED: "its time to live is over",
    R.DELETED: "it was deleted",
    R.LOST: "its drive failed; see `memkv nodes`",
    R.CORRUPT: "its bytes failed a check, so it was dropped; see the log of the node",
    R.TIMEOUT: "its worker did not answer in time",
    R.BUSY: "its worker is over a limit",
    R.UNAVAILABLE: "its worker cannot be reached; see `memkv nodes`",
    R.DENIED: "the ticket does not allow to read",
    R.UNEXPLAINED: "its worker is of a version that does not tell",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    keys.add_arguments(parser, many=True)


def run(call: Call) -> int:
    asked = keys.keys_of(call.arguments)
    with open_client(call.settings) as client:
        reasons = client.why(asked)

    def draw(console: Console) -> None:
        rows = [
            (plain(keys.show(key)), plain(reason.label), plain(TEXTS.get(reason, "")))
            for key, reason in zip(asked, reasons, strict=True)
        ]
        console.print(table((Column("key"), Column("reason"), Column("", wraps=True)), rows))

    documents = [
        {**keys.document(key), "reason": reason.label, "text": TEXTS.get(reason, "")}
        for key, reason in zip(asked, reasons, strict=True)
    ]
    call.output.result({"keys": documents}, draw)
    if R.UNAVAILABLE in reasons or R.TIMEOUT in reasons:
        return Exit.UNREACHABLE
    return Exit.OK


COMMAND = Command(
    "Say why blocks are not there. Exit code 0: all their workers answered.",
    run, CONNECTION, add_arguments,
    ("memkv why prompt-1", "memkv why --hex --json 00ff17"),
)  # fmt: skip
