"""A session with another worker: what it has of a slot, what was deleted there, and the blocks.

Blocking, for one thread. Whatever goes wrong ends the session with PeerGone: its streams may be in
the middle of a frame. A refusal of one request (BUSY, DENIED) is PeerRefused and leaves it whole.
"""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from memkv import limits
from memkv._hotpath import Stream, StreamClosed, StreamTimeout, TlsFailed
from memkv.clock import Clock, deadline_after_ms
from memkv.errors import ConfigError, PeerGone, RetryLater
from memkv.node.moves.tickets import PeerTickets
from memkv.shardmap import MapVersion, Worker
from memkv.status import Status
from memkv.tcp.tls import ClientContexts, explain
from memkv.wire.client_session import ClientSession, SessionRefused
from memkv.wire.errors import UnexpectedResponse, WireError
from memkv.wire.frame import HEADER_BYTES, Frame, check_body, encode_frame, parse_header
from memkv.wire.items import PullResult, decode_pull_result, encode_pull_request
from memkv.wire.messages import (
    HelloRequest,
    ListKind,
    ListPage,
    ListRequest,
    error_text,
    status_of,
)
from memkv.wire.opcodes import Flag, Opcode


class PeerRefused(RetryLater):
    """The peer answered a request with a negative status. The session can go on."""


class PeerOfAnotherLineage(PeerGone):
    """The peer goes by maps of another lineage."""


class Payload(Protocol):
    """The bytes of one block, still in the stream. Exactly one call of one method."""

    def into(self, target: memoryview) -> bytes:
        """Receive them; return the chunk sums."""

    def drop(self) -> None:
        """Read them away."""


TakeBlock = Callable[[bytes, PullResult, Payload], None]
"""(block id, what is stored beside it, its bytes); called for blocks that the peer has."""


class Peer(Protocol):
    """What moves ask of another worker."""

    @property
    def served(self) -> tuple[int, int]:
        """(term, epoch) of the map the peer went by when the session began."""

    def pages(self, slot: int, kind: ListKind, since_epoch: int = 0) -> Iterator[ListPage]:
        """Yield all pages of a slot."""

    def pull(self, tenant_tag: bytes, ids: list[bytes], take: TakeBlock) -> list[Status]:
        """Fetch blocks; return a status for each id: OK when `take` was called."""

    def close(self) -> None: ...


Connect = Callable[[Worker, MapVersion], Peer]
"""Opens a session with a worker, to be used under one map. Raises RetryLater."""


@dataclass(frozen=True, slots=True)
class _StreamPayload:
    stream: Stream
    length: int
    deadline_ns: int

    def into(self, target: memoryview) -> bytes:
        return self.stream.receive_and_sum(target, self.deadline_ns)

    def drop(self) -> None:
        self.stream.discard(self.length, self.deadline_ns)


