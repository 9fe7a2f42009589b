"""One worker as this client sees it: its lanes, its circuit breaker, and how they come back.

    state        calls                     moved by
    DOWN         UNAVAILABLE at once       keeper connects after a backoff
    UP           run on its lanes          connect() succeeded
    CLOSED       CLOSED at once            close(); the worker left the map or changed incarnation

Calls may come from any thread; connect() and top_up() from the keeper's threads only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from memkv._hotpath import Engine, Job, LaneGroup
from memkv.client.backoff import Backoff
from memkv.client.breaker import Breaker, BreakerState
from memkv.client.buffers import RegionTable
from memkv.client.calls import Call
from memkv.client.handshake import Handshake, Refused
from memkv.client.local_side import LocalSide
from memkv.client.options import ConnectOptions
from memkv.client.rdma_side import RdmaSide
from memkv.errors import MemKVError, PeerGone
from memkv.limits import BLOCK_BYTES_MAX, HANDSHAKE_TIMEOUT_MS, LANES_PER_SESSION_MAX
from memkv.rdma.client_memory import ClientMemory
from memkv.shardmap.map import Worker
from memkv.status import Status
from memkv.wire.frame import encode_frame
from memkv.wire.messages import PROTOCOL_MIN, HelloRequest, HelloResponse
from memkv.wire.opcodes import RESPONSE_LIMITS, Flag, Opcode, Transport

CONTROL_LANES = 1


class SessionState(Enum):
    DOWN = "down"
    UP = "up"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Lanes:
    """The native lane groups of one connected session."""

    control: LaneGroup
    express: LaneGroup
    bulk: LaneGroup
    session_uuid: bytes

    def groups(self) -> tuple[LaneGroup, LaneGroup, LaneGroup]:
        return self.control, self.express, self.bulk

    def close(self) -> None:
        for group in self.groups():
            group.close()


class WorkerSession:
    """Lanes to one worker of the shard map."""

    def __init__(
        self, engine: Engine, worker: Worker, options: ConnectOptions,
        wake_keeper: Callable[[], None], regions: RegionTable,
        memory: ClientMemory | None = None,
    ) -> None:
        self.worker = worker
        self.state = SessionState.DOWN
        self.block_length_max = BLOCK_BYTES_MAX
        self.protocol = PROTOCOL_MIN
        """What HELLO chose."""
        self.last_error = "not connected yet"
        self.refused_ticket = b""
        """The last ticket that the worker did not take: its key was revoked, perhaps."""
        self.backoff = Backoff(options.clock)
        self.local = LocalSide(engine, worker, options, regions, self._handshake)
        name = f"{worker.host}:{worker.port}"
        self.rdma = RdmaSide(
            engine, name, options, regions, memory, self._handshake, self.succeeded
        )
        self._engine = engine
        self._options = options
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._lanes: Lanes | None = None
        self._connecting: Handshake | None = None
        self._wake_keeper = wake_keeper

    # --- calls --------------------------------------------------------------------------------
    def lanes_or_status(self) -> Lanes | Status:
        """Return the lanes to use now, or why there are none."""
        lanes = self._lanes
        if lanes is None:
            return Status.CLOSED if self.state is SessionState.CLOSED else Status.UNAVAILABLE
        if self._breaker.state is not BreakerState.CLOSED:
            with self._lock:
                if not self._breaker.allow(self._options.clock.monotonic_ns()):
                    return Status.UNAVAILABLE
        return lanes

    def finished(self, call: Call) -> None:
        """Feed the breaker with how a call ended (Outcome)."""
        if call.is_answered:
            self.succeeded()
            return
        with self._lock:
            self._breaker.failure(self._options.clock.monotonic_ns())
        self._wake_keeper()  # a lane closed itself; the next call should find a new one

    def succeeded(self) -> None:
        """Tell the breaker that an answer came, whatever it says."""
        if self._breaker.state is BreakerState.CLOSED:
            self._breaker.success()  # plain stores: racing successes all write the same values
            return
        with self._lock:
            self._breaker.success()

    @property
    def breaker_state(self) -> str:
        return self._breaker.state.value

    def knows(self, version: int) -> bool:
        """Whether the worker was told of the regions of `version`, or cannot be."""
        return self.local.is_settled(version) and self.rdma.is_settled(version)

    # --- connecting ---------------------------------------------------------------------------
    def wants_keeper(self) -> bool:
        """Return whether connect() or top_up() has work to do and its pause is over."""
        lanes = self._lanes
        if lanes is not None:
            for group in lanes.groups():
                group.reap()  # a lane whose node died while it was idle
        if self.state is SessionState.CLOSED or not self.backoff.due():
            return False
        return (
            lanes is None or self._missing(lanes) > 0 or self.local.wants_keeper()
            or self.rdma.wants_keeper()
        )

    def keep(self, hello: HelloRequest) -> None:
        """Connect, or replace lost lanes. Never raises; failures set `last_error` and back off."""
        try:
            lanes = self._lanes
            if lanes is not None and lanes.control.lanes_open == 0:
                self._drop(lanes)
                lanes = None
            tokens: list[bytes] = []
            if lanes is None:
                tokens = self._connect(hello)
            elif self._missing(lanes):
                tokens = self._top_up(lanes, self._renew(lanes, hello))
            self.backoff.reset()
            self.last_error = ""
        except MemKVError as error:
            self.last_error = str(error)
            self.backoff.failed()
            return
        lanes = self._lanes
        if lanes is not None:
            now = lanes

            def renew() -> list[bytes]:
                return list(self._renew(now, hello).lane_tokens)

            self.local.keep(tokens, renew)
            self.rdma.keep(tokens, renew)

    def close(self) -> None:
        """Say good-bye and close every lane; calls in flight end with UNAVAILABLE."""
        with self._lock:
            self.state = SessionState.CLOSED
            lanes, self._lanes = self._lanes, None
            connecting = self._connecting
        if connecting is not None:
            connecting.abort()
        if lanes is not None:
            lanes.close()
        self.local.close()
        self.rdma.close()

    def _handshake(self, path: Path | None = None) -> Handshake:
        clock = self._options.clock
        timeout_ms = min(HANDSHAKE_TIMEOUT_MS, max(self._options.deadline_ms, 500))
        handshake = Handshake(
            self.worker.host, self.worker.port,
            clock.monotonic_ns() + timeout_ms * 1_000_000, clock, path,
            None if path is not None else self._options.node_context(),
        )
        with self._lock:
            if self.state is SessionState.CLOSED:
                raise PeerGone("the client was closed")
            self._connecting = handshake
        return handshake

    def _connect(self, hello: HelloRequest) -> list[bytes]:
        """Open a session; return the lane tokens that are left."""
        try:
            control, response = self._handshake().open_control(hello)
        except Refused as refusal:
            if refusal.status is Status.DENIED:
                self.refused_ticket = hello.ticket
            raise
        if response.worker_uuid != self.worker.uuid:
            control.close()
            raise PeerGone(
                f"{self.worker.host}:{self.worker.port} is worker {response.worker_uuid.hex()}, "
                f"the shard map says {self.worker.uuid.hex()}: the map is older than the node; "
                "waiting for the next one"
            )
        name = f"{self.worker.host}:{self.worker.port}"
        lanes = Lanes(
            LaneGroup(self._engine, f"control {name}", CONTROL_LANES),
            LaneGroup(self._engine, f"express {name}", self._options.express_lanes),
            LaneGroup(self._engine, f"bulk {name}", self._options.bulk_lanes),
            response.session_uuid,
        )
        local_path = self.local.find_socket(control, response)
        lanes.control.add_lane(control.detach())
        self.block_length_max = response.block_length_max
        self.protocol = response.protocol
        try:
            tokens = self._top_up(lanes, response)
        except MemKVError:
            lanes.close()
            raise
        with self._lock:
            if self.state is SessionState.CLOSED:
                lanes.close()
                return []
            self.local.begin(response.session_uuid, local_path)
            # Memory that is shared needs no device between.
            offered = bool(response.transports & Transport.RDMA) and local_path is None
            self.rdma.begin(response.session_uuid, offered=offered)
            self._lanes = lanes
            self.state = SessionState.UP
            self._breaker.success()
        return tokens

    def _missing(self, lanes: Lanes) -> int:
        if lanes.control.lanes_open == 0:
            return 1
        return max(0, self._options.express_lanes - lanes.express.lanes_open) + max(
            0, self._options.bulk_lanes - lanes.bulk.lanes_open
        )

    def _renew(self, lanes: Lanes, hello: HelloRequest) -> HelloResponse:
        """Ask for fresh lane tokens on the control connection."""
        clock = self._options.clock
        job = Job.exchange(
            encode_frame(Opcode.HELLO, Flag.NONE, 0, hello.encode()),
            RESPONSE_LIMITS[Opcode.HELLO].body_bytes_max,
            clock.monotonic_ns() + HANDSHAKE_TIMEOUT_MS * 1_000_000,
        )
        lanes.control.run(job)
        if job.status == Status.DENIED:
            self.refused_ticket = hello.ticket
        if job.status < 0:
            raise PeerGone(f"the worker did not renew lane tokens: {Status(job.status).name}")
        return HelloResponse.decode(job.reply)

    def _top_up(self, lanes: Lanes, response: HelloResponse) -> list[bytes]:
        """Open the lanes that are missing; return the tokens that are left."""
        tokens = list(response.lane_tokens[:LANES_PER_SESSION_MAX])
        wanted = ((lanes.express, self._options.express_lanes, True),
                  (lanes.bulk, self._options.bulk_lanes, False))
        for group, count, express in wanted:
            while group.lanes_open < count and tokens:
                lane = self._handshake().open_lane(
                    response.session_uuid, tokens.pop(), express=express
                )
                group.add_lane(lane.detach())
        return tokens

    def _drop(self, lanes: Lanes) -> None:
        with self._lock:
            self._lanes = None
            if self.state is SessionState.UP:
                self.state = SessionState.DOWN
        lanes.close()
        self.local.end()
        self.rdma.end()
