"""A worker's server on a free port of this machine, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from memkv.clock import Clock, SystemClock
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.shardmap import ShardMap
from memkv.tcp.store_api import BlockStore
from memkv.testing.wire_client import Wire, WireClient
from memkv.wire.ticket import AnonymousVerifier

POOL = "default/test"
WORKER_UUID = b"worker uuid 0001"


@dataclass
class RunningWorker:
    """A started server, and the clients that a test opened on it."""

    server: WorkerServer
    clock: Clock
    clients: list[WireClient | Wire] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.server.port)

    def client(self, tenant: str = "default", **options: Any) -> WireClient:
        """Open a session. Raises SessionRefused."""
        client = WireClient(self.address, POOL, tenant, now_s=self.clock.wall_s(), **options)
        self.clients.append(client)
        return client

    def wire(self) -> Wire:
        """Open a bare connection."""
        wire = Wire(self.address)
        self.clients.append(wire)
        return wire


@contextmanager
def running_worker(
    store: BlockStore, *, shard_map: ShardMap | None = None, **settings: Any
) -> Iterator[RunningWorker]:
    """Serve `store` until the block ends; `settings` are fields of `WorkerConfig`."""
    clock = SystemClock()
    config = WorkerConfig(POOL, WORKER_UUID, 1, **settings)
    server = WorkerServer(
        store, config, clock, AnonymousVerifier(loopback=True), shard_map=shard_map
    )
    server.start()
    worker = RunningWorker(server, clock)
    try:
        yield worker
    finally:
        for client in worker.clients:
            client.close()
        server.stop()
