"""The server of one worker: listeners, connections, and the threads that serve them.

Two sets of threads (see `poller`): `control` serves the listener, control connections and express
lanes, where nothing takes long; `lanes` serves bulk lanes, and what may take long elsewhere
(DELETE waits for flash, a PUT for its payload). So bulk never delays an EXISTS.

A worker survives every peer: whatever one connection does costs that connection, at most its
session's lanes, and a bounded time of one thread.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from memkv import limits
from memkv._hotpath import Stream, TlsContext
from memkv.clock import Clock
from memkv.errors import ConfigError
from memkv.local.service import LocalService
from memkv.local.sockets import LocalListener
from memkv.node.config import WorkerConfig
from memkv.node.connection import Connection, Sessions
from memkv.node.control import ControlService
from memkv.node.dispatch import READ_BYTES, Dispatcher, Verdict
from memkv.node.ownership import Ownership
from memkv.node.poller import Poller
from memkv.node.statistics import (
    ConnectionCounters,
    ThreadCounters,
    WorkerStatistics,
    merge_items,
    merge_latency,
)
from memkv.node.unsettled import Unsettled
from memkv.rdma.rails import Rails
from memkv.rdma.service import RdmaService
from memkv.shardmap import ShardMap
from memkv.tcp.get import GetService
from memkv.tcp.lane import NS_PER_MS, PayloadLimits, ServingThread
from memkv.tcp.pull import PullService
from memkv.tcp.put import PutService
from memkv.tcp.store_api import BlockStore
from memkv.wire.hints import Hint
from memkv.wire.ticket import TicketVerifier

_ACCEPTS_PER_WAKE = 64  # then others get their turn; a full backlog is 16 such turns
_BACKLOG = 1024


class WorkerServer:
    """Serves one store on one port, and on a Unix socket if it is told to. Store, clock and
    verifier stay the caller's."""

    def __init__(
        self,
        store: BlockStore,
        config: WorkerConfig,
        clock: Clock,
        verifier: TicketVerifier,
        *,
        shard_map: ShardMap | None = None,
        tls: Callable[[], TlsContext] | None = None,
        rails: Rails | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Nothing listens before `start`. Without a map every key is served; without `tls` the data
        port is plain. The Unix socket always is. With `rails`, which stay the caller's and whose
        memory is the store's, clients are served over RDMA."""
        self._rails = rails
        self._tls = tls
        self._config = config
        self._store = store
        self._clock = clock
        self._ownership = Ownership(config.worker_uuid, shard_map)
        self._counters = ConnectionCounters()
        self._sessions = Sessions(
            random_bytes, config.sessions_max, config.threads_per_session_max, config.credit_bytes
        )
        self._unsettled = Unsettled(
            clock, config.handshake_timeout_ms, config.unsettled_max, self._counters
        )
        payload_limits = PayloadLimits(config.block_bytes_max)
        puts = PutService(store, self._refused, payload_limits, self._copies_since)
        self._dispatcher = Dispatcher(
            ControlService(
                config, store, self._sessions, self._current_ownership, lambda: self.local_path,
                verifier, clock, lambda: bool(rails),
            ),
            GetService(self._refused, payload_limits),
            puts,
            PullService(lambda epoch: self._ownership.is_behind(epoch)),
            LocalService(self._refused, puts),
            self._rdma_service(puts),
            self._current_ownership,
            self._counters,
            self._unsettled,
        )
        self._connections: dict[int, Connection] = {}
        self._listener: socket.socket | None = None
        self._local: LocalListener | None = None
        self._listeners: dict[int, socket.socket] = {}
        self._resting: set[int] = set()
        self._rail_fds: set[int] = set()
        self._watching_rails = threading.Lock()
        self._stopping = False
        self._control_threads: list[ServingThread] = []
        self._lane_threads: list[ServingThread] = []
        self._control: Poller | None = None
        self._lanes: Poller | None = None

    # --- life ---------------------------------------------------------------------------------
    @property
    def port(self) -> int:
        """The data port; 0 before `start`."""
        return self._listener.getsockname()[1] if self._listener is not None else 0

    @property
    def local_path(self) -> str:
        """Path of the Unix socket; empty without one."""
        return str(self._local.path) if self._local is not None else ""

    def start(self) -> None:
        """Listen and serve. Raises ConfigError when an address cannot be bound."""
        config = self._config
        self._listener = _listen(config.host, config.port)
        if config.local_dir:
            try:
                self._local = LocalListener(Path(config.local_dir), config.worker_uuid)
            except ConfigError:
                self._listener.close()
                raise
            self._listeners[self._local.socket.fileno()] = self._local.socket
        self._listeners[self._listener.fileno()] = self._listener
        self._control_threads = [
            self._new_thread(limits.CONTROL_STALL_MS, serves_bulk=False)
            for _ in range(config.control_threads)
        ]
        self._lane_threads = [
            self._new_thread(config.send_stall_ms, serves_bulk=True)
            for _ in range(config.lane_threads)
        ]
        self._lanes = Poller("memkv-lane", config.lane_threads, self._on_lane_event)
        self._control = Poller(
            "memkv-control",
            config.control_threads,
            self._on_control_event,
            self._sweep,
            self._unsettled.interval_s,
        )
        for fd in self._listeners:
            self._control.add(fd)
        self._watch_rails()
        self._lanes.start()
        self._control.start()

    def stop(self) -> None:
        """Stop listening, cut every connection, wait for the threads. Requests under way end by
        their deadline at the latest. The store is left open."""
        if self._control is None or self._lanes is None or self._listener is None:
            return
        self._stopping = True
        for connection in list(self._connections.values()):
            connection.cut()
        self._control.stop()
        self._lanes.stop()
        self._listener.close()
        if self._local is not None:
            self._local.close()
        for connection in list(self._connections.values()):
            self._forget(connection)
        for thread in self._control_threads + self._lane_threads:
            thread.store_reader.close()
        self._control = self._lanes = None

    def set_map(
        self, shard_map: ShardMap, deletes_known_since: Mapping[int, int] | None = None,
        copies_from_epoch: int = 0,
    ) -> None:  # fmt: skip
        """Go by a new shard map from the next request on; see `Ownership`."""
        known = deletes_known_since or {}
        self._ownership = Ownership(
            self._config.worker_uuid, shard_map, known, copies_from_epoch
        )

    @property
    def payload_bytes(self) -> int:
        """Payload moved since start, both ways."""
        tallies = [thread.tally for thread in self._control_threads + self._lane_threads]
        return sum(tally.bytes_in + tally.bytes_out for tally in tallies)

    def statistics(self) -> WorkerStatistics:
        """Return what happened so far."""
        tallies = [thread.tally for thread in self._control_threads + self._lane_threads]
        counters = [tally for tally in tallies if isinstance(tally, ThreadCounters)]
        sessions, lanes = self._sessions.counts()
        return WorkerStatistics(
            sessions,
            lanes,
            len(self._connections),
            merge_items(counters),
            merge_latency(counters),
            sum(tally.bytes_in for tally in tallies),
            sum(tally.bytes_out for tally in tallies),
            self._counters.counts(),
            self._sessions.budget.regions,
            self._sessions.budget.mapped_bytes,
        )

    def _rdma_service(self, puts: PutService) -> RdmaService | None:
        if self._rails is None:
            return None
        memory_bytes = self._store.statistics().memory_bytes
        in_flight_bytes_max = int(memory_bytes * limits.RDMA_IN_FLIGHT_FRACTION)
        return RdmaService(self._rails, self._refused, puts, in_flight_bytes_max)

    def _current_ownership(self) -> Ownership:
        return self._ownership

    def _refused(self, ids: bytes, is_put: bool, epoch: int) -> dict[int, Hint | None]:
        return self._ownership.refused(ids, is_put, epoch)

    def _copies_since(self, block_id: bytes, epoch: int) -> int | None:
        return self._ownership.copies_since(block_id, epoch)

    def _new_thread(self, stall_ms: int, *, serves_bulk: bool) -> ServingThread:
        return ServingThread(
            self._store.new_reader(),
            ThreadCounters(),
            self._clock,
            stall_ms * NS_PER_MS,
            memoryview(bytearray(READ_BYTES)),
            serves_bulk,
        )

    # --- events -------------------------------------------------------------------------------
    def _on_control_event(self, fd: int, index: int) -> None:
        if fd in self._rail_fds:
            self._take_rail_events(fd)
            return
        if fd in self._listeners:
            self._accept(fd)
            return
        connection = self._connections[fd]
        self._after(connection, self._dispatcher.read(connection, self._control_threads[index]))

    def _on_lane_event(self, fd: int, index: int) -> None:
        connection = self._connections[fd]
        session = connection.session
        assert session is not None
        assert self._lanes is not None
        lanes = self._lanes
        # While it waits for a thread, an unfinished request is not the peer's fault.
        if not session.enter(lambda: lanes.arm(fd), lambda: self._unsettled.forget(connection)):
            return
        try:
            verdict = self._dispatcher.read(connection, self._lane_threads[index])
        finally:
            session.leave()
        self._after(connection, verdict)

    def _take_rail_events(self, fd: int) -> None:
        assert self._rails is not None
        assert self._control is not None
        try:
            self._rails.take_events(fd)
        finally:
            self._watch_rails()
            if fd in self._rail_fds:
                self._control.arm(fd)

    def _watch_rails(self) -> None:
        """Look at the events of devices that were opened since."""
        if self._rails is None or self._control is None:
            return
        with self._watching_rails:
            now = set(self._rails.event_fds)
            for fd in now - self._rail_fds:
                self._control.add(fd)
            self._rail_fds = now

    def _resume(self, connection: Connection, index: int) -> None:
        """Serve on a lane thread what a control thread read."""
        session = connection.session
        assert session is not None
        if not session.enter(lambda: self._hand_over(connection)):
            return
        try:
            verdict = self._dispatcher.resume(connection, self._lane_threads[index])
        finally:
            session.leave()
        self._after(connection, verdict)

    def _hand_over(self, connection: Connection) -> None:
        assert self._lanes is not None
        self._lanes.submit(lambda index: self._resume(connection, index))

    def _after(self, connection: Connection, verdict: Verdict) -> None:
        """Do with a connection what serving it came to. It is not this thread's any more then."""
        if verdict is not Verdict.CLOSE and not self._unsettled.review(connection):
            verdict = Verdict.CLOSE
        if verdict is Verdict.CLOSE or self._stopping:
            self._forget(connection)
        elif verdict is Verdict.AGAIN:
            self._look_again(connection)
        elif verdict is Verdict.HAND_OVER:
            self._hand_over(connection)
        elif verdict is Verdict.TO_LANES:
            self._poller_of(connection).remove(connection.fd)
            connection.on_lane_poller = True
            self._poller_of(connection).add(connection.fd)
        else:
            self._poller_of(connection).arm(connection.fd)

    def _look_again(self, connection: Connection) -> None:
        """Behind what waits already: a peer that sends without a pause holds no thread."""
        fd = connection.fd
        if connection.on_lane_poller:
            self._poller_of(connection).submit(lambda index: self._on_lane_event(fd, index))
        else:
            self._poller_of(connection).submit(lambda index: self._on_control_event(fd, index))

    def _poller_of(self, connection: Connection) -> Poller:
        poller = self._lanes if connection.on_lane_poller else self._control
        assert poller is not None
        return poller

    def _forget(self, connection: Connection) -> None:
        self._unsettled.forget(connection)
        del self._connections[connection.fd]
        if self._control is not None and not self._stopping:
            self._poller_of(connection).remove(connection.fd)
        for lane in self._sessions.ended(connection):
            lane.cut()
        try:
            if connection.rdma is not None:
                connection.rdma.close()
        finally:
            connection.stream.close()

    # --- listening ----------------------------------------------------------------------------
    def _accept(self, fd: int) -> None:
        assert self._control is not None
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                accepted, _address = self._listeners[fd].accept()
            except BlockingIOError:
                break
            except OSError:
                # Out of file descriptors or memory: the sweep tries again, others go on.
                self._counters.add("refused_connections")
                self._resting.add(fd)
                return
            self._take(accepted)
        self._control.arm(fd)

    def _take(self, accepted: socket.socket) -> None:
        assert self._control is not None
        local = accepted.family == socket.AF_UNIX
        if not local:
            with contextlib.suppress(OSError):  # the peer may have reset it already
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tls = self._tls() if self._tls is not None and not local else None
        connection = Connection(
            Stream(accepted.detach(), takes_fds=local, tls=tls), local=local,
            encrypted=tls is not None,
        )  # fmt: skip
        if not self._unsettled.review(connection):
            self._counters.add("refused_connections")
            connection.stream.close()
            return
        self._counters.add("accepted")
        self._connections[connection.fd] = connection
        self._control.add(connection.fd)

    def _sweep(self) -> None:
        self._unsettled.sweep()
        if self._rails is not None:
            self._rails.refresh_at_times()  # not every change comes with an event
            self._watch_rails()
        while self._resting and self._control is not None:
            self._control.arm(self._resting.pop())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; is another worker running "
            "there, or is the address not this machine's?"
        ) from error
    return listener
