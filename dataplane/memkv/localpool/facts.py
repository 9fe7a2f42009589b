"""Asks workers for their facts (STAT), over one control connection each.

Beside the client, not through it: a worker that the client's breaker gave up on must still be asked
when a person looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from memkv.clock import SystemClock
from memkv.errors import MemKVError, PeerGone
from memkv.wire.frame import Frame, FrameReader, encode_frame
from memkv.wire.opcodes import Opcode

if TYPE_CHECKING:
    from memkv.client.encrypted import Connected
    from memkv.client.sync import Client
    from memkv.shardmap.map import Worker

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker said, or why it said nothing. Counters are since its start."""

    worker: Worker
    slots: int
    problem: str = ""
    blocks: int = 0
    used_bytes: int = 0
    capacity_bytes: int = 0
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    sessions: int = 0
    epoch: int = 0
    drive_state: str = ""
    """healthy, suspect or faulted; empty: an older node does not say."""
    drive_problem: str = ""
    segments: Mapping[str, int] = field(default_factory=dict)
    """How many are in which state."""
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_reclaiming(self) -> bool:
        """Whether blocks are being copied or evicted to make room."""
        return self.segments.get("reclaiming", 0) > 0

    def document(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "node": self.worker.node_name,
            "uuid": self.worker.uuid.hex(),
            "address": f"{self.worker.host}:{self.worker.port}",
            "state": self.worker.state.name,
            "slots": self.slots,
            "problem": self.problem,
            "blocks": self.blocks,
            "used_bytes": self.used_bytes,
            "capacity_bytes": self.capacity_bytes,
            "memory_bytes": self.memory_bytes,
            "memory_free_bytes": self.memory_free_bytes,
            "sessions": self.sessions,
            "map_epoch": self.epoch,
            "drive_state": self.drive_state,
            "drive_problem": self.drive_problem,
            "segments": dict(self.segments),
            "counters": dict(self.counters),
        }


class FactsReader:
    """Keeps a connection to each worker it asked. Close it when done."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open: dict[tuple[bytes, str, int], Connected] = {}

    def read(self) -> list[WorkerFacts]:
        """Ask every worker of the map, one after the other; ordered by the nodes' names."""
        shard_map = self._client.attachment.shard_map
        if shard_map is None:
            return []
        found = [
            self._facts(worker, len(shard_map.slots_of(index)))
            for index, worker in enumerate(shard_map.workers)
        ]
        return sorted(found, key=lambda facts: (facts.worker.node_name, facts.worker.uuid))

    def _facts(self, worker: Worker, slots: int) -> WorkerFacts:
        place = (worker.uuid, worker.host, worker.port)
        try:
            if place not in self._open:
                self._open[place] = self._connect(worker)
            answer = ask(self._open[place])
        except (MemKVError, OSError) as error:
            if place in self._open:
                self._open.pop(place).close()
            return WorkerFacts(worker, slots, problem=str(error))
        return facts_of(worker, slots, answer)

    def _connect(self, worker: Worker) -> Connected:
        from memkv.client.handshake import Handshake
        from memkv.wire.messages import HelloRequest

        core, clock = self._client.attachment.core, SystemClock()
        ticket = core.ticket.ticket if core.ticket else b""
        deadline_ns = clock.monotonic_ns() + int(TIMEOUT_S * 1e9)
        handshake = Handshake(
            worker.host, worker.port, deadline_ns, clock, tls=core.options.node_context()
        )
        connection, _ = handshake.open_control(
            HelloRequest(core.client_uuid, core.options.pool, ticket)
        )
        connection.settimeout(TIMEOUT_S)
        return connection

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def ask(connection: Connected) -> Mapping[str, object]:
    """Send STAT and return its JSON object. Raises PeerGone or ProtocolError."""
    reader = FrameReader(responses=True)
    connection.sendall(encode_frame(Opcode.STAT, 0, 1, deadline_ms=int(TIMEOUT_S * 1000)))
    while True:
        data = connection.recv(reader.bytes_wanted())
        if not data:
            raise PeerGone("the worker closed the connection")
        for event in reader.feed(data):
            if isinstance(event, Frame):
                answer = json.loads(event.body)
                return answer if isinstance(answer, dict) else {}


def facts_of(worker: Worker, slots: int, answer: Mapping[str, object]) -> WorkerFacts:
    """Take what is known from an answer; a newer or older node may say more or less."""
    map_ = answer.get("map")
    return WorkerFacts(
        worker, slots,
        blocks=_number(answer, "blocks"),
        used_bytes=_number(answer, "bytes"),
        capacity_bytes=_number(answer, "capacity_bytes"),
        memory_bytes=_number(answer, "memory_bytes"),
        memory_free_bytes=_number(answer, "memory_free_bytes"),
        sessions=_number(answer, "sessions"),
        epoch=_number(map_, "epoch") if isinstance(map_, dict) else 0,
        drive_state=_drive(answer, "state"),
        drive_problem=_drive(answer, "problem"),
        segments=_numbers(answer, "segments"),
        counters=_numbers(answer, "counters"),
    )  # fmt: skip


def _number(answer: Mapping[str, object], name: str) -> int:
    value = answer.get(name)
    return value if isinstance(value, int) else 0


def _drive(answer: Mapping[str, object], name: str) -> str:
    drive = answer.get("drive")
    value = drive.get(name) if isinstance(drive, dict) else None
    return value if isinstance(value, str) else ""


def _numbers(answer: Mapping[str, object], name: str) -> dict[str, int]:
    values = answer.get(name)
    return {key: _number(values, key) for key in values} if isinstance(values, dict) else {}
