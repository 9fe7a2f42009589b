"""RDMA of one session: lanes with a queue pair each, and the memory the worker was told of.

    nothing registered, or the worker serves none     nothing is opened
    registered                                        the keeper tells of the memory, opens lanes
    a lane lost, a refusal                            blocks go over TCP; retried after a backoff,
                                                      memory that a device refused as well
    the session lost                                  the worker has forgotten all; begin() again

Lanes are dealt to the usable ports, so that each carries its share; those of a port that went down
come back on another, and some of them go back when it is up again. Lanes that break soon after they
were opened make the next try wait longer: a network that lets connections be made and carries
nothing costs a few calls, not each.

Only keeper threads change anything but by close(); calls read `lanes`, one immutable value.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from memkv._hotpath import Engine, LaneGroup
from memkv.client.backoff import Backoff
from memkv.client.buffers import RegionTable
from memkv.client.calls import Call
from memkv.client.encrypted import Connected
from memkv.client.handshake import Handshake, Refused
from memkv.client.options import ConnectOptions
from memkv.client.tokens import Tokens
from memkv.errors import MemKVError, PeerGone
from memkv.rdma.client_lane import ClientLane
from memkv.rdma.client_memory import ClientMemory, ClientPort, MemoryMode, Registered
from memkv.rdma.verbs import VerbsError
from memkv.status import Status
from memkv.wire.frame import encode_frame
from memkv.wire.local import Access
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.rdma import (
    ConnectRequest,
    RdmaRegister,
    decode_connected,
    encode_rdma_unregister,
)

_SOON_NS = 10_000_000_000  # a lane that broke sooner than this after it was opened was never good


@dataclass(frozen=True, slots=True, eq=False)
class RdmaLane:
    """One lane: in strict mode its group is its own, since windows are of one lane."""

    group: LaneGroup
    lane: ClientLane
    connection: socket.socket
    """The lane's own socket once more, to end it by."""

    def cut(self) -> None:
        """End the lane: a call on it is UNAVAILABLE at once, and asks another way."""
        with contextlib.suppress(OSError):  # it ended by itself
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class RdmaLanes:
    """What calls may use now: lanes, and the numbers of the regions the worker knows.

    `rails`: ports that they use. One lane carries all that a port can, so a batch is dealt to that
    many; more lanes are for more calls at once. `strict`: the lanes one by one, where each request
    opens windows on one; else empty.
    """

    group: LaneGroup
    shared: frozenset[int]
    rails: int
    strict: tuple[RdmaLane, ...] = ()
    turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def open_count(self) -> int:
        return sum([one.group.lanes_open for one in self.strict]) or self.group.lanes_open

    def next_strict(self) -> RdmaLane:
        """Return the lane whose turn it is, of those that are open if any is."""
        usable = [one for one in self.strict if one.group.lanes_open] or self.strict
        return usable[next(self.turns) % len(usable)]


