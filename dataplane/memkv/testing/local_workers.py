"""A pool inside this process: real stores on files, real servers, a map that the test decides.

No metadata service and no child processes: for tests of the client and of nodes together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from memkv.client.attach import Attachment
from memkv.client.options import LOCAL_OFF, ConnectOptions
from memkv.client.session import WorkerSession
from memkv.client.source import TicketGrant
from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import BREAKER_FAILURES, MIB
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.rdma.client_memory import MemoryMode, RdmaOptions
from memkv.rdma.rails import RailOptions, Rails
from memkv.rdma.verbs import Verbs
from memkv.shardmap.cache import MapCache, OwnerHint, Route
from memkv.shardmap.map import MapVersion, Move, ShardMap, Worker, pack_owners
from memkv.store.api import Store, open_store
from memkv.store.config import StoreConfig
from memkv.tenant import tenant_tag
from memkv.wire.ticket import CLIENT_RIGHTS, AnonymousVerifier, Rights, Ticket

POOL = "default/test"
SLOTS = 64
FOREVER_NS = 1 << 62


def default_verbs() -> Verbs | None:
    """Devices of workers where a test names none; see `over_rdma`."""
    return None


class StaticSource:
    """A `MapSource` whose map the test sets."""

    def __init__(self, tenant: str = "default", rights: Rights = CLIENT_RIGHTS) -> None:
        self._tenant = tenant
        self._rights = rights
        self._cache = MapCache()
        self._changed: Callable[[], None] = lambda: None

    def start(self, route_changed: Callable[[], None]) -> None:
        self._changed = route_changed
        route_changed()

    def publish(self, shard_map: ShardMap) -> None:
        """Offer a map, as the metadata service would."""
        self._cache.offer(shard_map, trusted=True)
        self._changed()

    @property
    def route(self) -> Route | None:
        return self._cache.route

    @property
    def last_error(self) -> str:
        return ""

    def learn(self, hint: OwnerHint) -> bool:
        return self._cache.learn(hint)

    def fetch_ticket(self, timeout_ms: int) -> TicketGrant:
        now_s = SystemClock().wall_s()
        salt = self._tenant.encode()
        ticket = Ticket(
            POOL, self._tenant, "tests", self._rights, now_s, now_s + 3600, salt=salt
        )
        return TicketGrant(
            ticket.encode(), salt, tenant_tag(self._tenant), FOREVER_NS, FOREVER_NS
        )

    def stop(self) -> None: ...


@dataclass
class LocalWorker:
    """One worker of the pool; `server` may be stopped and replaced by a test."""

    uuid: bytes
    store: Store
    device: FileDevice
    server: WorkerServer
    rails: Rails | None = None


@dataclass
class LocalWorkers:
    """The pool. Owners go round over the workers unless a test says otherwise."""

    workers: list[LocalWorker] = field(default_factory=list)
    epoch: int = 0
    stack: ExitStack = field(default_factory=ExitStack)

    def map(
        self, owners: Sequence[int] | None = None, moving: dict[int, Move] | None = None
    ) -> ShardMap:
        """Return the next map and tell it to the workers, not to clients."""
        self.epoch += 1
        members = tuple(
            Worker(worker.uuid, 1, f"node-{n}", "127.0.0.1", worker.server.port)
            for n, worker in enumerate(self.workers)
        )
        table = owners or [slot % len(members) for slot in range(SLOTS)]
        shard_map = ShardMap(
            MapVersion(bytes(16), 1, self.epoch), SLOTS, members, pack_owners(table), moving or {}
        )
        for worker in self.workers:
            worker.server.set_map(shard_map)
        return shard_map

    def client(
        self, shard_map: ShardMap, *, tenant: str = "default", deadline_ms: int = 5_000,
        rights: Rights = CLIENT_RIGHTS, verbs: Verbs | None = None, strict: bool = False,
    ) -> tuple[Client, StaticSource]:
        """Return an attached client and the source of its maps. With `verbs` it asks for RDMA, and
        not for shared memory."""
        source = StaticSource(tenant, rights)
        source.publish(shard_map)
        options = ConnectOptions(
            "127.0.0.1:1", POOL, tenant, deadline_ms, bootstrap_timeout_ms=5_000
        )
        if verbs is not None:
            mode = MemoryMode.STRICT if strict else MemoryMode.ARENA
            options = replace(
                options, verbs=lambda: verbs, rdma_options=RdmaOptions(mode), local_dir=LOCAL_OFF
            )
        client = Client(options, Attachment(options, source))
        self.stack.callback(client.close)
        return client, source


def open_breaker(session: WorkerSession) -> None:
    """Have a client's breaker be open, as after failures in a row, and its pause be over."""
    for _ in range(BREAKER_FAILURES):
        session._breaker.failure(0)
    assert session.breaker_state == "open"


@contextmanager
def local_workers(
    directory: Path, count: int, *, capacity_bytes: int = 256 * MIB, memory_bytes: int = 64 * MIB,
    block_bytes_max: int = 2 * MIB, lane_threads: int = 8, verbs: Verbs | None = None,
) -> Iterator[LocalWorkers]:
    """Run `count` workers on files in `directory` until the block ends; with `verbs` over RDMA."""
    pool = LocalWorkers()
    verbs = verbs or default_verbs()
    with pool.stack:
        for number in range(count):
            device = FileDevice.create(str(directory / f"flash-{number}"), capacity_bytes)
            pool.stack.callback(device.close)
            uuid = bytes([number + 1]) * 16
            store = open_store(
                device,
                StoreConfig(
                    memory_bytes, block_bytes_max=block_bytes_max, worker_uuid=uuid, slots=SLOTS
                ),
                SystemClock(), random.SystemRandom(),
            )
            pool.stack.callback(store.close)
            rails = None
            if verbs is not None:
                rails = Rails(verbs, store.memory, RailOptions(), SystemClock())
                pool.stack.callback(rails.close)
            server = WorkerServer(
                NodeStore(store),
                WorkerConfig(POOL, uuid, 1, block_bytes_max=block_bytes_max,
                             lane_threads=lane_threads, local_dir=str(directory / "run")),
                SystemClock(), AnonymousVerifier(loopback=True), rails=rails,
            )
            server.start()
            pool.stack.callback(server.stop)
            pool.workers.append(LocalWorker(uuid, store, device, server, rails))
        yield pool
