"""The server's side of sessions: what a connection may say when, lanes, tokens, credits.

Rule 1: everything that decides whether a frame is allowed lives in TRANSITIONS.
Rule 2: nothing here knows sockets, threads or time. Randomness is a constructor argument. Callers
serialise access to one `SessionTable`.

    NEW --HELLO--> CONTROL_HELLO --ACCEPTED--> CONTROL_OPEN --GOODBYE--> CLOSING
    NEW --LANE_HELLO--> LANE_HELLO --ACCEPTED--> LANE_OPEN --GOODBYE--> CLOSING

Connections to a worker's Unix socket are lanes of sessions that were opened over TCP:

    LOCAL_NEW --LANE_HELLO--> LOCAL_HELLO --ACCEPTED--> LOCAL_OPEN --GOODBYE--> CLOSING
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from memkv import limits
from memkv.status import Status
from memkv.wire.errors import OutOfState, VersionSkew
from memkv.wire.frame import FrameHeader
from memkv.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, HelloRequest, LaneHello
from memkv.wire.opcodes import LANE_TOKEN_BYTES, Flag, Opcode
from memkv.wire.ticket import Rights, Ticket


class ConnectionState(Enum):
    """Where one connection is in its life."""

    NEW = "new"
    CONTROL_HELLO = "control hello"
    LANE_HELLO = "lane hello"
    CONTROL_OPEN = "control open"
    LANE_OPEN = "lane open"
    LOCAL_NEW = "new on the Unix socket"
    LOCAL_HELLO = "local lane hello"
    LOCAL_OPEN = "local lane open"
    CLOSING = "closing"


class Event(Enum):
    """What moves a connection: what the peer said, or what the node decided."""

    HELLO = "HELLO"
    LANE_HELLO = "lane HELLO"
    CONTROL_REQUEST = "control request"
    LANE_REQUEST = "payload request"
    LOCAL_REQUEST = "request on shared memory"
    RDMA_REQUEST = "request over RDMA"
    GOODBYE = "GOODBYE"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ENDED = "ended"


_S, _E = ConnectionState, Event

TRANSITIONS: dict[tuple[ConnectionState, Event], ConnectionState] = {
    (_S.NEW, _E.HELLO): _S.CONTROL_HELLO,
    (_S.NEW, _E.LANE_HELLO): _S.LANE_HELLO,
    (_S.CONTROL_HELLO, _E.ACCEPTED): _S.CONTROL_OPEN,
    (_S.CONTROL_HELLO, _E.REFUSED): _S.CLOSING,
    (_S.LANE_HELLO, _E.ACCEPTED): _S.LANE_OPEN,
    (_S.LANE_HELLO, _E.REFUSED): _S.CLOSING,
    (_S.CONTROL_OPEN, _E.HELLO): _S.CONTROL_OPEN,  # renewal: fresh lane tokens
    (_S.CONTROL_OPEN, _E.CONTROL_REQUEST): _S.CONTROL_OPEN,
    (_S.CONTROL_OPEN, _E.GOODBYE): _S.CLOSING,
    (_S.LANE_OPEN, _E.LANE_REQUEST): _S.LANE_OPEN,
    (_S.LANE_OPEN, _E.RDMA_REQUEST): _S.LANE_OPEN,
    (_S.LANE_OPEN, _E.GOODBYE): _S.CLOSING,
    (_S.LOCAL_NEW, _E.LANE_HELLO): _S.LOCAL_HELLO,
    (_S.LOCAL_HELLO, _E.ACCEPTED): _S.LOCAL_OPEN,
    (_S.LOCAL_HELLO, _E.REFUSED): _S.CLOSING,
    (_S.LOCAL_OPEN, _E.LANE_REQUEST): _S.LOCAL_OPEN,
    (_S.LOCAL_OPEN, _E.LOCAL_REQUEST): _S.LOCAL_OPEN,
    (_S.LOCAL_OPEN, _E.GOODBYE): _S.CLOSING,
    **{(state, _E.ENDED): _S.CLOSING for state in _S},
}

EVENT_OF_OPCODE: dict[int, Event] = {
    Opcode.HELLO: _E.HELLO,
    Opcode.PUT: _E.LANE_REQUEST,
    Opcode.GET: _E.LANE_REQUEST,
    Opcode.GET_RANGES: _E.LANE_REQUEST,
    Opcode.EXISTS: _E.CONTROL_REQUEST,
    Opcode.DELETE: _E.CONTROL_REQUEST,
    Opcode.PIN: _E.CONTROL_REQUEST,
    Opcode.STAT: _E.CONTROL_REQUEST,
    Opcode.GOODBYE: _E.GOODBYE,
    Opcode.LIST: _E.CONTROL_REQUEST,
    Opcode.PULL: _E.LANE_REQUEST,
    Opcode.REGISTER: _E.LOCAL_REQUEST,
    Opcode.UNREGISTER: _E.LOCAL_REQUEST,
    Opcode.LOCAL_GET: _E.LOCAL_REQUEST,
    Opcode.LOCAL_PUT: _E.LOCAL_REQUEST,
    Opcode.RDMA_CONNECT: _E.RDMA_REQUEST,
    Opcode.RDMA_REGISTER: _E.RDMA_REQUEST,
    Opcode.RDMA_UNREGISTER: _E.RDMA_REQUEST,
    Opcode.RDMA_GET: _E.RDMA_REQUEST,
    Opcode.RDMA_PUT: _E.RDMA_REQUEST,
    Opcode.PREFETCH: _E.CONTROL_REQUEST,
    Opcode.WHY: _E.CONTROL_REQUEST,
    Opcode.EVENTS: _E.CONTROL_REQUEST,
}

RIGHTS_OF_OPCODE: dict[int, Rights] = {
    Opcode.PUT: Rights.PUT,
    Opcode.GET: Rights.GET,
    Opcode.GET_RANGES: Rights.GET,
    Opcode.EXISTS: Rights.GET,
    Opcode.DELETE: Rights.DELETE,
    Opcode.PIN: Rights.PIN,
    Opcode.STAT: Rights.NONE,
    Opcode.LIST: Rights.PEER,
    Opcode.PULL: Rights.PEER,
    Opcode.REGISTER: Rights.NONE,
    Opcode.UNREGISTER: Rights.NONE,
    Opcode.LOCAL_GET: Rights.GET,
    Opcode.LOCAL_PUT: Rights.PUT,
    Opcode.RDMA_CONNECT: Rights.NONE,
    Opcode.RDMA_REGISTER: Rights.NONE,
    Opcode.RDMA_UNREGISTER: Rights.NONE,
    Opcode.RDMA_GET: Rights.GET,
    Opcode.RDMA_PUT: Rights.PUT,
    Opcode.PREFETCH: Rights.GET,
    Opcode.WHY: Rights.GET,
    Opcode.EVENTS: Rights.GET,
}

assert set(EVENT_OF_OPCODE) == set(Opcode)
assert set(RIGHTS_OF_OPCODE) == set(Opcode) - {Opcode.HELLO, Opcode.GOODBYE}


class ServerConnection:
    """State of one accepted connection; `local`: to the worker's Unix socket."""

    def __init__(self, *, local: bool = False) -> None:
        self.state = ConnectionState.LOCAL_NEW if local else ConnectionState.NEW

    def received(self, header: FrameHeader) -> Event:
        """Account for a request's header; return what it means. Raises OutOfState."""
        event = EVENT_OF_OPCODE[header.opcode]
        if event is Event.HELLO and header.flags & Flag.LANE:
            event = Event.LANE_HELLO
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise OutOfState(
                f"{event.value} on a connection that is {self.state.value}: payload requests go "
                "on lanes (on shared memory: on lanes to the Unix socket), the others on the "
                "control connection, all after HELLO; fix the client",
                request_id=header.request_id,
                opcode=header.opcode,
            ) from None
        return event

    def decided(self, event: Event) -> None:
        """Account for what the node decided: ACCEPTED, REFUSED or ENDED."""
        self.state = TRANSITIONS[self.state, event]

    @property
    def is_open(self) -> bool:
        return self.state in (
            ConnectionState.CONTROL_OPEN, ConnectionState.LANE_OPEN, ConnectionState.LOCAL_OPEN
        )  # fmt: skip


