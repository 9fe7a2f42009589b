"""One accepted connection and the sessions they belong to.

Ownership: a connection is armed in its poller, queued by its session, or held by exactly one
thread. Only a holder reads, writes or closes it. Anybody may `cut` it, which makes an armed
connection wake a thread that then closes it.
"""

import threading
from collections import deque
from collections.abc import Callable

from memkv._hotpath import Stream
from memkv.local.regions import RegionBudget, SessionRegions
from memkv.rdma.regions import ClientRegions
from memkv.rdma.service import Seat
from memkv.status import Status
from memkv.tcp.lane import Lane
from memkv.tenant import Tenant
from memkv.wire.frame import Frame, FrameReader
from memkv.wire.messages import LaneHello
from memkv.wire.session import ServerConnection, Session, SessionTable
from memkv.wire.ticket import Ticket


class Connection:
    """A control connection, a lane, or one that has not said yet what it is."""

    def __init__(self, stream: Stream, *, local: bool = False, encrypted: bool = False) -> None:
        """`local`: to the Unix socket; `encrypted`: the stream speaks TLS."""
        self.stream = stream
        self.fd = stream.fd
        self.is_local = local
        self.is_encrypted = encrypted
        self.protocol = ServerConnection(local=local)
        self.reader = FrameReader(responses=False, admit=self.protocol.received)
        self.session: NodeSession | None = None
        self.lane: Lane | None = None
        self.rdma: Seat | None = None
        """Of a lane."""
        self.on_lane_poller = False
        self.unsettled_since_ns: int | None = None
        self.partial_bytes = 0
        self.linger_skips = 0
        self.pending: deque[Frame] = deque()
        """Requests that were read and wait for another thread to serve them."""

    def cut(self) -> None:
        """End it, from any thread: whoever holds it notices, and an armed one wakes its holder.

        The end of a local lane tells its client that its memory is not written any more. So there
        only the receiving ends, and the holder closes it when it has finished.
        """
        if self.is_local:
            self.stream.stop_receiving()
        else:
            self.stream.shutdown()

    @property
    def is_new(self) -> bool:
        """Whether the peer has not completed HELLO."""
        return self.session is None


class NodeSession:
    """A session with what serving it needs. Thread-safe."""

    def __init__(
        self, session: Session, tenant: Tenant, control: Connection, threads_max: int,
        regions: SessionRegions,
    ) -> None:  # fmt: skip
        self.session = session
        self.tenant = tenant
        self.control = control
        self.regions = regions
        self.rdma_regions = ClientRegions()
        self.lanes: set[Connection] = set()
        self._threads_max = threads_max
        self._lock = threading.Lock()
        self._active = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def allows(self, opcode: int) -> bool:
        """Whether the session's ticket covers an operation."""
        return self.session.allows(opcode)

    def take_credit(self, size_bytes: int) -> bool:
        """Reserve payload bytes; False when the session has too much outstanding."""
        with self._lock:
            return self.session.credits.take(size_bytes)

    def give_credit(self, size_bytes: int) -> None:
        """Return what `take_credit` reserved."""
        with self._lock:
            self.session.credits.give_back(size_bytes)

    def enter(self, resume: Callable[[], None], on_wait: Callable[[], None] = lambda: None) -> bool:
        """Take one of the session's threads; False: `resume` was queued until one is free.

        `on_wait` runs before `resume` can, while the connection is still the caller's.
        """
        with self._lock:
            if self._active >= self._threads_max:
                on_wait()
                self._waiting.append(resume)
                return False
            self._active += 1
            return True

    def leave(self) -> None:
        """Give the thread back, and let the next in the queue try again."""
        with self._lock:
            self._active -= 1
            resume = self._waiting.popleft() if self._waiting else None
        if resume is not None:
            resume()


class Sessions:
    """All sessions of a worker with their connections. Thread-safe."""

    def __init__(
        self,
        random_bytes: Callable[[int], bytes],
        sessions_max: int,
        threads_per_session_max: int,
        credit_bytes: int,
    ) -> None:
        self._table = SessionTable(random_bytes, sessions_max)
        self._live: dict[bytes, NodeSession] = {}
        self._threads_max = threads_per_session_max
        self._credit_bytes = credit_bytes
        self.budget = RegionBudget()
        """Of memory that clients on this machine share."""
        self._lock = threading.Lock()

    def counts(self) -> tuple[int, int]:
        """Return how many sessions and lanes there are."""
        with self._lock:
            live = list(self._live.values())
            return len(live), sum(len(session.lanes) for session in live)

    def open(self, ticket: Ticket, tenant: Tenant, control: Connection) -> NodeSession | Status:
        """Open a session for a control connection; BUSY when there are too many."""
        with self._lock:
            session = self._table.open(ticket)
            if isinstance(session, Status):
                return session
            session.credits.window_bytes = self._credit_bytes
            regions = SessionRegions(self.budget)
            live = NodeSession(session, tenant, control, self._threads_max, regions)
            self._live[session.uuid] = live
            return live

    def renew(self, session: NodeSession, ticket: Ticket) -> Status:
        """Give fresh tokens and take over a newer ticket."""
        with self._lock:
            return self._table.renew(session.session, ticket)

    def bind_lane(self, hello: LaneHello, lane: Connection, *, express: bool) -> Status:
        """Use up a token and tie the connection to its session."""
        with self._lock:
            bound = self._table.bind_lane(hello)
            if isinstance(bound, Status):
                return bound
            live = self._live[bound.uuid]
            live.lanes.add(lane)
            lane.session = live
            lane.lane = Lane(lane.stream, lane.reader, live, express)
            lane.rdma = Seat(live.rdma_regions, lane.cut)
            return Status.OK

    def ended(self, connection: Connection) -> list[Connection]:
        """A connection is gone; return the lanes that must be cut with it."""
        with self._lock:
            live = connection.session
            if live is None:
                return []
            if live.control is not connection:
                live.lanes.discard(connection)
                self._table.lane_ended(live.session)
                return []
            self._table.close(live.session)
            del self._live[live.session.uuid]
            lanes = list(live.lanes)
        live.regions.close()
        return lanes
