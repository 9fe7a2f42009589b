"""From words to arguments: the parser of one command, its help, and what it says about mistakes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import NoReturn

from memkv.cli import exits, settings
from memkv.cli.command import Command
from memkv.cli.exits import Exit
from memkv.cli.settings import UsageError

LATER = {"plan": "the capacity planner"}
"""Commands that are spoken for; they come with another part of MemKV."""
EXAMPLES = (
    "memkv up --nodes 3 --dir /tmp/memkv --capacity 2GiB    # a pool here, until Ctrl-C",
    "memkv put KEY FILE; memkv get KEY -o FILE              # against 127.0.0.1:7443",
    "memkv demo                                             # see it survive a killed node",
)


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of ending the process: errors are printed in one place."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


class ShowVersion(argparse.Action):
    """Looks the version up only when asked: that reads package metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from importlib.metadata import version

        print(f"memkv {version('memkv')}")
        parser.exit(Exit.OK)


def name_of(words: Sequence[str], commands: Mapping[str, str]) -> str:
    """Return the command that is meant, "" for none. UsageError for one that does not exist."""
    name = next((word for word in words if not word.startswith("-")), "")
    if not name or name in commands:
        if name and words[0] != name:
            raise UsageError(f"options come after the command: memkv {name} {words[0]} ...")
        return name
    if name in LATER:
        raise UsageError(f"memkv {name} comes with {LATER[name]}; this version has none")
    close = settings.nearest(name, commands)
    hint = f"did you mean {close}? " if close else ""
    raise UsageError(f"there is no command {name!r}; {hint}Commands: {', '.join(commands)}")


def build_parser(
    commands: Mapping[str, str], name: str = "", command: Command | None = None
) -> Parser:
    """Return the parser; only the command that runs gets its arguments."""
    parser = Parser(
        prog="memkv",
        description="Distributed flash memory for the KV cache of LLM inference.",
        epilog=f"{examples_text(EXAMPLES)}exit codes:\n{exits.table_text()}\n\n"
        "Values come from flags, then MEMKV_* variables, then a TOML file (--config), then\n"
        f"{settings.CONNECTION_FILE}. `memkv COMMAND --help` shows the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    choices = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    for known, text in commands.items():
        child = choices.add_parser(
            known, help=text, formatter_class=argparse.RawDescriptionHelpFormatter,
            description=command.description if command and known == name else text,
            epilog=epilog(command) if command and known == name else None,
        )  # fmt: skip
        if command and known == name:
            command.add_arguments(child)
            add_fields(child, command)
            add_common(child, command)
    return parser


def epilog(command: Command) -> str:
    """Return examples and exit codes."""
    return f"{examples_text(command.examples)}exit codes:\n{exits.table_text()}"


def examples_text(examples: Sequence[str]) -> str:
    """Return examples as lines of help."""
    lines = "".join(f"  {line}\n" for line in examples)
    return f"examples:\n{lines}\n" if lines else ""


def add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add what every command takes."""
    group = parser.add_argument_group("of every command")
    if command.json_takes_file:
        group.add_argument(
            "--json", nargs="?", const=True, default=None, metavar="FILE",
            help="print the result as JSON, or write it to FILE and print the table",
        )  # fmt: skip
    else:
        group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument(
        "--config", metavar="FILE", help=f"TOML file with settings [{settings.CONFIG_VARIABLE}]"
    )
    group.add_argument("--quiet", action="store_true", help="no notes, no progress")
    group.add_argument(
        "--progress", action="store_true", help="draw progress bars without a terminal, too"
    )


def add_fields(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add a flag for each field; values stay text until they are resolved."""
    if not command.fields:
        return
    group = parser.add_argument_group("settings (flag, then variable, then file)")
    for field in command.fields:
        default = f"; default {field.default_text}" if field.default_text else ""
        text = f"{field.help}{default} [{field.variable}]".replace("%", "%%")
        if field.is_switch:
            group.add_argument(
                field.flag, dest=field.variable, action="store_const", const="true", help=text
            )
        else:
            group.add_argument(
                field.flag, dest=field.variable, metavar=field.metavar or "VALUE", help=text
            )
