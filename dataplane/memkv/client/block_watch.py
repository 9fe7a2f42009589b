"""Watching which worker holds which blocks: for routers.

`poll` asks every worker once and returns what is new. Nothing is queued anywhere for a watcher: one
that comes late has missed events, is told so (GAP) and gets a snapshot. So a slow watcher costs a
worker nothing, and this object holds one page of each worker at most.

What a watcher knows of a worker is right between SYNCED and the next GAP or GONE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from memkv._hotpath import Job
from memkv.client.calls import Call, Operation
from memkv.client.core import ClientCore, Routes
from memkv.client.drive import run_to_end
from memkv.client.native import NativeRequest
from memkv.client.routing import Key
from memkv.client.session import WorkerSession
from memkv.clock import deadline_after_ms
from memkv.shardmap.map import Worker, WorkerState
from memkv.status import Status
from memkv.wire.errors import WireError
from memkv.wire.events import Event, EventsPage, EventsRequest, FeedFlag, FeedKind
from memkv.wire.frame import encode_frame
from memkv.wire.messages import status_of
from memkv.wire.opcodes import PROTOCOL_OF_OPCODE, RESPONSE_LIMITS, Flag, Opcode

DIGEST_BYTES = 16


class Change(Enum):
    """What an update says of its worker."""

    GAP = "gap"
    """Forget what you know of it: a snapshot follows."""
    EVENTS = "events"
    """Blocks came or went, or are part of the snapshot."""
    SYNCED = "synced"
    """The snapshot is complete."""
    GONE = "gone"
    """It left the pool or cannot be asked. What it holds is not known until the next GAP."""


class BlockUpdate(NamedTuple):
    """News of one worker."""

    worker_uuid: bytes
    node_name: str
    change: Change
    events: tuple[Event, ...] = ()
    reason: str = ""
    """Of GONE, for a log."""


@dataclass(slots=True)
class _Position:
    """How far one worker was read."""

    node_name: str
    generation: int = 0
    event: int = 0
    handle: int | None = None
    """Where the snapshot goes on; None: it is complete."""
    is_gone: bool = False

    def request(self) -> EventsRequest:
        if self.handle is None:
            return EventsRequest(FeedKind.EVENTS, self.generation, self.event)
        return EventsRequest(FeedKind.BLOCKS, self.generation, self.handle)


class BlockWatch:
    """One watcher of the blocks of the client's tenant. For one thread."""

    def __init__(self, core: ClientCore, deadline_ms: int) -> None:
        self._core = core
        self._deadline_ms = deadline_ms
        self._positions: dict[bytes, _Position] = {}

    def digests(self, keys: Sequence[Key]) -> list[bytes]:
        """Return what events call these keys; empty while the client has no ticket yet."""
        hashed = self._core.hash(keys)
        if hashed is None:
            return []
        return [hashed.id_of(position)[:DIGEST_BYTES] for position in range(hashed.count)]

    @property
    def salt(self) -> bytes:
        """The tenant's salt, by which keys become digests; empty while there is no ticket."""
        ticket = self._core.ticket
        return ticket.salt if ticket is not None else b""

    def poll(self) -> list[BlockUpdate]:
        """Ask every worker for what is new; at most one page of each. Ends by the deadline."""
        routes = self._core.routes()
        if routes is None:
            return []
        updates: list[BlockUpdate] = []
        asked: list[tuple[Worker, _Position, Call]] = []
        for worker, session in zip(routes.route.workers, routes.sessions, strict=True):
            position = self._positions.setdefault(worker.uuid, _Position(worker.node_name))
            call = self._call(worker, session, routes, position.request())
            if isinstance(call, str):
                updates += self._gone(worker.uuid, position, call)
            else:
                asked.append((worker, position, call))
        deadline_ns = deadline_after_ms(self._core.options.clock, self._deadline_ms)
        if asked:
            run_to_end(_all_of([call for _, _, call in asked]), deadline_ns)
        for worker, position, call in asked:
            updates += self._take(worker, position, call)
        present = {worker.uuid for worker in routes.route.workers}
        for uuid in [uuid for uuid in self._positions if uuid not in present]:
            updates += self._gone(uuid, self._positions.pop(uuid), "it left the pool")
        return updates

    def _call(
        self, worker: Worker, session: WorkerSession, routes: Routes, request: EventsRequest
    ) -> Call | str:
        """Return the question to a worker, or why it cannot be asked."""
        lanes = session.lanes_or_status()
        if isinstance(lanes, Status):
            lost = worker.state is WorkerState.LOST
            return "it is lost" if lost else session.last_error or lanes.name
        if session.protocol < PROTOCOL_OF_OPCODE[Opcode.EVENTS]:
            return "it is of an older version, which tells no events"
        version = routes.route.version
        frame = encode_frame(
            Opcode.EVENTS, Flag.NONE, 0, request.encode(), map_epoch=version.epoch,
            map_term=version.term,
        )  # fmt: skip
        deadline_ns = deadline_after_ms(self._core.options.clock, self._deadline_ms)
        job = Job.exchange(frame, RESPONSE_LIMITS[Opcode.EVENTS].body_bytes_max, deadline_ns)
        return Call(NativeRequest(lanes.control, job), [], session, 0)

    @staticmethod
    def _gone(uuid: bytes, position: _Position, reason: str) -> list[BlockUpdate]:
        if position.is_gone:
            return []
        position.is_gone = True
        return [BlockUpdate(uuid, position.node_name, Change.GONE, reason=reason)]

    def _take(self, worker: Worker, position: _Position, call: Call) -> list[BlockUpdate]:
        request = call.request
        assert isinstance(request, NativeRequest)
        if call.quarantined or request.status < 0:
            status = Status.TIMEOUT if call.quarantined else status_of(request.status)
            return self._gone(worker.uuid, position, status.name)
        try:
            page = EventsPage.decode(request.reply)
        except WireError as error:
            return self._gone(worker.uuid, position, str(error))

        def update(change: Change, events: tuple[Event, ...] = ()) -> BlockUpdate:
            return BlockUpdate(worker.uuid, worker.node_name, change, events)

        if position.handle is not None:
            return _snapshot(position, page, update)
        if page.flags & FeedFlag.GAP or position.is_gone:
            # Who was gone may have missed that its watcher forgot everything.
            position.generation, position.event = page.generation, page.cursor
            position.handle, position.is_gone = 0, False
            return [update(Change.GAP)]
        position.event = page.cursor
        return [update(Change.EVENTS, tuple(page.iterate()))] if page.events else []


def _snapshot(
    position: _Position, page: EventsPage,
    update: Callable[[Change, tuple[Event, ...]], BlockUpdate],
) -> list[BlockUpdate]:
    more = bool(page.flags & FeedFlag.MORE)
    updates = [update(Change.EVENTS, tuple(page.iterate()))] if page.events else []
    if more and position.handle is not None and page.cursor > position.handle:
        position.handle = page.cursor
    else:
        position.handle = None
        updates.append(update(Change.SYNCED, ()))
    return updates


def _all_of(calls: list[Call]) -> Operation[None]:
    yield calls
    for call in calls:
        call.outcome.finished(call)
