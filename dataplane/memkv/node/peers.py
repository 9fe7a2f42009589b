"""Asking another worker what it knows of a slot: blocks and deletes, over the data protocol."""

import socket
from collections.abc import Iterator
from typing import Self

from memkv.clock import Clock
from memkv.errors import PeerGone
from memkv.shardmap import Worker
from memkv.status import Status
from memkv.wire.client_session import ClientSession, SessionRefused
from memkv.wire.errors import WireError
from memkv.wire.frame import HEADER_BYTES, Frame, FrameReader, encode_frame, parse_header
from memkv.wire.messages import HelloRequest, ListKind, ListPage, ListRequest, error_text
from memkv.wire.opcodes import Opcode
from memkv.wire.ticket import Rights, anonymous_ticket

PEER_TIMEOUT_S = 5.0  # a peer that takes longer is asked again later
PEER_TENANT = "memkv-peer"  # listings are of all tenants; a session needs some tenant's name


class Peer:
    """A control connection to another worker. Blocking; for one thread."""

    def __init__(self, pool: str, me: bytes, peer: Worker, clock: Clock) -> None:
        """Connect and open a session. PeerGone when that fails; its message says why."""
        self._name = f"worker {peer.uuid.hex()[:8]} at {peer.host}:{peer.port}"
        self._next_id = 1 << 32  # apart from the ids of the session
        try:
            self._socket = socket.create_connection((peer.host, peer.port), PEER_TIMEOUT_S)
        except OSError as error:
            raise PeerGone(f"{self._name}: {error.strerror or error}") from error
        ticket = anonymous_ticket(pool, PEER_TENANT, clock.wall_s(), rights=Rights.PEER)
        session = ClientSession(HelloRequest(me, pool, ticket.encode()))
        try:
            frame = self._ask(session.encode_hello())
            session.hello_answered(frame.header, frame.body)
        except (PeerGone, SessionRefused, WireError) as error:
            self.close()
            raise PeerGone(f"{self._name}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        self._socket.close()

    def pages(self, slot: int, kind: ListKind) -> Iterator[ListPage]:
        """Yield all pages of a slot. PeerGone when the peer fails or refuses."""
        cursor = 0
        while True:
            request = ListRequest(slot, kind, cursor)
            self._next_id += 1
            frame = self._ask(
                encode_frame(
                    Opcode.LIST,
                    0,
                    self._next_id,
                    request.encode(),
                    deadline_ms=int(PEER_TIMEOUT_S * 1000),
                )
            )
            header = frame.header
            if header.status < 0:
                text = error_text(frame.body)
                raise PeerGone(f"{self._name}: {Status(header.status).name}: {text}")
            try:
                page = ListPage.decode(frame.body, header.item_count)
            except WireError as error:
                raise PeerGone(f"{self._name}: {error}") from error
            yield page
            if page.next_cursor <= cursor:
                return
            cursor = page.next_cursor

    def _ask(self, request: bytes) -> Frame:
        try:
            self._socket.sendall(request)
            start = self._exactly(HEADER_BYTES)
            header = parse_header(start, responses=True)
            if header.payload_bytes:
                raise PeerGone(f"{self._name}: a payload nobody asked for")
            events = FrameReader(responses=True).feed(start + self._exactly(header.body_bytes))
        except (OSError, WireError) as error:
            raise PeerGone(f"{self._name}: {error}") from error
        frame = events[0]
        if not isinstance(frame, Frame):
            raise PeerGone(f"{self._name}: no frame came")
        return frame

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                raise PeerGone(f"{self._name} closed the connection")
            view = view[received:]
        return bytes(data)
