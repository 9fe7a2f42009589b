"""The operations of control connections: HELLO, those on keys, STAT, LIST, EVENTS, GOODBYE.

Each takes a whole request and returns the bytes of its response; none touches a socket.
"""

import json
from collections.abc import Callable, Iterable

from memkv import limits
from memkv.clock import Clock
from memkv.errors import CallerError
from memkv.node.config import WorkerConfig
from memkv.node.connection import Connection, NodeSession, Sessions
from memkv.node.ownership import Ownership
from memkv.status import Status
from memkv.tcp.lane import Tally
from memkv.tcp.pull import BEHIND
from memkv.tcp.store_api import BlockStore
from memkv.tenant import Tenant
from memkv.wire.events import EventsRequest
from memkv.wire.frame import Frame, encode_error, encode_frame
from memkv.wire.hints import Hint
from memkv.wire.items import ID_BYTES
from memkv.wire.messages import (
    HelloRequest,
    HelloResponse,
    LaneHello,
    ListRequest,
    decode_keys,
    encode_statuses,
    pack_statuses,
    unpack_statuses,
)
from memkv.wire.opcodes import Flag, Opcode, Transport
from memkv.wire.session import Event, choose_protocol
from memkv.wire.ticket import TicketRefused, TicketVerifier

_DONE = int(Flag.RESPONSE | Flag.LAST)


