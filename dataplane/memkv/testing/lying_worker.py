"""A worker behind a proxy that lies, and clients that know only the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memkv.client.sync import Client
from memkv.limits import KIB
from memkv.shardmap.map import MapVersion, ShardMap, Worker, pack_owners
from memkv.testing.local_workers import SLOTS, LocalWorkers, local_workers
from memkv.testing.proxy import FaultProxy


@dataclass
class LyingWorker:
    proxy: FaultProxy
    pool: LocalWorkers
    shard_map: ShardMap

    def client(self, deadline_ms: int = 500) -> Client:
        """Return a client that is attached; the pool closes it, if nobody does before."""
        made, _ = self.pool.client(self.shard_map, deadline_ms=deadline_ms)
        return made


@contextmanager
def lying_worker(directory: Path) -> Iterator[LyingWorker]:
    """Run one; it tells the truth until its proxy is told otherwise."""
    with local_workers(directory, 1) as pool:
        (worker,) = pool.workers
        proxy = FaultProxy(("127.0.0.1", worker.server.port))
        shard_map = ShardMap(
            MapVersion(bytes(16), 1, 1), SLOTS,
            (Worker(worker.uuid, 1, "node", "127.0.0.1", proxy.port),), pack_owners([0] * SLOTS),
        )
        worker.server.set_map(shard_map)
        try:
            yield LyingWorker(proxy, pool, shard_map)
        finally:
            proxy.close()


def flip_payload(sent: int, piece: bytearray) -> bool:
    """A fault: flip a bit of each large piece, and leave alone what keeps a session alive."""
    if len(piece) > 8 * KIB:
        piece[-1] ^= 1
    return True
