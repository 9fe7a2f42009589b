"""`memkv get KEY`: fetch one block."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import keys, units
from memkv.cli.command import Call, Command
from memkv.cli.connection import exit_of, explain, open_client, status_document
from memkv.cli.settings import CONNECTION, UsageError
from memkv.cli.tables import plain
from memkv.limits import BLOCK_BYTES_MAX

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    keys.add_arguments(parser)
    parser.add_argument(
        "--output", "-o", metavar="FILE", default="-", help="where its bytes go; - is stdout"
    )


def run(call: Call) -> int:
    from memkv._hotpath import address_of

    arguments = call.arguments
    key = keys.key_of(arguments.key, arguments)
    to_stdout = arguments.output == "-"
    if to_stdout and call.output.as_json:
        raise UsageError("--json needs --output FILE: stdout cannot hold both")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("a block is binary: name a file with --output, or pipe it somewhere")
    target = bytearray(BLOCK_BYTES_MAX)
    with open_client(call.settings) as client:
        result = client.batch_get_into([key], [address_of(target)], [len(target)])[0]
    if result >= 0:
        write_block(arguments.output, memoryview(target)[:result])
    else:
        call.output.note(f"memkv get: {explain(result)}")

    def draw(console: Console) -> None:
        if result >= 0 and not to_stdout:
            console.print(f"{units.format_bytes(result)} to {plain(arguments.output)}")

    if not to_stdout:
        call.output.result({**keys.document(key), **status_document(result)}, draw)
    return exit_of([result])


def write_block(name: str, data: memoryview) -> None:
    """Write to a file or to stdout."""
    if name == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {name}: {error.strerror}") from None


COMMAND = Command(
    "Fetch one block, checked end to end. Exit code 1 is a miss.",
    run, CONNECTION, add_arguments,
    (
        "memkv get prompt-1 -o block.bin",
        "memkv get prompt-1 | sha256sum",
        "memkv get prompt-1 -o block.bin --json",
    ),
)  # fmt: skip
