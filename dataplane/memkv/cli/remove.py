"""`memkv rm KEY...`: delete blocks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memkv.cli.command import Call, Command
from memkv.cli.connection import UNREACHABLE, explain, open_client
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", metavar="KEY", nargs="+", help="names of blocks")


def run(call: Call) -> int:
    keys: list[str] = call.arguments.keys
    with open_client(call.settings) as client:
        results = client.batch_remove(keys)
    failed = [(key, r) for key, r in zip(keys, results, strict=True) if r < 0]

    def draw(console: Console) -> None:
        done = len(keys) - len(failed)
        console.print(f"deleted {done} of {len(keys)}: no later lookup will hit them")

    for key, result in failed:
        call.output.note(f"memkv rm: {key}: {explain(result)}; run it again until it succeeds")
    documents = [{"key": key, "status": r} for key, r in zip(keys, results, strict=True)]
    call.output.result({"keys": documents}, draw)
    if not failed:
        return Exit.OK
    return Exit.UNREACHABLE if UNREACHABLE.intersection(results) else Exit.FAILED


COMMAND = Command(
    "Delete blocks. Success means that every owner has it on flash: no later lookup hits.\n"
    "Deleting a block that is not stored succeeds.",
    run, CONNECTION, add_arguments, ("memkv rm prompt-1 prompt-2",),
)  # fmt: skip
