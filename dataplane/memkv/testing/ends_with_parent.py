"""Runs a command that ends with the process that started it, even when that one is killed.

    python ends_with_parent.py PID COMMAND...

PID: of the process that starts this one. A program of its own and not a hook between fork and exec,
which is unsafe in a process with threads. The kernel sends the signal when the *thread* ends that
started this program; what starts it does so in a thread that stays.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command."""
    parent = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)  # it ended before the kernel was asked
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
