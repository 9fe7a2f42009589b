"""The limit of a transfer over TCP: a bare Python sender and a receiver that checks sums.

The sender is another process and sends one warm buffer with sendall for as long as it is read. The
receiver fills a buffer with recv_into(MSG_WAITALL) and computes the chunk sums of each block, the
work that MemKV's receiver does too. Both set the socket options that MemKV's lanes set.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Self

from memkv import _hotpath, pattern
from memkv.bench.memory import page_aligned
from memkv.bench.statistics import gb_per_s, percentile

STREAM_SEED = 1
CONNECT_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class StreamSample:
    """One measurement of the bare stream."""

    gbps: float
    p50_us: float


def tune(connection: socket.socket) -> None:
    """Set the options of MemKV's lanes: no delay, buffers sized by the kernel."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class BareStream:
    """A sender process and this process as its receiver. Use as a context manager."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._target = page_aligned(size_bytes)
        self._sums = _hotpath.chunk_sums(pattern.block(STREAM_SEED, size_bytes))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(CONNECT_TIMEOUT_S)
            port: int = listener.getsockname()[1]
            command = [sys.executable, "-m", "memkv.bench.stream_limit", str(port), str(size_bytes)]
            self._sender = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            self._connection, _ = listener.accept()
        self._connection.settimeout(None)
        tune(self._connection)
        self._stop_sender()

    def measure(self, seconds: float) -> StreamSample:
        """Receive for about `seconds`. Raises RuntimeError when a block arrives wrong."""
        self._sender.send_signal(signal.SIGCONT)
        # What lies in the socket since the last turn was sent outside the clock.
        self._receive()
        times: list[float] = []
        begin = now = time.perf_counter()
        while now - begin < seconds:
            before = now
            self._receive()
            now = time.perf_counter()
            times.append((now - before) * 1e6)
        self._stop_sender()
        return StreamSample(
            gb_per_s(len(times) * self._size_bytes, now - begin), percentile(times, 0.5)
        )

    def _receive(self) -> None:
        view, received = self._target, 0
        while received < self._size_bytes:
            count = self._connection.recv_into(view[received:], 0, socket.MSG_WAITALL)
            if count == 0:
                raise RuntimeError("the bare sender went away; was its process killed?")
            received += count
        if _hotpath.chunk_sums(view) != self._sums:
            raise RuntimeError("the bare stream delivered wrong bytes")

    def _stop_sender(self) -> None:
        self._sender.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._connection.close()
        self._sender.kill()
        self._sender.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def send_for_ever(port: int, size_bytes: int) -> None:
    """The sender process: one warm buffer, sendall, until the receiver closes."""
    block = page_aligned(size_bytes)
    pattern.fill(block, STREAM_SEED)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        tune(connection)
        parent = os.getppid()
        try:
            while os.getppid() == parent:
                connection.sendall(block)
        except (BrokenPipeError, ConnectionResetError):
            return


if __name__ == "__main__":
    send_for_ever(int(sys.argv[1]), int(sys.argv[2]))
