"""The limit of a transfer under TLS: a bare OpenSSL stream of the same cipher.

The sender is another process and sends one warm buffer for as long as it is read, by the native
stream alone. It is read twice in each turn, by Python's own `ssl` and by the native stream, both
with the chunk sums that MemKV's receiver makes, too; the faster of them is the limit.
"""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from memkv import _hotpath, pattern
from memkv.bench.encrypted_pool import NODE_NAME
from memkv.bench.memory import page_aligned
from memkv.bench.statistics import gb_per_s
from memkv.bench.stream_limit import CONNECT_TIMEOUT_S, STREAM_SEED, tune

CIPHER = "TLS_AES_128_GCM_SHA256"
FAR_NS = 3600 * 10**9


class Receiver(Protocol):
    """Reads blocks of one size."""

    def receive(self, target: memoryview) -> bytes:
        """Fill the target and return its chunk sums."""

    def close(self) -> None: ...


class PythonReceiver:
    """By the module ssl, a record for each call."""

    def __init__(self, connection: socket.socket, authority: bytes) -> None:
        context = ssl.create_default_context(cadata=authority.decode("ascii"))
        self._stream = context.wrap_socket(connection, server_hostname=NODE_NAME)
        found = self._stream.cipher()
        assert found is not None
        if found[0] != CIPHER:
            raise RuntimeError(f"the bare stream speaks {found[0]}, and MemKV {CIPHER}")

    def receive(self, target: memoryview) -> bytes:
        received = 0
        while received < len(target):
            count = self._stream.recv_into(target[received:])
            if count == 0:
                raise RuntimeError("the bare sender went away; was its process killed?")
            received += count
        return _hotpath.chunk_sums(target)

    def close(self) -> None:
        self._stream.close()


class NativeReceiver:
    """By the stream of MemKV's lanes, without anything else of them."""

    def __init__(self, connection: socket.socket, authority: bytes) -> None:
        context = _hotpath.TlsContext.client(authority, NODE_NAME)
        self._stream = _hotpath.Stream(connection.detach(), tls=context)

    def receive(self, target: memoryview) -> bytes:
        return self._stream.receive_and_sum(target, time.monotonic_ns() + FAR_NS)

    def close(self) -> None:
        self._stream.close()


class BareEncryptedStream:
    """A sender process and this process as its receiver."""

    def __init__(
        self, size_bytes: int, certificate: Path, key: Path,
        make: Callable[[socket.socket, bytes], Receiver],
    ) -> None:  # fmt: skip
        self._target = page_aligned(size_bytes)
        self._sums = _hotpath.chunk_sums(pattern.block(STREAM_SEED, size_bytes))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(CONNECT_TIMEOUT_S)
            port: int = listener.getsockname()[1]
            command = [
                sys.executable, "-m", "memkv.bench.encrypted_limit", str(port), str(size_bytes),
                str(certificate), str(key),
            ]  # fmt: skip
            self._sender = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            connection, _ = listener.accept()
        connection.settimeout(None)
        tune(connection)
        self._receiver = make(connection, certificate.read_bytes())
        self._receive()
        self._sender.send_signal(signal.SIGSTOP)

    def measure_gbps(self, seconds: float) -> float:
        """Receive for about `seconds`. RuntimeError when a block arrives wrong."""
        self._sender.send_signal(signal.SIGCONT)
        self._receive()  # what lies in the socket was sent outside the clock
        blocks, begin = 0, time.perf_counter()
        now = begin
        while now - begin < seconds:
            self._receive()
            blocks += 1
            now = time.perf_counter()
        self._sender.send_signal(signal.SIGSTOP)
        return gb_per_s(blocks * len(self._target), now - begin)

    def _receive(self) -> None:
        if self._receiver.receive(self._target) != self._sums:
            raise RuntimeError("the bare stream delivered wrong bytes")

    def close(self) -> None:
        self._sender.kill()
        self._sender.wait()
        self._receiver.close()


class EncryptedStreamLimit:
    """The faster of both receivers, as a Limit."""

    def __init__(self, size_bytes: int, certificate: Path, key: Path | None) -> None:
        """`certificate`: PEM, its own authority."""
        assert key is not None
        self.name = f"bare OpenSSL stream, {CIPHER}"
        self._streams = [
            BareEncryptedStream(size_bytes, certificate, key, make)
            for make in (PythonReceiver, NativeReceiver)
        ]

    def measure(self, seconds: float) -> float:
        return max([stream.measure_gbps(seconds) for stream in self._streams])

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def send_for_ever(port: int, size_bytes: int, certificate: Path, key: Path) -> None:
    """The sender process: one warm buffer, until the receiver closes."""
    block = page_aligned(size_bytes)
    pattern.fill(block, STREAM_SEED)
    connection = socket.create_connection(("127.0.0.1", port))
    tune(connection)
    context = _hotpath.TlsContext.server(certificate.read_bytes(), key.read_bytes())
    stream = _hotpath.Stream(connection.detach(), tls=context)
    parent = os.getppid()
    with suppress(_hotpath.StreamClosed):
        while os.getppid() == parent:
            stream.send([block], time.monotonic_ns() + FAR_NS)


if __name__ == "__main__":
    send_for_ever(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