class Credits:
    """Payload bytes asked for and not yet answered, against a fixed window.

    A request that is larger than the window passes when nothing else is outstanding, so no batch
    size within the frame limits can be refused for ever.
    """

    def __init__(self, window_bytes: int = limits.CREDIT_BYTES_PER_SESSION) -> None:
        self.window_bytes = window_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Reserve; False when the request must wait (client) or be answered BUSY (node)."""
        if self.used_bytes and self.used_bytes + size_bytes > self.window_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Return what `take` reserved."""
        assert 0 <= size_bytes <= self.used_bytes
        self.used_bytes -= size_bytes


@dataclass(slots=True)
class Session:
    """One client on one worker: a control connection and up to LANES_PER_SESSION_MAX lanes."""

    uuid: bytes
    ticket: Ticket
    credits: Credits = field(default_factory=Credits)
    tokens: list[bytes] = field(default_factory=list)
    lanes: int = 0
    closed: bool = False

    allowed: frozenset[int] = frozenset()
    """Operations that the ticket's rights cover."""

    def __post_init__(self) -> None:
        self.take_over(self.ticket)

    def take_over(self, ticket: Ticket) -> None:
        """Go by a ticket from now on."""
        self.ticket = ticket
        self.allowed = frozenset(
            opcode for opcode, needed in RIGHTS_OF_OPCODE.items() if needed & ~ticket.rights == 0
        )

    def allows(self, opcode: int) -> bool:
        """Whether the ticket's rights cover an operation."""
        return opcode in self.allowed


