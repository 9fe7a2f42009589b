"""`memkv exists KEY...`: ask which blocks are stored."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memkv.cli import keys
from memkv.cli.command import Call, Command
from memkv.cli.connection import exit_of, explain, open_client, status_document
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION
from memkv.cli.tables import Column, plain, table

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    keys.add_arguments(parser, many=True)


def run(call: Call) -> int:
    asked = keys.keys_of(call.arguments)
    with open_client(call.settings) as client:
        answers = client.batch_is_exist(asked)
    words = {1: "stored", 0: "missing"}

    def draw(console: Console) -> None:
        rows = [
            (plain(keys.show(key)), words.get(answer) or explain(answer))
            for key, answer in zip(asked, answers, strict=True)
        ]
        console.print(table((Column("key"), Column("", wraps=True)), rows))

    documents = [
        {**keys.document(key), **status_document(answer)}
        for key, answer in zip(asked, answers, strict=True)
    ]
    call.output.result({"keys": documents, "prefix": leading(answers)}, draw)
    return Exit.FAILED if min(answers) == 0 else exit_of(answers)


def leading(answers: list[int]) -> int:
    """Return how many leading keys are stored."""
    return next((i for i, answer in enumerate(answers) if answer != 1), len(answers))


COMMAND = Command(
    "Ask which blocks are stored. Exit code 0: all of them.",
    run, CONNECTION, add_arguments,
    ("memkv exists prompt-1 prompt-2", "memkv exists --hex 00ff17 && echo stored"),
)  # fmt: skip
