"""One thread, one connection that has something to say: read it, serve it, say what comes next.

Nothing here knows pollers: the caller arms, moves or closes the connection by the verdict.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from enum import Enum

from memkv import limits
from memkv._hotpath import SingleGet, Stream, StreamClosed, StreamTimeout, TlsFailed, receive_get
from memkv.local.service import LocalService
from memkv.node.connection import Connection
from memkv.node.control import ControlService
from memkv.node.ownership import Ownership
from memkv.node.statistics import ConnectionCounters
from memkv.node.unsettled import Unsettled
from memkv.rdma.service import RdmaService
from memkv.status import Status
from memkv.tcp.get import GetService
from memkv.tcp.lane import NS_PER_MS, Lane, ServingThread, request_deadline_ns
from memkv.tcp.pull import PullService
from memkv.tcp.put import PutService
from memkv.wire.errors import WireError
from memkv.wire.frame import Frame, encode_error
from memkv.wire.opcodes import GET_ITEM_BYTES, HEADER_BYTES, Flag, Opcode
from memkv.wire.session import ConnectionState, Event

log = logging.getLogger(__name__)

READ_BYTES = 64 * limits.KIB  # a control request of 1024 keys in one piece
_READ_NS = 1_000 * NS_PER_MS  # epoll said that there is something: no wait but for a processor
_LINGER_NS = 200_000  # a client in Python takes some 50 us between two gets, more on a busy machine
_LINGER_ROUNDS = 32  # then others get their turn; another thread serves them in the meantime
_LINGER_SKIPS = 15  # requests of a lane that was not back in time, before it is waited for again
_EXPRESS_ITEMS_MAX = limits.EXPRESS_INLINE_BYTES_MAX // limits.SMALL_PAYLOAD_BYTES_MAX
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x46"  # fatal, protocol_version
_SINGLE_GET_BYTES = HEADER_BYTES + GET_ITEM_BYTES
_KEY_OPCODES = (Opcode.EXISTS, Opcode.DELETE, Opcode.PIN, Opcode.PREFETCH, Opcode.WHY)
_LOCAL_OPCODES = (Opcode.REGISTER, Opcode.UNREGISTER, Opcode.LOCAL_GET, Opcode.LOCAL_PUT)
_RDMA_OPCODES = (
    Opcode.RDMA_CONNECT, Opcode.RDMA_REGISTER, Opcode.RDMA_UNREGISTER, Opcode.RDMA_GET,
    Opcode.RDMA_PUT,
)  # fmt: skip
_LONG_OPCODES = (
    Opcode.DELETE, Opcode.LIST, Opcode.PUT, Opcode.GET_RANGES, Opcode.PULL, *_LOCAL_OPCODES,
    *_RDMA_OPCODES,
)  # fmt: skip


class Verdict(Enum):
    """What becomes of the connection."""

    KEEP = "wait for its next event"
    AGAIN = "more of it is here already than its next event would tell"
    TO_LANES = "it is a bulk lane now"
    HAND_OVER = "its pending requests are for the lane threads"
    CLOSE = "close it"


class Dispatcher:
    """Serves whatever arrives on a connection; called by many threads, each with its own."""

    def __init__(
        self,
        control: ControlService,
        gets: GetService,
        puts: PutService,
        pulls: PullService,
        local: LocalService,
        rdma: RdmaService | None,
        ownership: Callable[[], Ownership],
        counters: ConnectionCounters,
        unsettled: Unsettled,
    ) -> None:
        self._control = control
        self._gets = gets
        self._puts = puts
        self._pulls = pulls
        self._local = local
        self._rdma = rdma
        self._ownership = ownership
        self._counters = counters
        self._unsettled = unsettled
        self._control_lingers = threading.Lock()

    def read(self, connection: Connection, thread: ServingThread) -> Verdict:
        """Read what has arrived and serve the requests that are complete."""
        return self._guarded(connection, thread, self._read)

    def resume(self, connection: Connection, thread: ServingThread) -> Verdict:
        """Serve the requests that wait in `connection.pending`."""
        return self._guarded(connection, thread, self._resume)

    def _guarded(
        self,
        connection: Connection,
        thread: ServingThread,
        step: Callable[[Connection, ServingThread], Verdict],
    ) -> Verdict:
        """Whatever a peer does ends here, as a verdict on its connection."""
        try:
            return step(connection, thread)
        except TlsFailed as error:
            self._counters.add("tls_errors")
            log.info("closing a connection: TLS failed (%s)", error)
            if connection.is_new:
                _say_that_this_is_tls(connection)
            return Verdict.CLOSE
        except StreamClosed:
            return Verdict.CLOSE
        except StreamTimeout:
            self._counters.add("stalled")
            return Verdict.CLOSE
        except WireError as error:
            self._counters.add("protocol_errors")
            log.info("closing a connection: %s", error)
            return self._say_goodbye(connection, thread, error, error.status)
        except Exception as error:
            self._counters.add("internal_errors")
            log.exception("a request failed; its connection is closed")
            name = type(error).__name__
            fault = WireError(f"a bug in the node ({name}); please report the node's log")
            return self._say_goodbye(connection, thread, fault, Status.INTERNAL)

    def _read(self, connection: Connection, thread: ServingThread) -> Verdict:
        """Serve what has arrived. Under TLS that may be half a record: no thread waits for the
        rest. Or it is more than was asked for, and the socket has nothing left to tell of."""
        encrypted = connection.is_encrypted
        received = self._receive(connection, thread, 0 if encrypted else _READ_NS)
        if received is None:
            return Verdict.KEEP
        return _ahead(connection, self._serve_and_linger(connection, thread, received))

    def _resume(self, connection: Connection, thread: ServingThread) -> Verdict:
        return _ahead(connection, self._serve_pending(connection, thread))

    def _serve_and_linger(
        self, connection: Connection, thread: ServingThread, received: SingleGet | int
    ) -> Verdict:
        """Serve, then wait a moment for a lane's next request.

        A client that waits for each block asks for the next one at once, and going back through
        the poller costs it a quarter of the round trip. Lanes that do not come back in time are
        not waited for again soon, and only one thread of the control poller waits at a time.
        """
        verdict = self._take_in(connection, thread, received)
        if connection.lane is None or verdict is not Verdict.KEEP:
            return verdict
        if connection.linger_skips:
            connection.linger_skips -= 1
            return verdict
        if thread.serves_bulk:
            return self._linger(connection, thread)
        if not self._control_lingers.acquire(blocking=False):
            return verdict
        try:
            return self._linger(connection, thread)
        finally:
            self._control_lingers.release()

    def _linger(self, connection: Connection, thread: ServingThread) -> Verdict:
        for _ in range(_LINGER_ROUNDS):
            if not connection.reader.is_between_frames:
                break
            try:
                received = self._receive(connection, thread, _LINGER_NS)
            except StreamTimeout:  # nothing was read, so the stream is as it was
                connection.linger_skips = _LINGER_SKIPS
                break
            assert received is not None
            verdict = self._take_in(connection, thread, received)
            if verdict is not Verdict.KEEP:
                return verdict
        return Verdict.KEEP

    @staticmethod
    def _receive(
        connection: Connection, thread: ServingThread, wait_ns: int
    ) -> SingleGet | int | None:
        """Return the next request if it is of the commonest kind, else how much was received; None
        when nothing is there and `wait_ns` is 0."""
        deadline_ns = thread.clock.monotonic_ns() + wait_ns if wait_ns else 0
        lane, stream, reader = connection.lane, connection.stream, connection.reader
        if lane is None or connection.protocol.state is ConnectionState.CLOSING:
            return _receive_some(stream, thread.scratch, deadline_ns)
        target = thread.scratch[: reader.bytes_wanted()]
        if reader.is_between_frames:
            return receive_get(stream, target, deadline_ns)
        return _receive_some(stream, target, deadline_ns)

    def _take_in(
        self, connection: Connection, thread: ServingThread, received: SingleGet | int
    ) -> Verdict:
        """Serve what was just received, or what its bytes complete."""
        if isinstance(received, SingleGet):
            assert connection.lane is not None
            if self._gets.hit(connection.lane, received, thread):
                self._note_map(received.map_term, received.map_epoch)
                return Verdict.KEEP
            received = _SINGLE_GET_BYTES
        if not received:
            return Verdict.CLOSE
        if connection.protocol.state is ConnectionState.CLOSING:
            return Verdict.KEEP  # the peer is still sending what nobody reads; see _say_goodbye
        for event in connection.reader.feed(thread.scratch[:received]):
            assert isinstance(event, Frame)  # payload comes on lanes, where bytes_wanted stops it
            connection.pending.append(event)
        if connection.pending and not connection.is_new:
            # A whole request arrived: how long it takes from here on is not the peer's fault, and
            # the rest of a next one has all its time.
            self._unsettled.forget(connection)
        return self._serve_pending(connection, thread)

    def _serve_pending(self, connection: Connection, thread: ServingThread) -> Verdict:
        while connection.pending:
            frame = connection.pending[0]
            if not thread.serves_bulk and _takes_long(frame):
                return Verdict.HAND_OVER
            connection.pending.popleft()
            try:
                verdict = self._serve(connection, frame, thread)
            except WireError as error:
                error.request_id = error.request_id or frame.header.request_id
                error.opcode = error.opcode or frame.header.opcode
                raise
            if verdict is not Verdict.KEEP:
                return verdict
        return Verdict.KEEP

    def _serve(self, connection: Connection, frame: Frame, thread: ServingThread) -> Verdict:
        header = frame.header
        started_ns = thread.clock.monotonic_ns()
        deadline_ns = request_deadline_ns(started_ns, header.deadline_ms)
        verdict = Verdict.KEEP
        if connection.lane is not None and header.opcode != Opcode.GOODBYE:
            self._serve_lane(connection, frame, deadline_ns, thread)
        elif header.opcode == Opcode.HELLO:
            verdict = self._serve_hello(connection, frame, thread)
        else:
            answer = self._serve_control(connection, frame, deadline_ns, thread)
            thread.send_late(connection.stream, answer)
            if header.opcode == Opcode.GOODBYE:
                verdict = Verdict.CLOSE
        thread.tally.request(header.opcode, thread.clock.monotonic_ns() - started_ns)
        return verdict

    def _serve_lane(
        self, connection: Connection, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        lane, opcode = connection.lane, frame.header.opcode
        assert lane is not None
        self._note_map(frame.header.map_term, frame.header.map_epoch)
        if opcode == Opcode.GET:
            self._gets.get(lane, frame, deadline_ns, thread)
        elif opcode == Opcode.PUT:
            self._puts.put(lane, frame, deadline_ns, thread)
        elif opcode == Opcode.PULL:
            self._pulls.pull(lane, frame, deadline_ns, thread)
        elif opcode in _LOCAL_OPCODES:
            assert connection.session is not None
            regions = connection.session.regions
            self._local.serve(lane, regions, frame, deadline_ns, thread)
        elif opcode in _RDMA_OPCODES:
            self._serve_rdma(connection, lane, frame, deadline_ns, thread)
        else:
            self._gets.get_ranges(lane, frame, deadline_ns, thread)

    def _serve_rdma(
        self, connection: Connection, lane: Lane, frame: Frame, deadline_ns: int,
        thread: ServingThread,
    ) -> None:  # fmt: skip
        header = frame.header
        if self._rdma is not None and connection.rdma is not None:
            self._rdma.serve(lane, connection.rdma, frame, deadline_ns, thread)
        elif header.opcode == Opcode.RDMA_PUT:  # a batch whose other frames nobody reads
            raise WireError("RDMA_PUT: this node serves no RDMA, and said so in HELLO")
        else:
            why = "this node serves no RDMA, and said so in HELLO; use TCP"
            thread.fail(lane.stream, header.opcode, header.request_id, Status.INVALID, why)

    def _serve_hello(self, connection: Connection, frame: Frame, thread: ServingThread) -> Verdict:
        is_lane = bool(frame.header.flags & Flag.LANE)
        serve = self._control.lane_hello if is_lane else self._control.hello
        answer, status = serve(connection, frame)
        thread.tally.item(Opcode.HELLO, status)
        if status is not Status.OK:  # counted first: who was told may look at once
            self._counters.add("refused_lanes" if is_lane else "refused_sessions")
        thread.send_late(connection.stream, answer)
        if status is not Status.OK:
            return _half_close(connection) if connection.is_new else Verdict.KEEP
        lane = connection.lane
        return Verdict.TO_LANES if lane is not None and not lane.express else Verdict.KEEP

    def _serve_control(
        self, connection: Connection, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> bytes:
        header, session = frame.header, connection.session
        assert session is not None
        if header.opcode == Opcode.GOODBYE:
            return self._control.goodbye(frame)
        if not session.allows(header.opcode):
            thread.tally.item(header.opcode, Status.DENIED)
            why = "the ticket does not allow this operation; ask for a ticket with more rights"
            return encode_error(header.opcode, header.request_id, Status.DENIED, why)
        if header.opcode in _KEY_OPCODES:
            self._note_map(frame.header.map_term, frame.header.map_epoch)
            return self._control.keys(session, frame, deadline_ns, thread.tally)
        thread.tally.item(header.opcode, Status.OK)
        if header.opcode == Opcode.LIST:
            return self._control.list(frame)
        if header.opcode == Opcode.EVENTS:
            return self._control.events(session, frame)
        return self._control.stat(frame)

    def _note_map(self, term: int, epoch: int) -> None:
        ownership = self._ownership()
        if (term, epoch) > (ownership.term, ownership.epoch):
            self._counters.add("map_behind")

    @staticmethod
    def _say_goodbye(
        connection: Connection, thread: ServingThread, error: WireError, status: Status
    ) -> Verdict:
        """Tell the peer what is wrong, then let it go.

        Closing a socket with unread bytes resets it, and the peer may never see why. So the
        connection is half closed and what still comes is dropped, until the sweep ends it.
        """
        connection.protocol.decided(Event.ENDED)
        connection.pending.clear()
        opcode = error.opcode or Opcode.HELLO
        try:
            thread.send_late(
                connection.stream, encode_error(opcode, error.request_id, status, str(error))
            )
        except (StreamClosed, StreamTimeout):
            return Verdict.CLOSE
        return _half_close(connection)


def _receive_some(stream: Stream, target: memoryview, deadline_ns: int) -> int | None:
    if deadline_ns == 0:
        return stream.receive_ready(target)
    return stream.receive_some(target, deadline_ns)


def _ahead(connection: Connection, verdict: Verdict) -> Verdict:
    """Look again at once at a connection that has more than its socket tells of."""
    if verdict is Verdict.KEEP and connection.stream.is_ahead:
        return Verdict.AGAIN
    return verdict


def _say_that_this_is_tls(connection: Connection) -> None:
    """Send an alert: OpenSSL sends none to a peer that speaks something else, and a client without
    TLS would not know why it is closed. Whoever speaks TLS has had one."""
    with (
        contextlib.suppress(OSError),  # the peer was faster
        socket.socket(fileno=os.dup(connection.fd)) as duplicate,
    ):
        duplicate.send(TLS_ALERT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _half_close(connection: Connection) -> Verdict:
    try:
        with socket.socket(fileno=os.dup(connection.fd)) as duplicate:
            duplicate.shutdown(socket.SHUT_WR)
    except OSError:  # the peer was faster
        return Verdict.CLOSE
    return Verdict.KEEP


def _takes_long(frame: Frame) -> bool:
    """Whether serving a request may hold a thread: it waits for flash, payload or a peer."""
    header = frame.header
    if header.opcode == Opcode.GET:
        return header.item_count > _EXPRESS_ITEMS_MAX
    return header.opcode in _LONG_OPCODES
