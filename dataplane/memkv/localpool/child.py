"""Starts a command of MemKV that ends when the process that started it ends.

    python -m memkv.localpool.child COMMAND [ARGUMENT...]

Without this a killed `memkv up` would leave its nodes running and their files locked. The signal is
sent when the *thread* that forked ends, so a pool is started from a thread that outlives it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process with its parent. Survives exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl(PR_SET_PDEATHSIG)")


def main() -> None:
    """Become the command."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(1)  # it ended before we asked
    arguments = [sys.executable, "-m", "memkv.cli.main", *sys.argv[1:]]
    os.execv(sys.executable, arguments)


if __name__ == "__main__":
    main()
