"""How soon clients go by a new epoch, from the operator's write of the MemKVShardMap on.

A real API server; `memkv metadata --kubernetes` as it runs, which hears of the write by its watch;
and the source of maps of a client, which hears of it from there. Clients must follow within a
second; the test fails at three times that.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable

from memkv.client.metadata_source import MetadataSource
from memkv.client.options import ConnectOptions
from memkv.clock import SystemClock
from memkv.metadata.access import AccessConfig
from memkv.metadata.kubernetes.api_server import ApiServer, Observer, connect_api_server
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.metadata.main import MetadataConfig, MetadataProcess
from memkv.metadata.server import ServerConfig
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.passing_api import Call, PassingApi
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
CLIENTS = 4
GROWTHS = 5
FOLLOWED_S = 1.0
FAILS_AT = 3
CLOCK = SystemClock()


class Timed(PassingApi):
    """An ApiServer that notes when each epoch was sent to it."""

    def __init__(self, api: ApiServer, sent_ns: dict[int, int]) -> None:
        super().__init__(api)
        self._sent_ns = sent_ns

    async def send(self, call: Call) -> JsonObject:
        if call.writes_map and call.body is not None:
            epoch = Reader(call.body).object("spec").integer("epoch")
            self._sent_ns.setdefault(epoch, CLOCK.monotonic_ns())
        return await super().send(call)


class Follower:
    """A client's source of maps, which notes when it went by each epoch."""

    def __init__(self, endpoint: str, pool: str, name: str) -> None:
        self.applied_ns: dict[int, int] = {}
        self._source = MetadataSource(ConnectOptions(endpoint, pool), name)
        self._source.start(self._changed)

    def _changed(self) -> None:
        route = self._source.route
        if route is not None:
            self.applied_ns.setdefault(route.version.epoch, CLOCK.monotonic_ns())

    def has(self, epoch: int) -> bool:
        return any(known >= epoch for known in list(self.applied_ns))

    def delay_s(self, epoch: int, sent_ns: int) -> float:
        """Return how long after it was sent this client had the epoch, or a newer one."""
        first = min(ns for known, ns in self.applied_ns.items() if known >= epoch)
        return (first - sent_ns) / 1e9

    def stop(self) -> None:
        self._source.stop()


def test_clients_go_by_an_epoch_soon_after_the_operator_wrote_it(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        sent_ns: dict[int, int] = {}

        async def connect(observer: Observer) -> ApiServer:
            return Timed(await connect_api_server(observer), sent_ns)

        pool = f"{real.namespace}/{POOL}"
        config = MetadataConfig(ServerConfig(pool, port=0), kubernetes=True, access=AccessConfig())
        metadata = MetadataProcess(config, CLOCK)
        await metadata.start()
        endpoint = metadata.server.endpoint
        followers = [Follower(endpoint, pool, f"client-{number}") for number in range(CLIENTS)]
        try:
            await real.add_nodes(1)
            await real.make_pool()
            async with real.operator(connect=connect):
                await real.until(real.is_ready)
                for _ in range(GROWTHS):
                    before = max(sent_ns)
                    await real.add_nodes(1)

                    async def followed(before: int = before) -> bool:
                        newest = max(sent_ns)
                        return newest > before and all(one.has(newest) for one in followers)

                    await real.until(followed)
            # The first map finds followers that wait between two tries to connect.
            epochs = [epoch for epoch in sorted(sent_ns)[1:] if followers[0].has(epoch)]
            assert len(epochs) >= GROWTHS
            delays_s = [one.delay_s(epoch, sent_ns[epoch]) for one in followers for epoch in epochs]
            median_s = statistics.median(delays_s)
            print(
                f"a client goes by an epoch {median_s * 1e3:.0f} ms after the operator sent it "
                f"(median of {len(delays_s)}, at most {max(delays_s) * 1e3:.0f} ms)"
            )
            assert median_s < FAILS_AT * FOLLOWED_S
        finally:
            for one in followers:
                await asyncio.to_thread(one.stop)
            await metadata.stop()

    on_real_api(test)
