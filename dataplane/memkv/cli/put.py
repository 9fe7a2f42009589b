"""`memkv put KEY FILE`: store one block."""

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
    parser.add_argument("file", metavar="FILE", help="its bytes, 1 byte to 16 MiB; - is stdin")
    parser.add_argument(
        "--durable", action="store_true", help="wait until the block is flushed to flash"
    )
    parser.add_argument("--ttl", metavar="TIME", help="forget the block after this time, as 1h")


def run(call: Call) -> int:
    from memkv.client.options import PutOptions

    arguments = call.arguments
    key = keys.key_of(arguments.key, arguments)
    data = read_block(arguments.file)
    try:
        ttl_s = units.parse_ttl_s(arguments.ttl) if arguments.ttl else None
    except ValueError as error:
        raise UsageError(f"--ttl: {error}") from None
    options = PutOptions(ttl_s=ttl_s, durability="durable" if arguments.durable else "cached")
    with open_client(call.settings) as client:
        result = client.put(key, data, options)

    def draw(console: Console) -> None:
        if result == 0:
            kept = "durable on flash" if arguments.durable else "cached"
            size = units.format_bytes(len(data))
            console.print(f"stored {size} as {plain(keys.show(key))} ({kept})")

    if result < 0:
        call.output.note(f"memkv put: not stored: {explain(result)}")
    document = {**keys.document(key), "bytes": len(data), **status_document(result)}
    call.output.result(document, draw)
    return exit_of([result])


def read_block(name: str) -> bytes:
    """Read the bytes of a block; never more than one byte over the limit is held."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(BLOCK_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(BLOCK_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read {name}: {error.strerror}; FILE is a file to read, or - for stdin"
        ) from None
    what = "stdin" if name == "-" else name
    if not data:
        raise UsageError(f"{what} is empty; a block has at least one byte")
    if len(data) > BLOCK_BYTES_MAX:
        limit = units.format_bytes(BLOCK_BYTES_MAX)
        raise UsageError(f"{what} is longer than a block may be ({limit}); split it")
    return data


COMMAND = Command(
    "Store one block. Blocks are immutable: the first complete put of a key wins.",
    run, CONNECTION, add_arguments,
    (
        "memkv put prompt-1 block.bin --durable",
        "head -c 2M /dev/urandom | memkv put noise - --ttl 1h",
        "memkv put --hex 00ff17 block.bin",
    ),
)  # fmt: skip
