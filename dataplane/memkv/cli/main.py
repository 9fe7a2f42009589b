"""Entry of `memkv`: finds the command, resolves its settings, turns errors into messages.

Only the module of the command that runs is imported, and each imports its parts when it runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from memkv.cli import exits, settings, units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.output import Output
from memkv.errors import CallerError, ConfigError, MemKVError, RetryLater

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "run a pool here, replay real requests, kill a node, show the figures"),
    "up": ("up", "run a pool on this machine until Ctrl-C"),
    "put": ("put", "store a block"),
    "get": ("get", "fetch a block"),
    "exists": ("exists", "ask which blocks are stored"),
    "rm": ("remove", "delete blocks"),
    "map": ("map", "show which node owns what"),
    "nodes": ("nodes", "list the nodes and what they hold"),
    "top": ("top", "watch the nodes live"),
    "replay": ("replay", "replay a request trace against a pool"),
    "bench": ("bench", "measure a pool beside the limits of this machine"),
    "doctor": ("doctor", "check what this machine can do and say what to fix"),
    "node": ("node", "run one storage node"),
    "metadata": ("metadata", "run the metadata service"),
}
SECTIONS = ("up", "node", "metadata", "demo", "bench", "replay")
"""Tables of the configuration file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in words if not word.startswith("-")), "")
    command = load(name) if name in COMMANDS else None
    arguments = build_parser(name, command).parse_args(words)
    if command is None:
        build_parser("", None).print_help()
        return Exit.USAGE
    arguments.json_file = arguments.json if isinstance(arguments.json, str) else None
    output = Output(
        as_json=arguments.json is True, forced_progress=arguments.progress, quiet=arguments.quiet
    )
    return guarded(f"memkv {name}", command, arguments, output)


def load(name: str) -> Command:
    """Import the module of a command."""
    command: Command = import_module(f"memkv.cli.{COMMANDS[name][0]}").COMMAND
    return command


def guarded(
    title: str, command: Command, arguments: argparse.Namespace, output: Output
) -> int:
    """Run; every expected error becomes a message and an exit code, never a traceback."""
    try:
        resolved = resolve(command, arguments)
        return int(command.run(Call(arguments, resolved, output)))
    except CallerError as error:
        code = Exit.USAGE
        message = str(error)
    except RetryLater as error:
        code, message = Exit.UNREACHABLE, str(error)
    except ConfigError as error:
        code, message = Exit.UNFIT, str(error)
    except MemKVError as error:
        code, message = Exit.FAILED, str(error)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: not our failure. Python would
        # complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:
        code, message = Exit.UNFIT, f"{error.strerror or error}: {error.filename or 'system call'}"
    except KeyboardInterrupt:
        code, message = Exit.INTERRUPTED, "interrupted"
    output.error(title, message, code)
    return code


def resolve(command: Command, arguments: argparse.Namespace) -> settings.Settings:
    """Gather flags, variables and files into the settings of one command."""
    given = {field.variable: getattr(arguments, field.variable) for field in command.fields}
    environment = dict(os.environ)
    sources = [settings.flag_source(given), settings.environment_source(environment)]
    config: str | None = arguments.config or environment.get(settings.CONFIG_VARIABLE)
    if config:
        sources.append(settings.file_source(Path(config), command.fields, SECTIONS))
    if any(field.in_connection_file for field in command.fields):
        sources.append(settings.connection_source())
    return settings.resolve(command.fields, sources)


def build_parser(name: str, command: Command | None) -> argparse.ArgumentParser:
    """Return the parser; only the command that runs gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="memkv",
        description="Distributed flash memory for the KV cache of LLM inference.",
        epilog=f"exit codes:\n{exits.table_text()}\n\n"
        "Values come from flags, then MEMKV_* variables, then a TOML file (--config), then\n"
        f"{settings.CONNECTION_FILE}. `memkv COMMAND --help` shows the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    choices = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    for known, (_, text) in COMMANDS.items():
        child = choices.add_parser(
            known, help=text, formatter_class=argparse.RawDescriptionHelpFormatter,
            description=command.description if command and known == name else text,
            epilog=epilog(command) if command and known == name else None,
        )  # fmt: skip
        if command and known == name:
            add_common(child, command)
            command.add_arguments(child)
            add_fields(child, command)
    return parser


class ShowVersion(argparse.Action):
    """Looks the version up only when asked: that reads package metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from importlib.metadata import version

        print(f"memkv {version('memkv')}")
        parser.exit(Exit.OK)


def epilog(command: Command) -> str:
    """Return examples and exit codes."""
    examples = "".join(f"  {line}\n" for line in command.examples)
    return (f"examples:\n{examples}\n" if examples else "") + f"exit codes:\n{exits.table_text()}"


def add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add what every command takes."""
    if command.json_takes_file:
        parser.add_argument(
            "--json", nargs="?", const=True, default=None, metavar="FILE",
            help="print the result as JSON, or write it to FILE and print the table",
        )  # fmt: skip
    else:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    parser.add_argument("--quiet", action="store_true", help="no notes, no progress")
    parser.add_argument(
        "--progress", action="store_true", help="draw progress bars without a terminal, too"
    )


def add_fields(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add a flag for each field; values stay text until they are resolved."""
    group = parser.add_argument_group("settings (flag, then variable, then file)")
    for field in command.fields:
        text = f"{field.help}{default_text(field)} [{field.variable}]"
        if field.is_switch:
            group.add_argument(
                field.flag, dest=field.variable, action="store_const", const="true", help=text
            )
        else:
            group.add_argument(
                field.flag, dest=field.variable, metavar=field.metavar or "VALUE", help=text
            )


def default_text(field: "settings.Field[object]") -> str:
    """Return `; default 2 GiB`, or nothing where there is no default to show."""
    default = field.default
    if default is None or default == "" or field.is_switch:
        return ""
    if isinstance(default, int) and field.parse is units.parse_size:
        return f"; default {units.format_bytes(default)}"
    if field.parse is units.parse_duration_ms:
        return f"; default {default}ms"
    return f"; default {default}"


if __name__ == "__main__":
    sys.exit(main())
