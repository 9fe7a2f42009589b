"""A connection under TLS with the part of a socket's interface that opening a session uses."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memkv._hotpath import Stream, StreamClosed, StreamTimeout, TlsContext, TlsFailed
from memkv.clock import Clock
from memkv.errors import PeerGone
from memkv.tcp.tls import explain

if TYPE_CHECKING:
    import array

RECEIVE_BYTES = 64 * 1024
NS_PER_S = 1_000_000_000


class EncryptedSocket:
    """Owns a connected socket. OSError for what a socket would raise it for; PeerGone when the
    peer is not believed, or speaks no TLS."""

    def __init__(self, connected: socket.socket, context: TlsContext, clock: Clock) -> None:
        self._own: tuple[str, int] = connected.getsockname()
        self._peer: tuple[str, int] = connected.getpeername()
        self._clock = clock
        self._timeout_s = connected.gettimeout() or 1.0
        self._stream = Stream(connected.detach(), tls=context)

    def handshake(self) -> None:
        """Make the handshake now, so that its errors are told apart from those of requests."""
        try:
            self._stream.handshake(self._deadline_ns())
        except TlsFailed as error:
            host, port = self._peer[:2]
            raise PeerGone(f"worker {host}:{port}: {explain(str(error))}") from error
        except (StreamClosed, StreamTimeout) as error:
            raise ConnectionError(f"no TLS handshake: {error}") from error

    def settimeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def sendmsg(
        self, buffers: Sequence[bytes],
        passed: Sequence[tuple[int, int, bytes | array.array[int]]] = (),
    ) -> int:
        assert not passed, "descriptors are passed through Unix sockets, which are not encrypted"
        for buffer in buffers:
            self.sendall(buffer)
        return sum(map(len, buffers))

    def sendall(self, data: bytes) -> None:
        if not data:
            return
        try:
            self._stream.send([data], self._deadline_ns())
        except (StreamClosed, StreamTimeout) as error:
            raise ConnectionError(str(error)) from error

    def recv(self, size: int) -> bytes:
        target = bytearray(min(size, RECEIVE_BYTES))
        try:
            count = self._stream.receive_some(target, self._deadline_ns())
        except (StreamClosed, StreamTimeout) as error:
            raise ConnectionError(str(error)) from error
        return bytes(target[:count])

    def shutdown(self, how: int) -> None:
        self._stream.shutdown()

    def getsockname(self) -> tuple[str, int]:
        return self._own

    def getpeername(self) -> tuple[str, int]:
        return self._peer

    def fileno(self) -> int:
        return self._stream.fd

    def detach(self) -> Stream:
        """Give the stream away, for a lane."""
        return self._stream

    def close(self) -> None:
        self._stream.close()

    def _deadline_ns(self) -> int:
        return self._clock.monotonic_ns() + int(self._timeout_s * NS_PER_S)


Connected = socket.socket | EncryptedSocket