class ControlService:
    """Serves control requests for a worker; called by many threads at once."""

    def __init__(
        self,
        config: WorkerConfig,
        store: BlockStore,
        sessions: Sessions,
        ownership: Callable[[], Ownership],
        local_path: Callable[[], str],
        verifier: TicketVerifier,
        clock: Clock,
        serves_rdma: Callable[[], bool] = lambda: False,
    ) -> None:
        """`local_path()`: of the Unix socket, empty when there is none."""
        self._serves_rdma = serves_rdma
        self._config = config
        self._store = store
        self._sessions = sessions
        self._ownership = ownership
        self._local_path = local_path
        self._verifier = verifier
        self._clock = clock

    # --- sessions -----------------------------------------------------------------------------
    def hello(self, connection: Connection, frame: Frame) -> tuple[bytes, Status]:
        """Open or renew a session. Raises a WireError for a bad body or no common protocol."""
        hello = HelloRequest.decode(frame.body)
        protocol = choose_protocol(hello)
        is_new = connection.session is None
        try:
            ticket = self._verifier.verify(hello.ticket, self._config.pool, self._clock.wall_s())
            tenant = Tenant.named(ticket.tenant)
        except (TicketRefused, CallerError) as error:
            return self._refused(connection, frame, Status.DENIED, str(error), is_new)
        if connection.session is None:
            opened = self._sessions.open(ticket, tenant, connection)
            if isinstance(opened, Status):
                why = f"{self._config.sessions_max} sessions are open; try another worker or later"
                return self._refused(connection, frame, opened, why, is_new)
            connection.session = opened
            connection.protocol.decided(Event.ACCEPTED)
        else:
            renewed = self._sessions.renew(connection.session, ticket)
            if renewed is not Status.OK:
                why = "a session keeps its pool and tenant; open another one for this ticket"
                return self._refused(connection, frame, renewed, why, is_new)
        body = self._granted(connection.session, protocol, hello.transports).encode()
        return self._response(frame, body), Status.OK

    def lane_hello(self, connection: Connection, frame: Frame) -> tuple[bytes, Status]:
        """Bind a lane. Raises MalformedBody."""
        express = bool(frame.header.flags & Flag.EXPRESS)
        hello = LaneHello.decode(frame.body)
        status = self._sessions.bind_lane(hello, connection, express=express)
        if status is not Status.OK:
            why = "the lane's token is used up, void or unknown: renew the session with HELLO"
            if status is Status.BUSY:
                why = f"a session has at most {limits.LANES_PER_SESSION_MAX} lanes; close one"
            return self._refused(connection, frame, status, why, True)
        connection.protocol.decided(Event.ACCEPTED)
        return self._response(frame), Status.OK

    @staticmethod
    def _refused(
        connection: Connection, frame: Frame, status: Status, why: str, is_new: bool
    ) -> tuple[bytes, Status]:
        if is_new:
            connection.protocol.decided(Event.REFUSED)
        return encode_error(Opcode.HELLO, frame.header.request_id, status, why), status

    def _granted(self, session: NodeSession, protocol: int, transports: int) -> HelloResponse:
        ownership = self._ownership()
        path = self._local_path() if transports & Transport.LOCAL else ""
        spoken = Transport.TCP | (Transport.LOCAL if path else Transport.NONE)
        if self._serves_rdma():
            spoken |= Transport.RDMA
        return HelloResponse(
            protocol,
            self._config.worker_uuid,
            self._config.incarnation,
            session.session.uuid,
            self._config.block_bytes_max,
            limits.ITEMS_PER_FRAME_MAX,
            self._config.credit_bytes,
            transports & spoken,
            ownership.lineage,
            ownership.term,
            ownership.epoch,
            tuple(session.session.tokens),
            path,
        )

    # --- keys ---------------------------------------------------------------------------------
    def keys(self, session: NodeSession, frame: Frame, deadline_ns: int, tally: Tally) -> bytes:
        """Answer an operation on keys. Raises MalformedBody."""
        header = frame.header
        request = decode_keys(frame.body, header.item_count)
        if self._clock.monotonic_ns() >= deadline_ns:
            tally.item(header.opcode, Status.TIMEOUT)
            why = "the deadline had passed when the request arrived"
            return encode_error(header.opcode, header.request_id, Status.TIMEOUT, why)
        ownership = self._ownership()
        if header.opcode == Opcode.DELETE and ownership.is_behind(header.map_epoch):
            tally.item(header.opcode, Status.BUSY)
            return encode_error(header.opcode, header.request_id, Status.BUSY, BEHIND)

        def serve(ids: bytes) -> bytes:
            tenant = session.tenant
            if header.opcode == Opcode.EXISTS:
                if request.argument:
                    self._store.lease(tenant, ids, min(request.argument, limits.LEASE_MS_MAX))
                return self._store.exists(tenant, ids, self._clock.wall_s())
            if header.opcode == Opcode.DELETE:
                return self._store.delete(tenant, ids, deadline_ns)
            if header.opcode == Opcode.PREFETCH:
                return self._store.prefetch(tenant, ids)
            if header.opcode == Opcode.WHY:
                return self._store.why(tenant, ids)
            return self._store.pin(tenant, ids, request.argument)

        needed = header.map_epoch if header.opcode == Opcode.EXISTS else 0
        refused = ownership.refused(request.block_ids, header.opcode == Opcode.PIN, needed)
        if refused:
            values = _serve_the_rest(request.block_ids, refused, serve)
        else:
            values = serve(request.block_ids)
        if header.opcode == Opcode.DELETE:
            half = ownership.half_deleted(request.block_ids, header.map_epoch)
            if half:
                values = _overwrite(values, half, Status.WRONG_OWNER)
                refused = {**refused, **half}
        self._count(header.opcode, values, tally)
        hints = [hint for hint in refused.values() if hint is not None]
        body = encode_statuses(values, hints)
        flags = _DONE | Flag.HINTS if hints else _DONE
        return encode_frame(header.opcode, flags, header.request_id, body, count=header.item_count)

    @staticmethod
    def _count(opcode: int, values: bytes, tally: Tally) -> None:
        statuses = unpack_statuses(values)
        if opcode in (Opcode.EXISTS, Opcode.PREFETCH):
            statuses = tuple(Status.MISS if value == 0 else value for value in statuses)
        tally.items_of(opcode, [min(value, Status.OK) for value in statuses])

    # --- others -------------------------------------------------------------------------------
    def stat(self, frame: Frame) -> bytes:
        """Answer STAT: a few facts about the worker as JSON."""
        ownership, statistics = self._ownership(), self._store.statistics()
        sessions, lanes = self._sessions.counts()
        facts = {
            "worker_uuid": self._config.worker_uuid.hex(),
            "incarnation": self._config.incarnation,
            "map": {
                "lineage": ownership.lineage.hex(),
                "term": ownership.term,
                "epoch": ownership.epoch,
            },
            "blocks": statistics.blocks,
            "bytes": sum(tenant.flash_bytes for tenant in statistics.tenants),
            "capacity_bytes": statistics.capacity_bytes,
            "memory_bytes": statistics.memory_bytes,
            "memory_free_bytes": statistics.memory_free_bytes,
            "segments": statistics.segments,
            "counters": statistics.counters,
            "drive": {"state": statistics.drive_state, "problem": statistics.drive_problem},
            "sessions": sessions,
            "lanes": lanes,
        }
        return self._response(frame, json.dumps(facts).encode())

    def list(self, frame: Frame) -> bytes:
        """Answer LIST. Raises MalformedBody or Oversized."""
        request = ListRequest.decode(frame.body)
        header = frame.header
        if self._ownership().is_behind(header.map_epoch):
            return encode_error(header.opcode, header.request_id, Status.BUSY, BEHIND)
        page = self._store.list_page(request)
        return self._response(frame, page.encode(), len(page.entries))

    def events(self, session: NodeSession, frame: Frame) -> bytes:
        """Answer EVENTS. Raises MalformedBody or Oversized."""
        request = EventsRequest.decode(frame.body)
        page = self._store.events_page(session.tenant, request)
        if page is None:
            header = frame.header
            why = f"{limits.FEEDS_MAX} tenants are watched on this worker; ask later"
            return encode_error(header.opcode, header.request_id, Status.BUSY, why)
        return self._response(frame, page.encode(), page.count)

    def goodbye(self, frame: Frame) -> bytes:
        """Answer GOODBYE; the caller closes the connection after it."""
        return self._response(frame)

    @staticmethod
    def _response(frame: Frame, body: bytes = b"", count: int = 0) -> bytes:
        header = frame.header
        return encode_frame(header.opcode, _DONE, header.request_id, body, count=count)


def _overwrite(values: bytes, positions: Iterable[int], status: Status) -> bytes:
    statuses = list(unpack_statuses(values))
    for position in positions:
        statuses[position] = status
    return pack_statuses(statuses)


def _serve_the_rest(
    ids: bytes, refused: dict[int, Hint | None], serve: Callable[[bytes], bytes]
) -> bytes:
    """Serve the ids that are this worker's and put WRONG_OWNER in the place of the others."""
    count = len(ids) // ID_BYTES
    kept = [position for position in range(count) if position not in refused]
    statuses = [int(Status.WRONG_OWNER)] * count
    if kept:
        served = serve(b"".join([ids[p * ID_BYTES : (p + 1) * ID_BYTES] for p in kept]))
        for position, status in zip(kept, unpack_statuses(served), strict=True):
            statuses[position] = status
    return pack_statuses(statuses)
