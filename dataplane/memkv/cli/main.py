"""Entry of `memkv`: finds the command, resolves its settings, turns errors into messages.

Only the module of the command that runs is imported, and each imports its parts when it runs.
"""

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from memkv.cli import parsing, settings
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit, Terminated
from memkv.cli.output import Output, check_writable
from memkv.errors import (
    CallerError,
    ConfigError,
    InternalBug,
    MemKVError,
    ProtocolError,
    RetryLater,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "run a pool here, replay real requests, kill a node, show figures"),
    "up": ("up", "run a pool on this machine until Ctrl-C"),
    "put": ("put", "store a block"),
    "get": ("get", "fetch a block"),
    "exists": ("exists", "ask which blocks are stored"),
    "why": ("why", "say why blocks are not there"),
    "rm": ("remove", "delete blocks"),
    "events": ("events", "watch blocks come and go, or serve that to routers"),
    "map": ("map", "show which node owns what"),
    "nodes": ("nodes", "list the nodes and what they hold"),
    "top": ("top", "watch the nodes live"),
    "replay": ("replay", "replay a request trace against a pool"),
    "bench": ("bench", "measure a pool beside the limits of this machine"),
    "doctor": ("doctor", "check what this machine can do and say what to fix"),
    "node": ("node", "run one storage node"),
    "agent": ("agent", "hand a Kubernetes node's drives to pods"),
    "metadata": ("metadata", "run the metadata service"),
}
HELP = {name: text for name, (_, text) in COMMANDS.items()}
CODES: tuple[tuple[type[MemKVError], Exit], ...] = (
    (CallerError, Exit.USAGE),
    (RetryLater, Exit.UNREACHABLE),
    (ProtocolError, Exit.UNREACHABLE),
    (ConfigError, Exit.UNFIT),
    (InternalBug, Exit.BUG),
    (MemKVError, Exit.FAILED),
)
"""The first class that fits decides."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    output = Output(as_json="--json" in words)  # until the arguments are known
    title = "memkv"
    try:
        name = parsing.name_of(words, HELP)
        command = load(name) if name else None
        title = f"memkv {name}".rstrip()
        arguments = parsing.build_parser(HELP, name, command).parse_args(words)
    except CallerError as error:
        output.error(title, str(error), Exit.USAGE)
        return Exit.USAGE
    if command is None:
        parsing.build_parser(HELP).print_help()
        return Exit.USAGE
    json_file = Path(arguments.json) if isinstance(arguments.json, str) else None
    output = Output(
        as_json=arguments.json is True, forced_progress=arguments.progress,
        quiet=arguments.quiet, json_file=json_file,
    )  # fmt: skip
    return guarded(title, command, arguments, output)


def prepare_streams() -> None:
    """Make printing safe: a closed stream takes nothing, an encoding without a letter escapes it.

    Keys, paths and names of nodes may hold any character.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def load(name: str) -> Command:
    """Import the module of a command."""
    command: Command = import_module(f"memkv.cli.{COMMANDS[name][0]}").COMMAND
    return command


def all_fields() -> list[settings.Field[object]]:
    """Return every field of every command once: what one configuration file may name."""
    fields = {field.variable: field for name in COMMANDS for field in load(name).fields}
    return list(fields.values())


def guarded(
    title: str, command: Command, arguments: argparse.Namespace, output: Output
) -> int:
    """Run; every error becomes a message and an exit code."""
    try:
        with termination_as_interrupt():
            resolved = resolve(command, arguments)
            check_writable(output.json_file)
            code = int(command.run(Call(arguments, resolved, output)))
            output.stdout.flush()  # a full disk or a reader that left shows here, not at exit
            return code
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: not our failure. Python would
        # complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except MemKVError as error:
        code = next(exit_ for kind, exit_ in CODES if isinstance(error, kind))
        message = str(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        code, message = Exit.UNFIT, f"{error.strerror or error}{where}"
    except Terminated:
        code, message = Exit.TERMINATED, "terminated"
    except KeyboardInterrupt:
        code, message = Exit.INTERRUPTED, "interrupted"
    except Exception as error:
        traceback.print_exc()
        code = Exit.BUG
        message = f"a bug in MemKV, please report it with the lines above: {error!r}"
    output.error(title, message, code)
    return code


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception while a command runs; `nohup` stays what it is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        try:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
        except ValueError:
            break  # not in the main thread, as in tests
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolve(command: Command, arguments: argparse.Namespace) -> settings.Settings:
    """Gather flags, variables and files into the settings of one command."""
    given = {field.variable: getattr(arguments, field.variable) for field in command.fields}
    environment = dict(os.environ)
    sources = [settings.flag_source(given), settings.environment_source(environment)]
    config: str | None = arguments.config or environment.get(settings.CONFIG_VARIABLE)
    if config:
        sources.append(settings.file_source(Path(config), command.fields, all_fields()))
    if any(field.in_connection_file for field in command.fields):
        sources.append(settings.connection_source())
    return settings.resolve(command.fields, sources)


if __name__ == "__main__":
    sys.exit(main())
