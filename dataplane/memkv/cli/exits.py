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
    BUG = 70
    """Something that MemKV did not expect; 70 is EX_SOFTWARE of sysexits.h."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""
    TERMINATED = 143
    """Ended by SIGTERM or a closed terminal, after cleaning up."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends a command as Ctrl-C does, so that it cleans up behind itself."""


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done; for get and exists: found",
    Exit.FAILED: "a miss, a refused put, a wrong byte or a figure not reached",
    Exit.USAGE: "a flag, a MEMKV_* variable or the configuration file is wrong",
    Exit.UNREACHABLE: "the metadata service or a node did not answer",
    Exit.UNFIT: "this machine, a device or a file is unfit; the message names the fix",
    Exit.BUG: "a bug in MemKV; please report what it printed",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
    Exit.TERMINATED: "ended by SIGTERM",
}


def table_text() -> str:
    """Return the table as lines for --help."""
    return "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANINGS.items())
