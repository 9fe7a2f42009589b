"""A worker's server on a free port of this machine, for tests."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from memkv._hotpath import TlsContext
from memkv.clock import Clock, SystemClock
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.shardmap import ShardMap
from memkv.tcp.store_api import BlockStore
from memkv.testing.certificates import Authority
from memkv.testing.encrypted_address import EncryptedAddress
from memkv.testing.wire_client import Wire, WireClient
from memkv.wire.ticket import AnonymousVerifier, TicketVerifier

POOL = "default/test"
NODE_NAME = "node.test.default.memkv"
WORKER_UUID = b"worker uuid 0001"


@dataclass
class RunningWorker:
    """A started server, and the clients that a test opened on it."""

    server: WorkerServer
    clock: Clock
    clients: list[WireClient | Wire] = field(default_factory=list)

    authority: Authority | None = None
    """Of the worker's certificate; None: it speaks no TLS."""

    @property
    def address(self) -> tuple[str, int]:
        plain = ("127.0.0.1", self.server.port)
        if self.authority is None:
            return plain
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        return EncryptedAddress.of(plain, context, NODE_NAME)

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
    store: BlockStore, *, shard_map: ShardMap | None = None, encrypted: bool = False,
    verifier: TicketVerifier | None = None, clock: Clock | None = None, **settings: Any,
) -> Iterator[RunningWorker]:  # fmt: skip
    """Serve `store` until the block ends; `settings` are fields of `WorkerConfig`. `verifier`:
    default: unsigned tickets pass. `clock`: default: the machine's."""
    authority = Authority() if encrypted else None
    tls = None
    if authority is not None:
        pair = authority.issue(NODE_NAME)
        context = TlsContext.server(pair.certificate, pair.key)
        tls = lambda: context  # noqa: E731  one certificate for as long as it runs
    clock = clock or SystemClock()
    config = WorkerConfig(POOL, WORKER_UUID, 1, **settings)
    server = WorkerServer(
        store, config, clock, verifier or AnonymousVerifier(loopback=True),
        shard_map=shard_map, tls=tls,
    )  # fmt: skip
    server.start()
    worker = RunningWorker(server, clock, authority=authority)
    try:
        yield worker
    finally:
        for client in worker.clients:
            client.close()
        server.stop()
