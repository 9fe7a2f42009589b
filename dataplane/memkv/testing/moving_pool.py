"""A pool inside this process whose slots move: stores on files, servers, keepers, a publisher.

Nothing happens between maps by itself: `tick` polls the nodes, steps the publisher and hands its
map to everyone. Nodes can be killed and started again on their files.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from memkv.client.attach import Attachment
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock, deadline_after_ms
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.metadata.publisher import Publisher, PublisherConfig
from memkv.metadata.roster import LossPolicy, WorkerReport
from memkv.node.config import WorkerConfig
from memkv.node.moves.keeper import MoveKeeper, first_memory
from memkv.node.moves.memory import MoveMemory, load_memory
from memkv.node.moves.peer import Peer, PeerSession
from memkv.node.moves.tickets import AnonymousPeerTickets
from memkv.node.moves.view import nobodys_map
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.shardmap import MapVersion, ShardMap, Worker
from memkv.store.api import Store, open_store
from memkv.store.config import StoreConfig
from memkv.testing.local_workers import POOL, StaticSource
from memkv.wire.ticket import AnonymousVerifier

SLOTS = 32
WAIT_MS = 60_000
TICK_MS = 500
BLOCK_BYTES_MAX = 1 * MIB
CLOCK = SystemClock()

WrapPeer = Callable[[Peer], Peer]


class MovingNode:
    """One worker with its files. `start` after `kill` is a new process on the same drive."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.uuid = name.encode() * 16
        self.folder = folder / name
        self.wrap_peer: WrapPeer = lambda peer: peer
        self.is_up = False
        self.answers_polls = True
        """False: its supervisor is stopped while the worker goes on."""
        self.hears_maps = True
        self.folder.mkdir()

    def start(self, shard_map: ShardMap | None, *, port: int = 0) -> None:
        """Open what is on the drive and serve by a map."""
        path, state_file = self.folder / "flash", self.folder / "slots"
        memory = load_memory(state_file)
        floors = memory or MoveMemory()
        self.device = (
            FileDevice.open(str(path)) if path.exists()
            else FileDevice.create(str(path), 128 * MIB)
        )  # fmt: skip
        config = StoreConfig(
            32 * MIB, BLOCK_BYTES_MAX, worker_uuid=self.uuid, slots=SLOTS,
            slot_floors=floors.floors, tenant_floors=floors.tenant_floors,
        )  # fmt: skip
        self.store: Store = open_store(self.device, config, CLOCK, random.SystemRandom())
        formatted = self.store.recovery.formatted
        self.server = WorkerServer(
            NodeStore(self.store, lambda epoch: self.keeper.generation_at(epoch)),
            WorkerConfig(POOL, self.uuid, 1, port=port, block_bytes_max=BLOCK_BYTES_MAX),
            CLOCK,
            AnonymousVerifier(loopback=True),
        )
        self.keeper = MoveKeeper(
            self.uuid, self.store, self._connect, self.server.set_map, state_file,
            memory or first_memory(self.store, SLOTS, formatted=formatted), CLOCK,
        )  # fmt: skip
        self.server.set_map(nobodys_map(SLOTS))
        self.server.start()
        self.is_up = True
        if shard_map is not None:
            self.keeper.offer(shard_map)
        self.keeper.start()

    def _connect(self, worker: Worker, version: MapVersion) -> Peer:
        tickets = AnonymousPeerTickets(POOL, CLOCK)
        return self.wrap_peer(PeerSession(POOL, self.uuid, worker, version, tickets, CLOCK))

    def kill(self) -> None:
        """End it; what was not written is lost."""
        if self.is_up:
            self.is_up = False
            self.keeper.stop()
            self.server.stop()
            self.store.close(clean=False)
            self.device.close()

    def report(self) -> WorkerReport:
        """Return what a poll says."""
        moves = self.keeper.statistics()
        worker = Worker(
            self.uuid, self.store.superblock.incarnation, self.name, "127.0.0.1", self.server.port
        )
        return WorkerReport(worker, True, moves.lineage, moves.applied_epoch, moves.finished)


@dataclass
class MovingPool:
    """Nodes, a publisher, and clients that get each map when the nodes do."""

    folder: Path
    nodes: dict[str, MovingNode] = field(default_factory=dict)
    sources: list[StaticSource] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    now_ms: int = 0

    def __post_init__(self) -> None:
        self.config = PublisherConfig(
            nodes=1, slots=SLOTS, moving_slots_percent_max=100, first_map_wait_ms=0,
            loss=LossPolicy(grace_ms=1000, accept_mass_loss=True),
        )  # fmt: skip
        self.publisher = Publisher(self.config, None, 0)

    @property
    def map(self) -> ShardMap | None:
        """The newest map, None before the first."""
        state = self.publisher.state
        return state.shard_map if state is not None else None

    @property
    def the_map(self) -> ShardMap:
        """The newest map."""
        assert self.map is not None
        return self.map

    def add(self, name: str) -> MovingNode:
        """Start a new node."""
        node = self.nodes[name] = MovingNode(name, self.folder)
        node.start(self.map)
        self.stack.callback(node.kill)
        return node

    def tick(self) -> None:
        """Poll everyone, step, publish."""
        self.now_ms += TICK_MS
        for name, node in self.nodes.items():
            if node.is_up and node.answers_polls:
                self.publisher.answered(name, [node.report()], self.now_ms)
            else:
                self.publisher.failed(name)
        outcome = self.publisher.step(self.now_ms, self.now_ms // 1000)
        if outcome.state is None:
            return
        for node in self.nodes.values():
            if node.is_up and node.hears_maps:
                node.keeper.offer(outcome.state.shard_map)
        for source in self.sources:
            source.publish(outcome.state.shard_map)

    def tick_until(self, what: str, holds: Callable[[], bool]) -> None:
        """Tick until something holds. AssertionError when it does not within WAIT_MS."""
        deadline_ns = deadline_after_ms(CLOCK, WAIT_MS)
        while not holds():
            assert CLOCK.monotonic_ns() < deadline_ns, f"in vain: {what}"
            self.tick()
            self.pause()

    @staticmethod
    def pause() -> None:
        """Let the nodes' threads work for a moment."""
        threading.Event().wait(0.01)

    def settle(self) -> None:
        """Tick until nothing moves and everyone has taken the map over."""
        self.tick_until("everything is settled", self._is_settled)

    def _is_settled(self) -> bool:
        if self.map is None or self.map.moving:
            return False
        up = [node for node in self.nodes.values() if node.is_up]
        owners = {self.map.workers[i].uuid for i in range(len(self.map.workers))
                  if self.map.slots_of(i)}
        ports = {worker.uuid: worker.port for worker in self.map.workers}
        return owners == {node.uuid for node in up} and all(
            ports[node.uuid] == node.server.port
            and node.keeper.statistics().applied_epoch == self.map.version.epoch
            for node in up
        )

    def client(self) -> Client:
        """Return a client that is attached to the map."""
        source = StaticSource()
        source.publish(self.the_map)
        self.sources.append(source)
        options = ConnectOptions("127.0.0.1:1", POOL, "default", 5000, bootstrap_timeout_ms=5000)
        client = Client(options, Attachment(options, source))
        self.stack.callback(client.close)
        return client

    def close(self) -> None:
        """End clients and nodes."""
        self.stack.close()
