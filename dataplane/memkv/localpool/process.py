"""One child process of a local pool, its log and its end."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from memkv.errors import ConfigError

STOP_TIMEOUT_S = 10.0  # a clean stop flushes what is queued
LOG_TAIL_LINES = 8


class Child:
    """A command of MemKV in its own process group, so that it ends with all its workers.

    Only process ids that this object started are ever signalled.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        """Start; the log of an earlier run is kept above the new one."""
        command = [sys.executable, "-m", "memkv.localpool.child", *self._arguments]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=tuple(pass_fds),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its group; 0 when it was not started."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check_running(self) -> None:
        """Raise ConfigError with the end of the log when the process ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise ConfigError(
                f"{self.name} ended with exit code {self._process.returncode};"
                f" its log {self.log} ends with:\n{self.log_tail()}"
            )

    def log_tail(self, count: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of this run in the log, indented."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()[-count:]
        except OSError:
            lines = []
        return "\n".join(f"    {line}" for line in lines) or "    (empty)"

    def kill(self) -> None:
        """SIGKILL the process and all its children at once, and reap it."""
        if self._process is None:
            return
        workers = descendants(self.pid)
        self._signal_group(signal.SIGKILL)
        for worker in workers:  # one that leads a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left after a while."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def terminate(self) -> None:
        """Ask for a clean end without waiting for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _signal_group(self, number: signal.Signals) -> None:
        """Signal the group of the process, which this object made and which it leads."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def processes(self) -> list[int]:
        """Return the ids of the process and its descendants that run now."""
        return [self.pid, *descendants(self.pid)] if self.is_running else []


def descendants(pid: int) -> list[int]:
    """Return the ids of all children of a process, and theirs."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found.extend([int(child), *descendants(int(child))])
    except OSError:
        pass  # it ended meanwhile, or this kernel does not list children
    return found
