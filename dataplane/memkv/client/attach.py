"""Attaching to a pool: the map, the ticket, the sessions, and the keeper that tends them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from memkv.client.core import ClientCore
from memkv.client.keeper import Keeper
from memkv.client.metadata_source import MetadataSource
from memkv.client.options import ConnectOptions
from memkv.client.session import SessionState
from memkv.client.source import MapSource
from memkv.clock import remaining_ms
from memkv.shardmap.map import ShardMap, WorkerState


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as this client sees it, for people."""

    uuid: str
    node_name: str
    host: str
    port: int
    map_state: str
    session: str
    breaker: str
    last_error: str
    local_problem: str
    """Why blocks go over TCP though their memory could be shared; empty when they do not."""
    rdma_problem: str
    """Why blocks of registered memory go over TCP though the worker serves RDMA; else empty."""


class Attachment:
    """Owns everything of one client that lives longer than a call."""

    def __init__(self, options: ConnectOptions, source: MapSource | None = None) -> None:
        identity = uuid.uuid4()
        self._source = source or MetadataSource(options, str(identity))
        self.core = ClientCore(options, identity.bytes, self._source)
        self._keeper = Keeper(self.core, self._source)
        self._keeper.start()
        # Never block a model's start for longer; what is missing then arrives in the background.
        self.wait_ready(options.bootstrap_timeout_ms)

    def wait_ready(self, timeout_ms: int) -> bool:
        """Wait until there is a map, a ticket and a session to each worker that is not lost."""
        core = self.core
        deadline_ns = core.options.clock.monotonic_ns() + timeout_ms * 1_000_000
        with core.changed:
            while not self._ready():
                left_ms = remaining_ms(core.options.clock, deadline_ns)
                if left_ms == 0 or core.closed:
                    return False
                core.changed.wait(left_ms / 1000)
        return True

    def _ready(self) -> bool:
        routes = self.core.routes()
        return routes is not None and all(
            session.state is SessionState.UP or session.worker.state is WorkerState.LOST
            for session in routes.sessions
        )

    @property
    def shard_map(self) -> ShardMap | None:
        """The map in use, or None."""
        route = self._source.route
        return route.shard_map if route else None

    def problems(self) -> list[str]:
        """Return why calls may be missing or slow, in words: nothing when all is well."""
        found = []
        if self._keeper.last_error:
            found.append(f"ticket: {self._keeper.last_error}")
        if self.shard_map is None:
            found.append(
                f"no shard map from {self.core.options.endpoint} yet: is the metadata service "
                "running there, and does it serve this pool? start one with `memkv up` "
                f"({self._source.last_error})"
            )
        found.extend(
            f"{view.node_name or view.uuid[:8]} at {view.host}:{view.port}: {view.last_error}"
            for view in self.workers()
            if view.last_error and view.session != SessionState.UP.value
        )
        found.extend(
            f"{view.node_name or view.uuid[:8]} at {view.host}:{view.port}: memory that was"
            f" registered with an fd is not shared, so its blocks go over TCP: {view.local_problem}"
            for view in self.workers()
            if view.local_problem and view.session == SessionState.UP.value
        )
        found.extend(
            f"{view.node_name or view.uuid[:8]} at {view.host}:{view.port}: RDMA is not used, or"
            f" not all of it, so blocks go over TCP: {view.rdma_problem}"
            for view in self.workers()
            if view.rdma_problem and view.session == SessionState.UP.value
        )
        return found

    def workers(self) -> list[WorkerView]:
        """Return each worker of the map with the state of its session."""
        return [
            WorkerView(
                session.worker.uuid.hex(), session.worker.node_name, session.worker.host,
                session.worker.port, session.worker.state.name, session.state.value,
                session.breaker_state, session.last_error, session.local.problem,
                session.rdma.problem,
            )
            for session in self.core.sessions()
        ]

    def close(self) -> None:
        """Stop the keeper, close sessions and the engine. Idempotent."""
        if self.core.closed:
            return
        self._keeper.stop()
        self.core.close()
        self._keeper.join()
