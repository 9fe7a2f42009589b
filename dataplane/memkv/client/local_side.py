"""The local transport of one session: lanes to the worker's Unix socket, and the memory it has.

    nothing registered with an fd     no connection is opened
    registered                        the keeper opens the registrar, passes the fds, opens lanes
    a connection lost, a refusal      those regions' blocks go over TCP; tried again after a backoff
    the session lost                  the worker has forgotten everything; begin() starts over

Only keeper threads change anything but by close(); calls read `lanes`, one immutable value.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memkv._hotpath import Engine, LaneGroup
from memkv.client.backoff import Backoff
from memkv.client.buffers import Region, RegionTable
from memkv.client.encrypted import Connected
from memkv.client.handshake import Handshake, Refused
from memkv.client.options import LOCAL_OFF, ConnectOptions
from memkv.client.tokens import Tokens
from memkv.errors import MemKVError, PeerGone
from memkv.limits import FENCE_BUDGET_MS
from memkv.local.sockets import socket_path
from memkv.shardmap.map import Worker
from memkv.status import Status
from memkv.wire.frame import encode_frame
from memkv.wire.local import RegisterRequest, decode_registered, encode_unregister
from memkv.wire.messages import HelloResponse
from memkv.wire.opcodes import Flag, Opcode

PERMANENT = frozenset({Status.INVALID, Status.DENIED})
"""Refusals of a region that asking again does not change."""


@dataclass(frozen=True, slots=True)
class LocalLanes:
    """What calls may use now: lanes, and the numbers of the regions the worker has."""

    group: LaneGroup
    shared: frozenset[int]


class LocalSide:
    """See the module. `handshake(path)` makes one within the session's time."""

    def __init__(
        self, engine: Engine, worker: Worker, options: ConnectOptions, regions: RegionTable,
        handshake: Callable[[Path | None], Handshake],
    ) -> None:
        self.lanes: LocalLanes | None = None
        self.last_error = ""
        self._engine = engine
        self._worker = worker
        self._options = options
        self._regions = regions
        self._handshake = handshake
        self._backoff = Backoff(options.clock)
        self._path: Path | None = None
        self._session_uuid = b""
        self._group: LaneGroup | None = None
        self._registrar: _Registrar | None = None
        self._shared: set[int] = set()
        self._refused: dict[int, str] = {}  # and why
        self._doubtful: set[int] = set()
        self._settled = -1
        self._lanes_wanted = options.lanes_beside_tcp(options.local_lanes)
        self._lock = threading.Lock()  # of what close() changes
        self._closed = False

    # --- for calls ----------------------------------------------------------------------------
    @property
    def is_possible(self) -> bool:
        """Whether the worker has a socket that this client can see."""
        return self._path is not None

    @property
    def problem(self) -> str:
        """Why memory that was registered with an fd is not shared, and what to do; else empty."""
        return self.last_error if self._regions.shared_count else ""

    def is_settled(self, version: int) -> bool:
        """Whether the worker was told of the regions of `version`, or cannot be."""
        return self._path is None or self._closed or self._settled >= version

    # --- for the session ----------------------------------------------------------------------
    def find_socket(self, control: Connected, response: HelloResponse) -> Path | None:
        """Return the worker's socket, if it lies on this machine.

        What a worker says of itself counts only when it is reached at an address of this machine.
        """
        self.last_error = ""
        if self._options.local_dir == LOCAL_OFF:
            return None
        if self._options.local_dir:
            path = socket_path(Path(self._options.local_dir), self._worker.uuid)
        elif response.local_path and _is_this_machine(control):
            path = Path(response.local_path)
        else:
            return None
        if path.is_socket():
            return path
        # Most workers are on other machines, and have no socket here for a good reason.
        if _is_this_machine(control) or not path.parent.is_dir():
            self.last_error = (
                f"there is no socket {path}: is its directory the worker's --local-dir, and seen"
                " here? Name it by local_dir or MEMKV_LOCAL_DIR (`off` for none)"
            )
        return None

    def begin(self, session_uuid: bytes, path: Path | None) -> None:
        """A new session is up."""
        self._session_uuid = session_uuid
        self._path = path

    def end(self) -> None:
        """The session is gone."""
        self._path = None
        self._settled = -1
        self.lanes = None
        self._shared.clear()
        self._refused.clear()
        self._doubtful.clear()
        self._close_connections()

    def close(self) -> None:
        """Let go of everything, waiting for the node a fence budget at most. Any thread."""
        with self._lock:
            self._closed = True
        self.lanes = None
        self._close_connections()

    # --- for the keeper -----------------------------------------------------------------------
    def wants_keeper(self) -> bool:
        """Return whether keep() has work to do and its pause is over."""
        if self._path is None or self._closed:
            return False
        group = self._group
        if group is not None:
            group.reap()
            lost = group.lanes_open < self._lanes_wanted
        else:
            lost = False
        return (self._settled != self._regions.version or lost) and self._backoff.due()

    def keep(self, tokens: list[bytes], renew: Callable[[], list[bytes]]) -> None:
        """Do what is missing. Never raises; failures set `last_error` and back off."""
        if not self.wants_keeper():
            return
        version, wanted = self._regions.shared()
        try:
            if wanted or self._registrar is not None:
                more = Tokens(tokens, renew)
                self._tell(wanted, more)
                if self._shared:
                    self._open_lanes(more)
            self._backoff.reset()
            self.last_error = "; ".join(self._refused.values())
        except (MemKVError, OSError) as error:
            self.last_error = str(error)
            self._backoff.failed()
            self._drop_registrar()
        self._publish()
        self._settled = version

    # --- inside -------------------------------------------------------------------------------
    def _tell(self, wanted: dict[int, Region], tokens: Tokens) -> None:
        """Make the worker's regions the wanted ones."""
        registrar = self._registrar
        if registrar is None:
            registrar = _Registrar(self._lane(tokens), lambda: self._handshake(self._path))
            with self._lock:
                if self._closed:
                    registrar.close()
                    raise PeerGone("the client was closed")
                self._registrar = registrar
        for number in (self._shared - wanted.keys()) | self._doubtful:
            registrar.unregister(number)
            self._shared.discard(number)
            self._doubtful.discard(number)
        self._refused = {n: why for n, why in self._refused.items() if n in wanted}
        for number in wanted.keys() - self._shared - self._refused.keys():
            fd = self._regions.duplicate_fd(wanted[number])
            if fd is None:
                continue
            self._doubtful.add(number)
            try:
                registrar.register(wanted[number], fd)
                self._shared.add(number)
                self._doubtful.discard(number)
            except Refused as refusal:
                self._doubtful.discard(number)
                if refusal.status not in PERMANENT:
                    raise
                self._refused[number] = str(refusal)
            finally:
                os.close(fd)

    def _open_lanes(self, tokens: Tokens) -> None:
        if self._group is None:
            name = f"local {self._path}"
            group = LaneGroup(
                self._engine, name, self._lanes_wanted, grace_ms=FENCE_BUDGET_MS
            )
            with self._lock:
                if self._closed:
                    group.close()
                    raise PeerGone("the client was closed")
                self._group = group
        while self._group.lanes_open < self._lanes_wanted:
            lane = self._lane(tokens)
            try:
                self._group.add_lane(lane.detach())
            except ValueError as error:
                raise PeerGone("the client was closed") from error

    def _lane(self, tokens: Tokens) -> Connected:
        return self._handshake(self._path).open_lane(
            self._session_uuid, tokens.take(), express=False
        )

    def _publish(self) -> None:
        group = self._group
        if group is not None and self._shared and not self._closed:
            self.lanes = LocalLanes(group, frozenset(self._shared))
        else:
            self.lanes = None

    def _drop_registrar(self) -> None:
        with self._lock:
            registrar, self._registrar = self._registrar, None
        if registrar is not None:
            registrar.close()

    def _close_connections(self) -> None:
        with self._lock:
            group, self._group = self._group, None
        if group is not None:
            group.close()
        self._drop_registrar()


def _is_this_machine(control: Connected) -> bool:
    try:
        own, peer = str(control.getsockname()[0]), str(control.getpeername()[0])
    except OSError:  # it was cut already
        return False
    return own == peer


class _Registrar:
    """The connection that file descriptors go through."""

    def __init__(self, connection: Connected, handshake: Callable[[], Handshake]) -> None:
        self._connection = connection
        self._handshake = handshake

    def register(self, region: Region, fd: int) -> bool:
        """Pass `fd`; return whether the worker maps it. Raises Refused or PeerGone."""
        request = RegisterRequest(
            region.number, region.access, region.fd_offset, region.size_bytes
        )
        frame = encode_frame(Opcode.REGISTER, Flag.NONE, 0, request.encode())
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        return decode_registered(self._handshake().exchange(self._connection, frame, passed).body)

    def unregister(self, number: int) -> None:
        """Have the worker forget a region, or not know it. Raises PeerGone."""
        frame = encode_frame(Opcode.UNREGISTER, Flag.NONE, 0, encode_unregister(number))
        with contextlib.suppress(Refused):
            self._handshake().exchange(self._connection, frame)

    def close(self) -> None:
        self._connection.close()
