"""Exit codes of every command, for scripts; `memkv --help` prints this table."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    """A miss, a wrong byte, a refused put: the command ran and the answer is no."""
    USAGE = 2
    """A flag, a variable or a file of configuration is wrong."""
    UNREACHABLE = 3
    """The metadata service or a node did not answer."""
    UNFIT = 4
    """This machine, a device or a file cannot do what was asked; the message names the fix."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done; for get and exists: found",
    Exit.FAILED: "a miss, a refused put, a wrong byte or a figure not reached",
    Exit.USAGE: "a flag, a MEMKV_* variable or the configuration file is wrong",
    Exit.UNREACHABLE: "the metadata service or a node did not answer",
    Exit.UNFIT: "this machine, a device or a file is unfit; the message names the fix",
    Exit.INTERRUPTED: "interrupted",
}


def table_text() -> str:
    """Return the table as lines for --help."""
    return "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANINGS.items())
