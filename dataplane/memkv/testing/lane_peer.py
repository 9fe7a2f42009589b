"""The far end of a lane, by script: what a node, a broken node or a liar would send.

A script is a function of one `Connection`; each connection runs it in a thread of its own, and what
it raises is raised again by `LanePeer.close`. A connection that the client closed ends its script.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from memkv._hotpath import block_root, chunk_sums
from memkv.wire.frame import HEADER_BYTES, FrameHeader, encode_frame, parse_header
from memkv.wire.items import encode_get_result
from memkv.wire.messages import pack_statuses
from memkv.wire.opcodes import Flag

PEER_TIMEOUT_S = 30.0  # a script that waits longer has a bug
DONE = Flag.RESPONSE | Flag.LAST


@dataclass(frozen=True, slots=True)
class Request:
    """One frame a client sent."""

    header: FrameHeader
    body: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Connection:
    """One accepted connection, with the answers that scripts are made of."""

    socket: socket.socket
    number: int

    def receive(self, length: int) -> bytes:
        """Raises ConnectionError when the client closes before `length` bytes."""
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(min(length - len(data), 1 << 20))
            if not piece:
                raise ConnectionError("the client closed")
            data += piece
        return bytes(data)

    def request(self) -> Request:
        header = parse_header(self.receive(HEADER_BYTES), responses=False)
        return Request(header, self.receive(header.body_bytes), self.receive(header.payload_bytes))

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def until_closed(self) -> bytes:
        """Return what the client still sends until it closes."""
        rest = bytearray()
        while piece := self._receive_or_nothing():
            rest += piece
        return bytes(rest)

    def _receive_or_nothing(self) -> bytes:
        try:
            return self.socket.recv(1 << 20)
        except ConnectionError:
            return b""


Script = Callable[[Connection], None]


class LanePeer:
    """A listener on loopback that runs `script` for each connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._faults: list[BaseException] = []
        self.threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def connect(self) -> int:
        """Return a connected fd for a lane; the caller owns it."""
        near = socket.create_connection(self._listener.getsockname())
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far, _ = self._listener.accept()
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.settimeout(PEER_TIMEOUT_S)
        connection = Connection(far, len(self.threads))
        thread = threading.Thread(target=self._serve, args=(connection,))
        self._sockets.append(far)
        self.threads.append(thread)
        thread.start()
        return near.detach()

    def _serve(self, connection: Connection) -> None:
        try:
            with connection.socket:
                self._script(connection)
        except ConnectionError:
            pass
        except BaseException as error:
            self._faults.append(error)

    def join(self) -> None:
        """Wait for all scripts to end."""
        deadline = time.monotonic() + PEER_TIMEOUT_S
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Wait for all scripts; the client must have closed its ends. Raises their first fault."""
        self._listener.close()
        self.join()
        if self._faults:
            raise self._faults[0]

    def __enter__(self) -> LanePeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def respond(
    request: Request, body: bytes = b"", *, status: int = 0, count: int = 0,
    flags: int = DONE, payload_bytes: int = 0,
) -> bytes:
    """Return a response frame without its payload."""
    return encode_frame(
        request.header.opcode, flags, request.header.request_id, body,
        status=status, count=count, payload_bytes=payload_bytes,
    )


def respond_statuses(request: Request, statuses: list[int]) -> bytes:
    return respond(request, pack_statuses(statuses), count=len(statuses))


def respond_hit(
    request: Request, index: int, block_id: bytes, tenant_tag: bytes, data: bytes, *, last: bool,
    claimed: bytes | None = None,
) -> bytes:
    """Return a whole GET answer with payload; `claimed`: the bytes its sums are made of."""
    summed = data if claimed is None else claimed
    sums = chunk_sums(summed)
    root = block_root(block_id, tenant_tag, len(data), sums)
    body = encode_get_result(index, 0, len(data), root, sums)
    flags = DONE if last else Flag.RESPONSE
    return respond(request, body, count=1, flags=flags, payload_bytes=len(data)) + data


def respond_placed(
    request: Request, index: int, block_id: bytes, tenant_tag: bytes, claimed: bytes, *,
    last: bool,
) -> bytes:
    """Return an answer to a LOCAL_GET that says that `claimed` lies in place."""
    sums = chunk_sums(claimed)
    root = block_root(block_id, tenant_tag, len(claimed), sums)
    body = encode_get_result(index, 0, len(claimed), root, sums)
    return respond(request, body, count=1, flags=DONE if last else Flag.RESPONSE)


def respond_absent(
    request: Request, index: int, status: int, *, last: bool, length: int = 0
) -> bytes:
    """Return a GET answer without payload."""
    flags = DONE if last else Flag.RESPONSE
    return respond(request, encode_get_result(index, status, length), count=1, flags=flags)