class SessionTable:
    """All sessions of a worker, at most `sessions_max`."""

    def __init__(
        self,
        random_bytes: Callable[[int], bytes],
        sessions_max: int = limits.SESSIONS_MAX,
        lanes_max: int = limits.LANES_PER_SESSION_MAX,
    ) -> None:
        self._random_bytes = random_bytes
        self._sessions: dict[bytes, Session] = {}
        self.sessions_max = sessions_max
        self.lanes_max = lanes_max

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, ticket: Ticket) -> Session | Status:
        """Open a session with fresh tokens; BUSY when the table is full."""
        if len(self._sessions) >= self.sessions_max:
            return Status.BUSY
        session = Session(self._random_bytes(16), ticket)
        self._sessions[session.uuid] = session
        self._refill(session)
        return session

    def renew(self, session: Session, ticket: Ticket) -> Status:
        """Give fresh tokens and take over a newer ticket; unused tokens become void.

        DENIED when the ticket is of another tenant or pool: a session never changes whose it is.
        """
        if session.closed:
            return Status.CLOSED
        if (ticket.tenant, ticket.pool) != (session.ticket.tenant, session.ticket.pool):
            return Status.DENIED
        session.take_over(ticket)
        self._refill(session)
        return Status.OK

    def bind_lane(self, hello: LaneHello) -> Session | Status:
        """Use up a token. DENIED for unknown sessions and tokens alike, BUSY over the limit."""
        session = self._sessions.get(hello.session_uuid)
        if session is None:
            return Status.DENIED
        for token in session.tokens:
            if hmac.compare_digest(token, hello.token):
                if session.lanes >= self.lanes_max:
                    return Status.BUSY
                session.tokens.remove(token)
                session.lanes += 1
                return session
        return Status.DENIED

    def lane_ended(self, session: Session) -> None:
        """A bound lane is gone."""
        assert session.lanes > 0
        session.lanes -= 1

    def close(self, session: Session) -> None:
        """The control connection is gone: no token binds any more. The caller cuts the lanes."""
        session.closed = True
        session.tokens.clear()
        self._sessions.pop(session.uuid, None)

    def _refill(self, session: Session) -> None:
        session.tokens = [self._random_bytes(LANE_TOKEN_BYTES) for _ in range(self.lanes_max)]


def choose_protocol(hello: HelloRequest) -> int:
    """Return the highest version both sides speak. Raises VersionSkew."""
    chosen = min(hello.protocol_max, PROTOCOL_MAX)
    if chosen < max(hello.protocol_min, PROTOCOL_MIN):
        raise VersionSkew(
            f"the client speaks protocol {hello.protocol_min} to {hello.protocol_max}, this node "
            f"{PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade the older side",
            opcode=Opcode.HELLO,
        )
    return chosen
