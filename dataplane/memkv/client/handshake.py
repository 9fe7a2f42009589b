"""Opening connections to a worker: HELLO on the control connection, then lanes by one-time token.

Blocking sockets with a deadline, used by keeper threads only. A finished connection's fd is
handed over to a native lane, which owns it from then on.
"""

from __future__ import annotations

import array
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memkv._hotpath import TlsContext
from memkv.client.encrypted import Connected, EncryptedSocket
from memkv.clock import Clock, remaining_ms
from memkv.errors import PeerGone, ProtocolError
from memkv.local.sockets import connect
from memkv.status import Status
from memkv.wire.frame import Frame, FrameReader, encode_frame
from memkv.wire.messages import HelloRequest, HelloResponse, LaneHello, error_text, status_of
from memkv.wire.opcodes import Flag, Opcode

TLS_ALERT = b"\x15\x03"  # begins what a server of TLS says to a client that speaks none


class Refused(ProtocolError):
    """The worker answered with a status: wrong pool, ticket, version, limit or descriptor."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(f"{status.name}: {text}")
        self.status = status


@dataclass(slots=True)
class Handshake:
    """Who connects where, and until when. With `path` lanes go to the worker's Unix socket; with
    `tls` connections to its port are encrypted."""

    host: str
    port: int
    deadline_ns: int
    clock: Clock
    path: Path | None = None
    tls: TlsContext | None = None
    _connection: Connected | None = None

    def abort(self) -> None:
        """End a handshake under way, from any thread; it raises PeerGone soon."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):  # it ended by itself in the meantime
                connection.shutdown(socket.SHUT_RDWR)

    def open_control(self, request: HelloRequest) -> tuple[Connected, HelloResponse]:
        """Connect and say HELLO. Raises PeerGone or Refused; the caller owns the socket."""
        connection = self._connect()
        try:
            frame = self._exchange(connection, Flag.NONE, request.encode())
            return connection, HelloResponse.decode(frame.body)
        except BaseException:
            connection.close()
            raise

    def open_lane(self, session_uuid: bytes, token: bytes, *, express: bool) -> Connected:
        """Connect and bind a payload lane. Raises PeerGone or Refused."""
        connection = self._connect()
        try:
            flags = Flag.LANE | (Flag.EXPRESS if express else Flag.NONE)
            self._exchange(connection, flags, LaneHello(session_uuid, token).encode())
            return connection
        except BaseException:
            connection.close()
            raise

    def _connect(self) -> Connected:
        connection = self._connect_plainly()
        if self.tls is None:
            return connection
        encrypted = self._connection = EncryptedSocket(connection, self.tls, self.clock)
        try:
            encrypted.handshake()
        except OSError as error:
            encrypted.close()
            raise PeerGone(f"worker {self._where} did not answer ({error})") from error
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def _connect_plainly(self) -> socket.socket:
        try:
            if self.path is not None:
                connection = connect(self.path, self._timeout_s())
            else:
                connection = socket.create_connection((self.host, self.port), self._timeout_s())
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise PeerGone(
                f"worker {self._where} does not accept connections ({error}); see `memkv nodes`"
            ) from error
        self._connection = connection
        return connection

    def _exchange(self, connection: Connected, flags: Flag, body: bytes) -> Frame:
        return self.exchange(connection, encode_frame(Opcode.HELLO, flags, 0, body))

    def exchange(
        self, connection: Connected, frame: bytes,
        passed: Sequence[tuple[int, int, bytes | array.array[int]]] = (),
    ) -> Frame:
        """Send one request, with what is `passed` beside it, and return its answer.

        Raises PeerGone or Refused; after PeerGone the connection is of no use.
        """
        self._connection = connection
        reader = FrameReader(responses=True)
        try:
            connection.settimeout(self._timeout_s())
            sent = connection.sendmsg([frame], passed)
            connection.sendall(frame[sent:])
            while True:
                connection.settimeout(self._timeout_s())
                data = connection.recv(reader.bytes_wanted())
                if data.startswith(TLS_ALERT):
                    raise PeerGone(
                        f"worker {self._where} speaks TLS and this client does not: give it the CA "
                        "of the pool (connection.json has it), or leave payload_encryption out"
                    )
                if not data:
                    reader.finish()
                    raise PeerGone(f"worker {self._where} closed instead of answering")
                for event in reader.feed(data):
                    if isinstance(event, Frame):
                        return self._accepted(event)
        except OSError as error:
            raise PeerGone(
                f"worker {self._where} did not answer ({error}); is it stopped or overloaded? see "
                "`memkv nodes`"
            ) from error

    @property
    def _where(self) -> str:
        return f"{self.host}:{self.port}" if self.path is None else str(self.path)

    def _accepted(self, frame: Frame) -> Frame:
        if frame.header.status < 0:
            raise Refused(status_of(frame.header.status), error_text(frame.body))
        return frame

    def _timeout_s(self) -> float:
        left_ms = remaining_ms(self.clock, self.deadline_ns)
        if left_ms <= 0:
            raise PeerGone(f"worker {self._where} did not answer in time")
        return left_ms / 1000