class PeerSession:
    """A control connection and, once blocks are wanted, a lane. Implements `Peer`."""

    def __init__(
        self, pool: str, me: bytes, peer: Worker, version: MapVersion, tickets: PeerTickets,
        clock: Clock, tls: ClientContexts | None = None,
    ) -> None:  # fmt: skip
        """Connect and open a session. RetryLater when that fails; its message says why."""
        self._tls = tls
        self._name = f"worker {peer.uuid.hex()[:8]} at {peer.host}:{peer.port}"
        self._address = (peer.host, peer.port)
        self._version = version
        self._clock = clock
        self._next_id = 1 << 32  # apart from the ids of the session
        hello = HelloRequest(me, pool, tickets.ticket(), version.lineage)
        self._session = ClientSession(hello)
        self._lane: Stream | None = None
        self._control = self._connect()
        try:
            self._send(self._control, self._session.encode_hello())
            frame = self._receive(self._control)
            granted = self._session.hello_answered(frame.header, frame.body)
        except (SessionRefused, WireError) as error:
            self.close()
            raise PeerGone(f"{self._name}: {error}") from error
        except BaseException:
            self.close()
            raise
        if granted.worker_uuid != peer.uuid:
            self.close()
            raise PeerGone(f"{self._name} is another worker now")
        if granted.lineage not in (bytes(16), version.lineage):
            self.close()
            raise PeerOfAnotherLineage(f"{self._name} goes by maps of another lineage")
        self.served = granted.map_term, granted.map_epoch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session. May be called twice."""
        for stream in (self._lane, self._control):
            if stream is not None:
                stream.close()
        self._lane = None

    def pages(self, slot: int, kind: ListKind, since_epoch: int = 0) -> Iterator[ListPage]:
        cursor = 0
        while True:
            request = ListRequest(slot, kind, cursor, since_epoch=since_epoch).encode()
            self._send(self._control, self._request(Opcode.LIST, request))
            frame = self._answer(self._control)
            try:
                page = ListPage.decode(frame.body, frame.header.item_count)
            except WireError as error:
                raise PeerGone(f"{self._name}: {error}") from error
            yield page
            if page.next_cursor <= cursor:
                return
            cursor = page.next_cursor

    def pull(self, tenant_tag: bytes, ids: list[bytes], take: TakeBlock) -> list[Status]:
        """As in `Peer`. The whole batch has limits.PEER_TIMEOUT_MS."""
        statuses = [Status.UNAVAILABLE] * len(ids)
        lane = self._lane or self._open_lane()
        body = encode_pull_request(tenant_tag, b"".join(ids))
        self._send(lane, self._request(Opcode.PULL, body, len(ids)))
        deadline_ns = self._deadline_ns()
        while True:
            frame = self._answer(lane, deadline_ns)
            index, status = self._item(lane, frame, ids, take, deadline_ns)
            statuses[index] = status
            if frame.header.flags & Flag.LAST:
                return statuses

    def _item(
        self, lane: Stream, frame: Frame, ids: list[bytes], take: TakeBlock, deadline_ns: int
    ) -> tuple[int, Status]:
        try:
            result = decode_pull_result(frame.body)
            index, length = result.block.index, frame.header.payload_bytes
            if index >= len(ids) or (length and length != result.block.length):
                raise UnexpectedResponse("a block that was not asked for, or of another length")
        except WireError as error:
            raise PeerGone(f"{self._name}: {error}") from error
        status = status_of(result.block.status)
        if length:
            payload = _StreamPayload(lane, length, deadline_ns)
            try:
                take(ids[index], result, payload)
            except (StreamClosed, StreamTimeout) as error:
                raise PeerGone(f"{self._name} stopped inside a block: {error}") from error
        elif status is Status.OK:
            raise PeerGone(f"{self._name}: a block without bytes")
        return index, status

    # --- frames ------------------------------------------------------------------------------
    def _deadline_ns(self) -> int:
        return deadline_after_ms(self._clock, limits.PEER_TIMEOUT_MS)

    def _connect(self) -> Stream:
        try:
            connected = socket.create_connection(self._address, limits.PEER_TIMEOUT_MS / 1000)
        except OSError as error:
            raise PeerGone(f"{self._name}: {error.strerror or error}") from error
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return Stream(connected.detach())
        try:
            context = self._tls()
        except ConfigError as error:
            connected.close()
            raise PeerGone(f"{self._name}: {error}") from error
        stream = Stream(connected.detach(), tls=context)
        try:
            stream.handshake(self._deadline_ns())
        except TlsFailed as error:
            stream.close()
            raise PeerGone(f"{self._name}: {explain(str(error))}") from error
        except (StreamClosed, StreamTimeout) as error:
            stream.close()
            raise PeerGone(f"{self._name}: no TLS handshake: {error}") from error
        return stream

    def _open_lane(self) -> Stream:
        lane = self._connect()
        try:
            self._send(lane, self._session.encode_lane_hello(express=False))
            self._answer(lane)
        except BaseException:
            lane.close()
            raise
        self._lane = lane
        return lane

    def _request(self, opcode: int, body: bytes, count: int = 0) -> bytes:
        self._next_id += 1
        return encode_frame(
            opcode, 0, self._next_id, body, count=count, deadline_ms=limits.PEER_TIMEOUT_MS,
            map_epoch=self._version.epoch, map_term=self._version.term,
        )  # fmt: skip

    def _send(self, stream: Stream, frame: bytes) -> None:
        try:
            stream.send([frame], self._deadline_ns())
        except (StreamClosed, StreamTimeout) as error:
            raise PeerGone(f"{self._name} does not listen any more: {error}") from error

    def _answer(self, stream: Stream, deadline_ns: int | None = None) -> Frame:
        """Return a response that is not a refusal."""
        frame = self._receive(stream, deadline_ns)
        if frame.header.status < 0:
            status = status_of(frame.header.status)
            raise PeerRefused(f"{self._name}: {status.name}: {error_text(frame.body)}")
        return frame

    def _receive(self, stream: Stream, deadline_ns: int | None = None) -> Frame:
        """Return the next frame; its payload is still in the stream."""
        start = bytearray(HEADER_BYTES)
        deadline_ns = deadline_ns or self._deadline_ns()
        try:
            stream.receive(start, deadline_ns)
            header = parse_header(start, responses=True)
            body = bytearray(header.body_bytes)
            if body:
                stream.receive(body, deadline_ns)
            whole = bytes(body)
            check_body(header, whole)
        except (StreamClosed, StreamTimeout, WireError) as error:
            raise PeerGone(f"{self._name} does not answer: {error}") from error
        return Frame(header, whole)
