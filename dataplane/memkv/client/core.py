"""The client's core: which worker owns what, the sessions to them, and requests as native jobs.

No face-specific code: it starts calls (calls.py), it never waits for one. Threads: one keeper
(keeper.py) that connects, renews and copies in the background; the native lanes; whoever calls.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from memkv._hotpath import Engine
from memkv.client.buffers import Region, RegionTable
from memkv.client.copies import CopyQueue
from memkv.client.options import ConnectOptions
from memkv.client.reasons import RequestReasons
from memkv.client.requests import Requests
from memkv.client.routing import Key, Keys, hash_keys
from memkv.client.session import WorkerSession
from memkv.client.source import MapSource, TicketGrant
from memkv.client.statistics import ClientCounters
from memkv.clock import deadline_after_ms, remaining_ms
from memkv.rdma.client_memory import ClientMemory
from memkv.rdma.verbs import VerbsError
from memkv.shardmap.cache import OwnerHint, Route
from memkv.wire.hints import Hint

log = logging.getLogger("memkv.client")

SessionIdentity = tuple[bytes, int, str, int]
"""(worker uuid, incarnation, host, port): another incarnation is another session."""


@dataclass(frozen=True, slots=True)
class Routes:
    """One consistent picture: a route, and the session of each of its workers, by index."""

    route: Route
    sessions: tuple[WorkerSession, ...]

    def session(self, worker: int) -> WorkerSession:
        return self.sessions[worker]


class ClientCore:
    """Shared state of one client. Thread-safe: readers take one immutable `Routes`."""

    def __init__(self, options: ConnectOptions, client_uuid: bytes, source: MapSource) -> None:
        self.options = options
        self.client_uuid = client_uuid
        self.source = source
        self.counters = ClientCounters()
        self.reasons = RequestReasons()
        self.engine = Engine()
        self.regions = RegionTable()
        self.memory: ClientMemory | None = None
        """Of RDMA devices; None where RDMA is off."""
        if options.wants_rdma:
            self.memory = ClientMemory(options.verbs, options.rdma_options)
        self.copies = CopyQueue(self.counters)
        self.changed = threading.Condition()
        """Notified when routes, the ticket or a session's state changed."""
        self.ticket: TicketGrant | None = None
        self._routes: Routes | None = None
        self._sessions: dict[SessionIdentity, WorkerSession] = {}
        self._closed = False
        self._forked = False
        _cores.add(self)

    # --- the picture --------------------------------------------------------------------------
    def routes(self) -> Routes | None:
        """Return the current picture, or None while no map or no ticket has arrived."""
        return self._routes if self.ticket is not None else None

    def hash(self, keys: Sequence[Key]) -> Keys | None:
        """Hash user keys for this tenant and map; None while nothing is known (all keys miss)."""
        routes, ticket = self._routes, self.ticket
        if routes is None or ticket is None:
            hash_keys(keys, b"", 1)  # bad keys are the caller's error, connected or not
            self._say_forked()
            return None
        return hash_keys(keys, ticket.salt, routes.route.shard_map.slots)

    def requests(self, deadline_ms: int, routes: Routes | None = None) -> Requests | None:
        """Return the workers for one operation that starts now, or None as `routes`.

        `routes`: an earlier picture to go by.
        """
        routes, ticket = routes or self._routes, self.ticket
        if routes is None or ticket is None:
            return None
        deadline_ns = deadline_after_ms(self.options.clock, deadline_ms)
        return Requests(self, routes, ticket.tenant_tag, deadline_ns)

    def route_changed(self) -> None:
        """Take the cache's route into use; sessions of workers that left it are closed."""
        with self.changed:
            gone = self._rebuild(self.source.route)
            self.changed.notify_all()
        for session in gone:
            session.close()

    def learn(self, hint: Hint) -> Routes | None:
        """Take an owner hint of a node; return the new picture, None when it was not news."""
        with self.changed:
            known = OwnerHint(
                hint.slot, hint.map_term, hint.map_epoch, hint.host, hint.port, hint.worker_uuid
            )
            if not self.source.learn(known):
                return None
            self._rebuild(self.source.route)
            self.changed.notify_all()
            return self._routes

    def _rebuild(self, route: Route | None) -> list[WorkerSession]:
        """Point at `route`, keeping sessions; return those nobody points at. Lock held."""
        if self._closed:
            return []
        wanted: dict[SessionIdentity, WorkerSession] = {}
        sessions: list[WorkerSession] = []
        for worker in route.workers if route else ():
            # Twice the same one is possible: as lost by the map, and as there by a hint.
            identity = (worker.uuid, worker.incarnation, worker.host, worker.port)
            session = wanted.get(identity) or self._sessions.pop(identity, None)
            wanted[identity] = session or WorkerSession(
                self.engine, worker, self.options, self.wake_keeper, self.regions, self.memory
            )
            sessions.append(wanted[identity])
        gone, self._sessions = list(self._sessions.values()), wanted
        self._routes = Routes(route, tuple(sessions)) if route else None
        return gone

    def wake_keeper(self) -> None:
        """Have the keeper look now instead of at its next tick."""
        with self.changed:
            self.changed.notify_all()

    def register(self, region: Region, *, wait: bool) -> None:
        """Announce caller memory; raises CallerError when it overlaps.

        `wait`: until every worker that is connected and can share it was told, at most a deadline.
        """
        self._registered(self.regions.add(region), wait=wait)

    def register_dmabuf(self, region: Region, fd: int, offset: int, *, wait: bool) -> None:
        """As `register` for memory of another device. VerbsError where no NIC takes it."""
        region = self.regions.add(region)
        try:
            if self.memory is None:
                raise VerbsError("RDMA is off in this client: MEMKV_RDMA=on")
            self.memory.add_dmabuf(region.number, fd, offset, region.size_bytes)
            self.regions.touch()
        except VerbsError:
            self.regions.remove(region.address)
            raise
        self._told(wait=wait)

    def _registered(self, region: Region, *, wait: bool) -> None:
        if self.memory is not None:
            self.memory.add(region.number, region.address, region.size_bytes)
            self.regions.touch()
        self._told(wait=wait)

    def _told(self, *, wait: bool) -> None:
        version = self.regions.version
        deadline_ns = deadline_after_ms(self.options.clock, self.options.deadline_ms)
        with self.changed:
            self.changed.notify_all()
            while wait and not all(session.knows(version) for session in self.sessions()):
                left_ms = remaining_ms(self.options.clock, deadline_ns)
                if left_ms == 0 or self._closed:
                    return
                self.changed.wait(left_ms / 1000)

    def unregister(self, address: int) -> None:
        """Forget announced memory; raises CallerError when unknown. Workers are told soon."""
        region = self.regions.remove(address)
        if self.memory is not None:
            self.memory.remove(region.number)
            self.regions.touch()
        self.wake_keeper()

    def sessions(self) -> tuple[WorkerSession, ...]:
        routes = self._routes
        return routes.sessions if routes else ()

    def close(self) -> None:
        """Close every session and the engine; calls in flight end with UNAVAILABLE."""
        with self.changed:
            self._closed = True
            sessions, self._sessions = list(self._sessions.values()), {}
            self._routes = None
            self.changed.notify_all()
        for session in sessions:
            session.close()
        self.engine.close()
        self.regions.close()
        if self.memory is not None:
            self.memory.close()

    @property
    def closed(self) -> bool:
        return self._closed

    # --- fork ---------------------------------------------------------------------------------
    def abandon(self) -> None:
        """In the child of a fork: be closed. Threads did not come along, and the parent goes on
        with the sockets."""
        self._closed = self._forked = True
        self._routes = None
        self.ticket = None
        # What another thread of the parent held when it forked is never released here.
        self.changed = threading.Condition()
        self.regions = RegionTable()
        self.memory = None  # the parent's devices are its own
        self.copies = CopyQueue(self.counters)
        self.engine.abandon()

    def _say_forked(self) -> None:
        if self._forked:
            self._forked = False  # once is enough
            log.warning(
                "this client was connected before fork(), so every call misses here: connect anew "
                "in process %d (memkv.connect), or start processes with spawn",
                os.getpid(),
            )


_cores: weakref.WeakSet[ClientCore] = weakref.WeakSet()


def _abandon_all() -> None:
    for core in list(_cores):
        core.abandon()


os.register_at_fork(after_in_child=_abandon_all)
