"""One worker process and the thread that keeps it running.

The worker ends with its supervisor: its end of the socketpair closes, and the kernel kills it when
the thread that started it dies. The supervisor notices a dead worker by the same socketpair.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from memkv import limits
from memkv.clock import Clock
from memkv.errors import ProtocolError
from memkv.node.facts import Phase, WorkerView
from memkv.node.messages import (
    Failed,
    Identity,
    MapMessage,
    Message,
    MessageChannel,
    Quotas,
    Report,
    Start,
    Stop,
)

Kept = MapMessage | Identity | Quotas
"""What a worker goes by: the newest of each kind."""

log = logging.getLogger("memkv.node")

WORKER_COMMAND = (sys.executable, "-m", "memkv.node.worker_main")
NS_PER_S = 1_000_000_000


def restart_pause_ms(short_runs: int) -> int:
    """Return how long to wait before a worker starts again after so many short runs in a row."""
    if short_runs == 0:
        return 0
    pause_ms = limits.WORKER_BACKOFF_MS_MIN << min(short_runs - 1, 16)
    return min(pause_ms, limits.WORKER_BACKOFF_MS_MAX)


class WorkerChild:
    """Starts a worker, listens to it, and starts it again when it ends. Thread-safe."""

    def __init__(
        self,
        position: int,
        start: Callable[[], Start],
        clock: Clock,
        command: tuple[str, ...] = WORKER_COMMAND,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`start` is asked anew for each process; `changed` is called when phase or port change."""
        self._position = position
        self._start = start
        self._clock = clock
        self._command = command
        self._changed = changed
        self._lock = threading.Lock()
        self._view = WorkerView(position, Phase.STARTING, message="starting")
        self._channel: MessageChannel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: dict[type[Kept], Kept] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"memkv-worker-{position}", daemon=True
        )

    @property
    def view(self) -> WorkerView:
        """What is known of the worker now."""
        with self._lock:
            return self._view

    def start(self) -> None:
        """Start the worker, in the background."""
        self._thread.start()

    def tell(self, message: Kept) -> None:
        """Give this to the worker, and to every process that follows it."""
        with self._lock:
            self._kept[type(message)] = message
            channel = self._channel
        if channel is not None:
            channel.send(message)

    def stop(self) -> None:
        """Ask the worker to close its store and end; kill it when it takes too long."""
        self._stopping.set()
        with self._lock:
            channel, process = self._channel, self._process
        if channel is not None:
            channel.send(Stop())
        if process is not None:
            try:
                process.wait(limits.WORKER_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.error("worker %d does not stop: killed", self._position)
                process.kill()
        if self._thread.ident is not None:
            self._thread.join()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        short_runs = 0
        while not self._stopping.is_set():
            began_ns = self._clock.monotonic_ns()
            phase, message = self._run_once()
            if self._stopping.is_set():
                break
            long_run = self._clock.monotonic_ns() - began_ns > limits.WORKER_STABLE_S * NS_PER_S
            short_runs = 0 if long_run else short_runs + 1
            pause_ms = restart_pause_ms(short_runs)
            log.warning("worker %d: %s; starting again in %d ms", self._position, message, pause_ms)
            self._update(replace(self.view, phase=phase, message=message))
            self._stopping.wait(pause_ms / 1000)
            self._update(replace(self.view, restarts=self.view.restarts + 1))
        self._update(replace(self.view, phase=Phase.STOPPED, message="stopped"))

    def _run_once(self) -> tuple[Phase, str]:
        """Run one process to its end; return what the worker is until the next one."""
        try:
            channel, process = self._spawn()
        except OSError as error:
            return Phase.FAILED, f"cannot start {self._command[0]}: {error.strerror}"
        failure = ""
        self._update(replace(self.view, phase=Phase.STARTING, message="starting", pid=process.pid))
        channel.send(self._start())  # before anyone else can send: a worker wants this first
        with self._lock:
            self._channel, self._process = channel, process
            kept = list(self._kept.values())
        for message in kept:
            channel.send(message)
        if self._stopping.is_set():
            channel.send(Stop())
        try:
            failure = self._listen(channel)
        except ProtocolError as error:
            failure = f"it said something strange: {error}"
            process.kill()
        with self._lock:
            self._channel = self._process = None
        channel.close()
        status = _reap(process)
        self._update(replace(self.view, pid=None))
        if failure:
            return Phase.FAILED, failure
        return Phase.BACKOFF, _describe_exit(status)

    def _spawn(self) -> tuple[MessageChannel, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return MessageChannel(ours), process

    def _listen(self, channel: MessageChannel) -> str:
        """Take messages until the worker is gone; return why it failed, "" when it did not say."""
        while True:
            message: Message | None = channel.receive()
            if message is None:
                return ""
            if isinstance(message, Failed):
                return message.message
            if not isinstance(message, Report):
                raise ProtocolError(f"a worker sent {type(message).__name__}")
            serving = message.port != 0
            phase = Phase.READY if serving else Phase.STARTING
            self._update(
                replace(
                    self.view, report=message, phase=phase, message="" if serving else "starting"
                )
            )

    def _update(self, after: WorkerView) -> None:
        """Replace the view. Only this thread does, so what it is made from cannot change."""
        with self._lock:
            before, self._view = self._view, after
        if _shown(before) != _shown(after):
            self._changed()


def _shown(view: WorkerView) -> tuple[object, ...]:
    port = view.report.port if view.report is not None else 0
    return view.phase, view.pid, port


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process whose channel ended; one that lingers without it is killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(limits.WORKER_STOP_TIMEOUT_S)
    process.kill()
    return process.wait()


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"it was killed by signal {-status}"
    return f"it ended with status {status}"
