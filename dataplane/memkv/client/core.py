"""The client's core: which worker owns what, the sessions to them, and requests as native jobs.

No face-specific code: it starts calls (calls.py), it never waits for one. Threads: one keeper
(keeper.py) that connects, renews and copies in the background; the native lanes; whoever calls.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from memkv._hotpath import Engine
from memkv.client.buffers import RegionTable
from memkv.client.copies import CopyQueue
from memkv.client.options import ConnectOptions
from memkv.client.routing import Key, Keys, hash_keys
from memkv.client.session import WorkerSession
from memkv.client.source import TicketGrant
from memkv.client.statistics import ClientCounters
from memkv.shardmap.cache import MapCache
from memkv.shardmap.map import ShardMap


@dataclass(frozen=True, slots=True)
class Routes:
    """One consistent picture: a map, and the session of each of its workers, by index."""

    shard_map: ShardMap
    sessions: tuple[WorkerSession, ...]


class ClientCore:
    """Shared state of one client. Thread-safe: readers take one immutable `Routes`."""

    def __init__(self, options: ConnectOptions, client_uuid: bytes, cache: MapCache) -> None:
        self.options = options
        self.client_uuid = client_uuid
        self.cache = cache
        self.counters = ClientCounters()
        self.engine = Engine()
        self.regions = RegionTable()
        self.copies = CopyQueue(self.counters)
        self.changed = threading.Condition()
        """Notified when routes, the ticket or a session's state changed."""
        self.ticket: TicketGrant | None = None
        self._routes: Routes | None = None
        self._sessions: dict[tuple[bytes, int, str, int], WorkerSession] = {}
        self._closed = False

    # --- the picture --------------------------------------------------------------------------
    def routes(self) -> Routes | None:
        """Return the current picture, or None while no map or no ticket has arrived."""
        return self._routes if self.ticket is not None else None

    def hash(self, keys: Sequence[Key]) -> Keys | None:
        """Hash user keys for this tenant and map; None while nothing is known (all keys miss)."""
        routes, ticket = self._routes, self.ticket
        if routes is None or ticket is None:
            hash_keys(keys, b"", 1)  # bad keys are the caller's error, connected or not
            return None
        return hash_keys(keys, ticket.salt, routes.shard_map.slots)

    def install(self, shard_map: ShardMap) -> None:
        """Route by `shard_map` from now on; sessions of workers that left are closed."""
        with self.changed:
            if self._closed:
                return
            wanted = {}
            for worker in shard_map.workers:
                identity = (worker.uuid, worker.incarnation, worker.host, worker.port)
                session = self._sessions.pop(identity, None)
                wanted[identity] = session or WorkerSession(
                    self.engine, worker, self.options, self.client_uuid
                )
            gone, self._sessions = self._sessions, wanted
            self._routes = Routes(shard_map, tuple(wanted.values()))
            self.changed.notify_all()
        for session in gone.values():
            session.close()

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

    @property
    def closed(self) -> bool:
        return self._closed
