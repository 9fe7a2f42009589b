"""The limit of small gets: a bare Python TCP ping-pong of one small block.

The client sends 64 bytes (a request is no smaller), the server process answers with the block, the
client reads it whole. Plain blocking sockets, no framing, no checks.
"""

import socket
import subprocess
import sys
import time
from typing import Self

from memkv.bench.memory import page_aligned
from memkv.bench.stream_limit import CONNECT_TIMEOUT_S, tune

REQUEST_BYTES = 64


class PingPong:
    """A server process and a client socket. Use as a context manager."""

    def __init__(self, size_bytes: int) -> None:
        self._target = page_aligned(size_bytes)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(CONNECT_TIMEOUT_S)
            port: int = listener.getsockname()[1]
            command = [sys.executable, "-m", "memkv.bench.ping_limit", str(port), str(size_bytes)]
            self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            self._connection, _ = listener.accept()
        self._connection.settimeout(None)
        tune(self._connection)

    def measure_us(self, count: int) -> list[float]:
        """Return the time of `count` round trips."""
        request = bytes(REQUEST_BYTES)
        times = []
        for _ in range(count):
            before = time.perf_counter()
            self._connection.sendall(request)
            receive_whole(self._connection, self._target)
            times.append((time.perf_counter() - before) * 1e6)
        return times

    def close(self) -> None:
        self._connection.close()
        self._server.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def receive_whole(connection: socket.socket, target: memoryview) -> bool:
    """Fill `target`; False when the peer closed."""
    received = 0
    while received < len(target):
        count = connection.recv_into(target[received:], 0, socket.MSG_WAITALL)
        if count == 0:
            return False
        received += count
    return True


def serve(port: int, size_bytes: int) -> None:
    """The server process: a block for each request, until the client closes."""
    block = page_aligned(size_bytes)
    request = memoryview(bytearray(REQUEST_BYTES))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        tune(connection)
        while receive_whole(connection, request):
            connection.sendall(block)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
