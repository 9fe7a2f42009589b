"""How soon clients go by a map that their metadata service publishes: within a second, by design.

Fails at three times that.
"""

import asyncio
import statistics
import threading

from memkv.client.metadata_source import MetadataSource
from memkv.client.options import ConnectOptions
from memkv.clock import SystemClock
from memkv.metadata.server import MetadataServer, ServerConfig
from memkv.metadata.tickets import AnonymousIssuer
from memkv.shardmap import MapVersion, ShardMap, Worker, pack_owners

POOL = "default/test"
CLIENTS = 8
EPOCHS = 20
FOLLOWED_S = 1.0
FAILS_AT = 3
WAIT_S = 60.0
CLOCK = SystemClock()


def make_map(epoch: int) -> ShardMap:
    workers = (Worker(b"w" * 16, 1, "n1", "127.0.0.1", 7070),)
    return ShardMap(MapVersion(b"L" * 16, 1, epoch), 64, workers, pack_owners((0,) * 64))


class Follower:
    """A client's source of maps, which notes when it went by the epoch that is waited for."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.epoch = 0
        self.applied_ns = 0
        self.reached = threading.Event()
        self._source = MetadataSource(ConnectOptions(endpoint, POOL), name)
        self._source.start(self._changed)

    def wait_for(self, epoch: int) -> None:
        self.reached.clear()
        self.epoch = epoch

    def _changed(self) -> None:
        route = self._source.route
        if route is not None and route.version.epoch == self.epoch:
            self.applied_ns = CLOCK.monotonic_ns()
            self.reached.set()

    def stop(self) -> None:
        self._source.stop()


def test_clients_go_by_an_epoch_soon_after_its_publication() -> None:
    async def measure() -> list[float]:
        server = MetadataServer(ServerConfig(POOL, port=0), AnonymousIssuer(CLOCK), CLOCK)
        await server.start()
        followers = [Follower(server.endpoint, f"client-{number}") for number in range(CLIENTS)]
        delays_s: list[float] = []
        try:
            for epoch in range(1, EPOCHS + 2):
                for one in followers:
                    one.wait_for(epoch)
                published_ns = CLOCK.monotonic_ns()
                await server.publish(make_map(epoch))
                for one in followers:
                    assert await asyncio.to_thread(one.reached.wait, WAIT_S)
                if epoch > 1:  # the first finds clients that are still connecting
                    delays_s += [(one.applied_ns - published_ns) / 1e9 for one in followers]
        finally:
            for one in followers:
                await asyncio.to_thread(one.stop)
            await server.stop(grace_s=0)
        return delays_s

    delays_s = asyncio.run(measure())
    assert len(delays_s) == CLIENTS * EPOCHS
    median_s = statistics.median(delays_s)
    print(
        f"a client goes by an epoch {median_s * 1e3:.1f} ms after its publication "
        f"(median of {len(delays_s)}, at most {max(delays_s) * 1e3:.0f} ms)"
    )
    assert median_s < FAILS_AT * FOLLOWED_S