class RdmaSide:
    """See the module. `handshake()` makes one within the session's time."""

    def __init__(
        self, engine: Engine, name: str, options: ConnectOptions, regions: RegionTable,
        memory: ClientMemory | None, handshake: Callable[[], Handshake],
        answered: Callable[[], None],
    ) -> None:
        """`memory`: None where RDMA is off; `answered()` is called when the worker answers."""
        self._answered = answered
        self.lanes: RdmaLanes | None = None
        self.last_error = ""
        self.lost_lanes = 0
        """Since the client was made."""
        self.nobody = LaneGroup(engine, f"no rdma {name}", 1)
        """Without a lane, for what cannot go another way: it is UNAVAILABLE at once."""
        self._engine = engine
        self._name = f"rdma {name}"
        self._options = options
        self._regions = regions
        self._memory = memory
        self._handshake = handshake
        self._backoff = Backoff(options.clock)
        self._is_offered = False
        self._session_uuid = b""
        self._registrar: Connected | None = None
        self._told: dict[tuple[int, int], Registered] = {}  # by (region, device)
        self._doubtful: set[tuple[int, int]] = set()  # told, without an answer
        self._refused: dict[tuple[int, int], str] = {}
        self._open: list[RdmaLane] = []
        self._group: LaneGroup | None = None  # of arena mode
        self._opened_ns = 0
        self._changes = 0
        self._turn = 0
        self._settled = -1
        self._wanted = options.lanes_beside_tcp(options.rdma_lanes)
        self._lock = threading.Lock()  # of what close() changes
        self._closed = False

    # --- for calls ----------------------------------------------------------------------------
    @property
    def is_possible(self) -> bool:
        """Whether the worker serves RDMA and this client wants it."""
        return self._is_offered and self._memory is not None

    @property
    def problem(self) -> str:
        """Why registered memory is not used over RDMA, and what to do; else empty."""
        if not self.is_possible or self._memory is None or not len(self._regions):
            return ""
        refused = "; ".join(self._memory.refused)
        return "; ".join([why for why in (self.last_error, refused) if why])

    def is_settled(self, version: int) -> bool:
        """Whether the worker was told of the regions of `version`, or cannot be."""
        return not self.is_possible or self._closed or self._settled >= version

    def finished(self, call: Call) -> None:
        """Outcome of a request over RDMA. An answer is the worker's, so its breaker may close. But
        a rail that fails is not a worker that fails: TCP is next, and its requests tell."""
        if call.is_answered:
            self._answered()

    # --- for the session ----------------------------------------------------------------------
    def begin(self, session_uuid: bytes, *, offered: bool) -> None:
        """A new session is up; `offered`: its worker serves RDMA to it."""
        self._session_uuid = session_uuid
        self._is_offered = offered

    def end(self) -> None:
        """The session is gone."""
        self._is_offered = False
        self._settled = -1
        self.lanes = None
        self._told.clear()
        self._doubtful.clear()
        self._refused.clear()
        self._close_connections()

    def close(self) -> None:
        """Let go of everything; calls in flight end with CLOSED. Any thread."""
        with self._lock:
            self._closed = True
        self.nobody.close()
        self.lanes = None
        self._close_connections()

    # --- for the keeper -----------------------------------------------------------------------
    def wants_keeper(self) -> bool:
        """Return whether keep() has work to do and its pause is over."""
        if not self.is_possible or self._closed:
            return False
        if self._memory is not None and self._open:
            changes = self._memory.take_events()
            if changes != self._changes:
                self._changes = changes
                self._cut_where_down(self._memory)
        lost = self._drop_lost()
        if lost and self._options.clock.monotonic_ns() - self._opened_ns < _SOON_NS:
            self._backoff.failed()
        elif lost:
            self._backoff.reset()
        if not self._backoff.due():
            return False
        return self._settled != self._regions.version or self._is_missing()

    def keep(self, tokens: list[bytes], renew: Callable[[], list[bytes]]) -> None:
        """Do what is missing. Never raises; failures set `last_error` and back off."""
        if not self.wants_keeper() or self._memory is None:
            return
        version = self._regions.version
        try:
            self._memory.mend()
            if len(self._memory) or self._registrar is not None:
                self._work(self._memory, Tokens(tokens, renew))
            elif len(self._regions):
                self.last_error = "; ".join(self._memory.problems.values())
        except (MemKVError, OSError) as error:
            self.last_error = str(error)
            self._drop_registrar()
        if self._is_missing():
            self._backoff.failed()
        self._publish()
        self._settled = version

    # --- inside -------------------------------------------------------------------------------
    def _is_missing(self) -> bool:
        """Whether something that should be there is not, and may be soon."""
        if self._memory is None or not len(self._regions):
            return False
        return (
            len(self._open) < self._wanted or bool(self._refused) or self._memory.is_incomplete
        )

    def _work(self, memory: ClientMemory, tokens: Tokens) -> None:
        ports = memory.ports()
        if not ports:
            why = "; ".join(memory.problems.values()) or "there is no RDMA device"
            raise VerbsError(f"no port can be used: {why}")
        devices = sorted({port.device_number for port in ports})
        self._tell({(n, d): r for d in devices for n, r in memory.regions(d).items()}, tokens)
        failure = ""
        while ports and len(memory) and len(self._open) < self._wanted:
            port = self._least_used(ports)
            self._turn += 1
            try:
                self._open_lane(memory, port, tokens)
            except (VerbsError, Refused) as error:
                ports = [other for other in ports if other is not port]
                failure = f"{port.name}: {error}"
        if failure and not self._open:
            raise VerbsError(failure)
        self.last_error = failure or "; ".join(self._refused.values())

    def _least_used(self, ports: Sequence[ClientPort]) -> ClientPort:
        """Return the port with the fewest lanes; of several the next in turn."""
        used = [one.lane.port.name for one in self._open]
        first = self._turn % len(ports)
        return min([*ports[first:], *ports[:first]], key=lambda port: used.count(port.name))

    def _tell(self, wanted: dict[tuple[int, int], Registered], tokens: Tokens) -> None:
        """Make the worker's regions the wanted ones."""
        registrar = self._registrar
        if registrar is None:
            registrar = self._connection(tokens)
            with self._lock:
                if self._closed:
                    registrar.close()
                    raise PeerGone("the client was closed")
                self._registrar = registrar
        stale = {place for place, told in self._told.items() if wanted.get(place) is not told}
        for place in stale | self._doubtful:
            frame = encode_frame(
                Opcode.RDMA_UNREGISTER, Flag.NONE, 0, encode_rdma_unregister(*place)
            )
            self._told.pop(place, None)
            self._doubtful.discard(place)
            with contextlib.suppress(Refused):
                self._handshake().exchange(registrar, frame)
        self._refused.clear()
        for place, registered in wanted.items():
            if place in self._told:
                continue
            region, device = place
            request = RdmaRegister(
                region, device, Access.READ | Access.WRITE, registered.key, registered.address,
                registered.size_bytes,
            )  # fmt: skip
            frame = encode_frame(Opcode.RDMA_REGISTER, Flag.NONE, 0, request.encode())
            self._doubtful.add(place)
            try:
                self._handshake().exchange(registrar, frame)
                self._told[place] = registered
                self._doubtful.discard(place)
            except Refused as refusal:
                self._doubtful.discard(place)
                if refusal.status is not Status.BUSY:
                    raise
                self._refused[place] = str(refusal)
                break  # nor is there room for others

    def _open_lane(self, memory: ClientMemory, port: ClientPort, tokens: Tokens) -> None:
        lane = ClientLane(memory, port, self._options.clock)
        connection: Connected | None = None
        try:
            connection = self._connection(tokens)
            request = ConnectRequest(lane.end, port.device_number, self._turn)
            frame = encode_frame(Opcode.RDMA_CONNECT, Flag.NONE, 0, request.encode())
            lane.connect(decode_connected(self._handshake().exchange(connection, frame).body))
            self._add_lane(connection, lane)
        except BaseException:
            if connection is not None:
                connection.close()
            with contextlib.suppress(VerbsError):  # nothing was written by it; its device ends it
                lane.close()
            raise

    def _add_lane(self, connection: Connected, lane: ClientLane) -> None:
        is_strict = self._options.rdma_options.mode is MemoryMode.STRICT
        with self._lock:
            if self._closed:
                raise PeerGone("the client was closed")
            if is_strict:
                group = LaneGroup(self._engine, self._name, 1)
            elif self._group is None:
                group = self._group = LaneGroup(self._engine, self._name, self._wanted)
            else:
                group = self._group
            own = socket.socket(fileno=os.dup(connection.fileno()))
            self._open.append(RdmaLane(group, lane, own))
            self._opened_ns = self._options.clock.monotonic_ns()
        try:
            group.add_lane(connection.detach(), lane.close)
        except ValueError as error:
            raise PeerGone("the client was closed") from error

    def _connection(self, tokens: Tokens) -> Connected:
        return self._handshake().open_lane(self._session_uuid, tokens.take(), express=False)

    def _cut_where_down(self, memory: ClientMemory) -> None:
        """End the lanes of ports that cannot be used any more, or have another address; and one of
        several for each port without any, to come back there."""
        ports = memory.ports()
        usable = {(id(port.device), port.number, port.gid) for port in ports}
        by_port: dict[str, list[RdmaLane]] = {port.name: [] for port in ports}
        for one in self._open:
            port = one.lane.port
            if (id(port.device), port.number, port.gid) in usable:
                by_port[port.name].append(one)
            else:
                one.cut()
        for lanes in list(by_port.values()):
            most = max(by_port.values(), key=len)
            if not lanes and len(most) > 1:
                most.pop().cut()

    def _drop_lost(self) -> int:
        """Forget the lanes that ended; return how many."""
        for group in self._groups(self._open):
            group.reap()
        lost = [one for one in self._open if one.lane.is_closed]
        for one in lost:
            with self._lock:
                if one in self._open:  # close() was not faster
                    self._open.remove(one)
            one.connection.close()
            if one.group is not self._group:
                one.group.close()
        self.lost_lanes += len(lost)
        if lost:
            self._publish()
        return len(lost)

    def _publish(self) -> None:
        devices = {one.lane.port.device_number for one in self._open}
        shared = {
            region
            for region, _ in self._told
            if all((region, device) in self._told for device in devices)
        }
        if not self._open or not shared or self._closed:
            self.lanes = None
            return
        is_strict = self._options.rdma_options.mode is MemoryMode.STRICT
        strict = tuple(self._open) if is_strict else ()
        rails = len({one.lane.port.name for one in self._open})
        self.lanes = RdmaLanes(self._open[0].group, frozenset(shared), rails, strict)

    def _drop_registrar(self) -> None:
        with self._lock:
            registrar, self._registrar = self._registrar, None
        if registrar is not None:
            registrar.close()
            # What the worker knows stays: it goes by session.

    def _close_connections(self) -> None:
        with self._lock:
            groups = self._groups(self._open)
            for one in self._open:
                one.connection.close()
            if self._group is not None and self._group not in groups:
                groups.append(self._group)
            self._open, self._group = [], None
        for group in groups:
            group.close()
        self._drop_registrar()

    @staticmethod
    def _groups(lanes: Sequence[RdmaLane]) -> list[LaneGroup]:
        found: list[LaneGroup] = []
        for one in lanes:
            if one.group not in found:
                found.append(one.group)
        return found
