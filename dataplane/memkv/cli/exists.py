"""`memkv exists KEY...`: ask which blocks are stored."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memkv.cli.command import Call, Command
from memkv.cli.connection import UNREACHABLE, explain, open_client
from memkv.cli.exits import Exit
from memkv.cli.output import plain, table
from memkv.cli.settings import CONNECTION

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", metavar="KEY", nargs="+", help="names of blocks")


def run(call: Call) -> int:
    keys: list[str] = call.arguments.keys
    with open_client(call.settings) as client:
        answers = client.batch_is_exist(keys)
    words = {1: "stored", 0: "missing"}

    def draw(console: Console) -> None:
        rows = [
            (plain(key), words.get(answer) or explain(answer))
            for key, answer in zip(keys, answers, strict=True)
        ]
        console.print(table("", (("key", "left"), ("", "left")), rows))

    documents = [{"key": key, "status": a} for key, a in zip(keys, answers, strict=True)]
    call.output.result({"keys": documents, "prefix": leading(answers)}, draw)
    if all(answer == 1 for answer in answers):
        return Exit.OK
    return Exit.UNREACHABLE if UNREACHABLE.intersection(answers) else Exit.FAILED


def leading(answers: list[int]) -> int:
    """Return how many leading keys are stored."""
    return next((i for i, answer in enumerate(answers) if answer != 1), len(answers))


COMMAND = Command(
    "Ask which blocks are stored. Exit code 0: all of them.",
    run, CONNECTION, add_arguments, ("memkv exists prompt-1 prompt-2",),
)  # fmt: skip
