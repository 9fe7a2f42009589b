"""What a command is: its fields, its arguments and its run."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from memkv.cli.output import Output
from memkv.cli.settings import Field, Settings


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a command. Only a command reads its own names from `arguments`."""

    arguments: argparse.Namespace
    settings: Settings
    output: Output


@dataclass(frozen=True, slots=True)
class Command:
    """`run` returns the exit code. Errors are raised: main turns them into messages."""

    description: str
    run: Callable[[Call], int]
    fields: tuple[Field[object], ...] = ()
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    examples: tuple[str, ...] = ()
    json_takes_file: bool = False
    """--json FILE writes the document to a file, beside the table."""
