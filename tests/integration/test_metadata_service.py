"""The metadata service over real sockets: snapshots, resumption, conflation, goodbyes, tickets."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memkv.clock import SystemClock
from memkv.errors import ConfigError, PeerGone, RetryLater
from memkv.limits import MAP_BOOTSTRAP_TIMEOUT_MS
from memkv.metadata.endpoint import (
    CLIENT_OPTIONS,
    CONNECT_OPTION,
    channel_options,
    connect_ms,
    open_channel,
)
from memkv.metadata.server import MetadataServer, ServerConfig, is_on_this_machine
from memkv.metadata.tickets import AnonymousIssuer, public_salt
from memkv.metadata.watch import (
    MapWatcher,
    MetadataRefused,
    WatchConfig,
    drop_tenant,
    fetch_map,
    fetch_ticket,
)
from memkv.shardmap import MapVersion, OwnerHint, ShardMap, Worker, map_from_proto, pack_owners
from memkv.shardmap.codec import version_to_proto
from memkv.wire.ticket import AnonymousVerifier
from memkv_proto import metadata_pb2 as pb
from memkv_proto import metadata_pb2_grpc as pb_grpc

POOL = "default/test"
LINEAGE = b"L" * 16
WAIT_S = 20.0
T = TypeVar("T")


def make_map(epoch: int, *, lineage: bytes = LINEAGE, owners: tuple[int, ...] = (0, 1)) -> ShardMap:
    workers = tuple(Worker(bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n) for n in range(2))
    return ShardMap(MapVersion(lineage, 1, epoch), len(owners), workers, pack_owners(owners))


class RunningServer:
    """A server on its own loop in a thread, for tests that are not asynchronous."""

    def __init__(self, config: ServerConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.call(self._make(config))
        self.call(self.server.start())
        self._stopped = False

    async def _make(self, config: ServerConfig) -> MetadataServer:
        clock = SystemClock()
        return MetadataServer(config, AnonymousIssuer(clock), clock)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def publish(self, shard_map: ShardMap) -> None:
        self.call(self.server.publish(shard_map))

    def stop(self, grace_s: float = 1) -> None:
        if not self._stopped:
            self._stopped = True
            self.call(self.server.stop(grace_s))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(WAIT_S)
            self._loop.close()

    @property
    def endpoint(self) -> str:
        return self.server.endpoint


Start = Callable[..., RunningServer]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[RunningServer] = []

    def make(**changes: Any) -> RunningServer:
        defaults: dict[str, Any] = {"pool": POOL, "port": 0, "bookmark_interval_ms": 100}
        running.append(RunningServer(ServerConfig(**{**defaults, **changes})))
        return running[-1]

    yield make
    for server in running:
        server.stop(grace_s=0)


Watch = Callable[..., MapWatcher]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watchers: list[MapWatcher] = []

    def make(*endpoints: str, on_map: Any = None, **changes: Any) -> MapWatcher:
        kept = changes.pop("kept", None)
        config = WatchConfig(endpoints, POOL, "test", **changes)
        watchers.append(MapWatcher(config, SystemClock(), on_map, kept=kept))
        watchers[-1].start()
        return watchers[-1]

    yield make
    for watcher in watchers:
        watcher.stop()


def stream(channel: grpc.Channel, **fields: Any) -> Any:
    request = pb.WatchShardMapRequest(pool=POOL, **fields)
    return pb_grpc.MetadataServiceStub(channel).WatchShardMap(request, timeout=WAIT_S)


def kinds_until(events: Any, wanted: str) -> list[str]:
    seen: list[str] = []
    for event in events:
        seen.append(event.WhichOneof("payload"))
        if seen[-1] == wanted:
            break
    return seen


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; `Event.wait` lets other threads work in between."""
    pause, clock = threading.Event(), SystemClock()
    deadline_ns = clock.monotonic_ns() + int(WAIT_S * 1e9)
    while not holds():
        assert clock.monotonic_ns() < deadline_ns, "the condition did not come true"
        pause.wait(0.01)


def test_map_is_fetched_whole(start: Start) -> None:
    server = start()
    with pytest.raises(RetryLater, match="no map yet"):
        fetch_map(server.endpoint, POOL)
    server.publish(make_map(1))
    assert fetch_map(server.endpoint, POOL) == make_map(1)


def test_watch_starts_with_a_snapshot_then_bookmarks(start: Start) -> None:
    server = start()
    server.publish(make_map(3))
    with open_channel(server.endpoint, None) as channel:
        events = stream(channel)
        first = next(events)
        assert map_from_proto(first.snapshot) == make_map(3)
        second = next(events)
        assert second.bookmark.version.epoch == 3
        assert second.bookmark.interval_ms == 100
        assert second.bookmark.server_time.seconds > 1_600_000_000
        server.publish(make_map(4))
        assert kinds_until(events, "snapshot")[-1] == "snapshot"


@pytest.mark.parametrize(
    ("known", "digest", "expected"),
    [
        (make_map(3), make_map(3).digest, "bookmark"),
        (make_map(2), make_map(2).digest, "snapshot"),
        (make_map(3), b"x" * 32, "snapshot"),
        (make_map(4), make_map(4).digest, "bookmark"),
        (make_map(9, lineage=b"M" * 16), b"", "snapshot"),
    ],
    ids=["same", "older", "same-version-other-digest", "server-lags", "other-lineage"],
)
def test_watch_resumes_by_version_and_digest(
    start: Start, known: ShardMap, digest: bytes, expected: str
) -> None:
    server = start()
    server.publish(make_map(3))
    with open_channel(server.endpoint, None) as channel:
        version = version_to_proto(known.version)
        events = stream(channel, last_applied=version, last_digest=digest)
        assert next(events).WhichOneof("payload") == expected


def test_slow_watcher_gets_the_latest_map_and_misses_those_between(start: Start) -> None:
    server = start()
    server.publish(make_map(1))
    with open_channel(server.endpoint, None) as channel:
        events = stream(channel)
        next(events)

        async def burst() -> None:
            for epoch in range(2, 500):
                server.server.feed.publish(make_map(epoch))

        server.call(burst())
        epochs = []
        for event in events:
            if event.WhichOneof("payload") == "snapshot":
                epochs.append(event.snapshot.version.epoch)
                if epochs[-1] == 499:
                    break
        assert epochs == [499]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"pool": "default/other"}, grpc.StatusCode.NOT_FOUND, "check the endpoint"),
        ({"protocol_min": 3, "protocol_max": 4}, grpc.StatusCode.FAILED_PRECONDITION, "upgrade"),
    ],
)
def test_watch_that_cannot_work_says_why(
    start: Start, fields: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    server = start()
    with open_channel(server.endpoint, None) as channel:
        request = pb.WatchShardMapRequest(**{"pool": POOL, **fields})
        stub = pb_grpc.MetadataServiceStub(channel)
        events: Any = stub.WatchShardMap(request, timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as failure:
            next(events)
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() == code
    assert message in (failure.value.details() or "")


def test_watchers_over_the_limit_are_refused(start: Start) -> None:
    server = start(watchers_max=1)
    with open_channel(server.endpoint, None) as channel:
        first = stream(channel)
        next(first)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(stream(channel))
        first.cancel()
        wait_until(lambda: server.server.statistics().watchers == 0)


def test_stopping_server_sends_its_watchers_away(start: Start) -> None:
    server = start()
    with open_channel(server.endpoint, None) as channel:
        events = stream(channel)
        next(events)
        server.stop(grace_s=WAIT_S)
        assert kinds_until(events, "go_away")[-1] == "go_away"


def test_health_turns_serving_with_the_first_map(start: Start) -> None:
    server = start()
    with open_channel(server.endpoint, None) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "memkv.v1.MetadataService"):
            request = health_pb2.HealthCheckRequest(service=service)
            status = stub.Check(request, timeout=WAIT_S).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            server.publish(make_map(1))
            status = stub.Check(request, timeout=WAIT_S).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            server.server._ready = False
            server.call(server.server._set_health(health_pb2.HealthCheckResponse.NOT_SERVING))


def test_reflection_only_where_it_is_asked_for(start: Start) -> None:
    for enabled in (True, False):
        server = start(reflection=enabled)
        with open_channel(server.endpoint, None) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = stub.ServerReflectionInfo(iter([request]), timeout=WAIT_S)
            if enabled:
                names = {s.name for s in next(answers).list_services_response.service}
                assert "memkv.v1.MetadataService" in names
            else:
                with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                    next(answers)


def test_ticket_opens_sessions_on_loopback(start: Start) -> None:
    server = start()
    grant = fetch_ticket(server.endpoint, POOL, "team-a")
    now_s = SystemClock().wall_s()
    ticket = AnonymousVerifier(loopback=True).verify(grant.ticket, POOL, now_s)
    assert (ticket.tenant, ticket.salt) == ("team-a", grant.tenant_salt)
    assert grant.tenant_salt == public_salt(POOL, "team-a") != public_salt(POOL, "team-b")
    assert grant.expires_s == ticket.expires_s > now_s
    assert fetch_ticket(server.endpoint, POOL, "").tenant == "default"


def test_ticket_refusals_name_the_fix(start: Start) -> None:
    server = start()
    with pytest.raises(MetadataRefused, match="tenant name"):
        fetch_ticket(server.endpoint, POOL, "No Such!")
    with pytest.raises(MetadataRefused, match="check the endpoint"):
        fetch_ticket(server.endpoint, "default/other", "a")


def test_tenant_is_dropped_by_the_publisher_only(start: Start) -> None:
    server = start()
    with pytest.raises(MetadataRefused, match="name the endpoint of the pool's publisher"):
        drop_tenant(server.endpoint, POOL, "team-a")


@pytest.mark.parametrize(
    ("peer", "listening", "expected"),
    [
        ("ipv4:127.0.0.1:5555", "127.0.0.1", True),
        ("ipv6:%5B::1%5D:5555", "::", True),
        ("ipv4:10.0.0.7:5555", "10.0.0.7", True),
        ("ipv4:10.0.0.8:5555", "10.0.0.7", False),
        ("ipv6:%5Bfd00::1%5D:5555", "::", False),
        ("unknown", "127.0.0.1", False),
    ],
)
def test_who_is_on_this_machine(peer: str, listening: str, expected: bool) -> None:
    assert is_on_this_machine(peer, listening) is expected


def test_nobody_there_is_said_in_time() -> None:
    with pytest.raises(PeerGone, match="is it running"):
        fetch_map("127.0.0.1:1", POOL, timeout_s=0.5)


def test_port_in_use_is_refused_with_the_fix(start: Start) -> None:
    server = start()
    with pytest.raises(ConfigError, match="another process has the port"):
        start(port=server.server.port)


def test_open_network_without_tls_is_refused() -> None:
    async def make(insecure: bool) -> MetadataServer:
        config = ServerConfig(POOL, host="0.0.0.0", port=0, insecure=insecure)
        return MetadataServer(config, AnonymousIssuer(SystemClock()), SystemClock())

    with pytest.raises(ConfigError, match="--insecure"):
        asyncio.run(make(False))
    asyncio.run(make(True))


# --- the watcher -----------------------------------------------------------------------------


def test_watcher_follows_and_tells(start: Start, watch: Watch) -> None:
    server = start()
    epochs: list[int] = []
    watcher = watch(server.endpoint, on_map=lambda m: epochs.append(m.version.epoch))
    assert watcher.wait_for_map(0.01) is None
    server.publish(make_map(1))
    route = watcher.wait_for_map(WAIT_S)
    assert route is not None
    assert route.shard_map == make_map(1)
    server.publish(make_map(2))
    assert watcher.wait_for_epoch(2, WAIT_S)
    wait_until(lambda: epochs == [1, 2])
    wait_until(lambda: not watcher.cache.stale(SystemClock().monotonic_ns()))
    assert watcher.learn(OwnerHint(0, 1, 3, "127.0.0.1", 7071, b"\x01" * 16))
    assert watcher.route is not None
    assert watcher.route.owner_index(0) == 1


def test_watcher_keeps_its_map_and_attaches_again(start: Start, watch: Watch) -> None:
    server = start()
    server.publish(make_map(1))
    port = server.server.port
    watcher = watch(server.endpoint)
    assert watcher.wait_for_map(WAIT_S) is not None
    server.stop()
    wait_until(lambda: watcher.statistics().failures >= 2)
    assert watcher.statistics().go_aways == 1
    assert watcher.route is not None
    again = start(port=port)
    again.publish(make_map(2))
    assert watcher.wait_for_epoch(2, WAIT_S)
    assert watcher.statistics().connected


def test_watcher_goes_to_another_replica(start: Start, watch: Watch) -> None:
    server = start()
    server.publish(make_map(1))
    watcher = watch("127.0.0.1:1", server.endpoint)
    assert watcher.wait_for_map(WAIT_S) is not None


def test_watcher_starts_with_the_kept_map_without_a_server(watch: Watch) -> None:
    told: Future[ShardMap] = Future()
    watcher = watch("127.0.0.1:1", kept=make_map(7), on_map=told.set_result)
    assert told.result(WAIT_S) == make_map(7)
    assert watcher.route is not None
    wait_until(lambda: watcher.statistics().failures >= 1)
    assert "UNAVAILABLE" in watcher.statistics().last_error


def test_watcher_resolves_two_maps_of_one_version(start: Start, watch: Watch) -> None:
    server = start()
    server.publish(make_map(5))
    watcher = watch(server.endpoint)
    assert watcher.wait_for_map(WAIT_S) is not None
    other = make_map(5, owners=(1, 1))
    server.publish(other)
    wait_until(lambda: watcher.cache.shard_map == other)
    assert watcher.cache.statistics().divergences >= 1


def test_watcher_ignores_a_map_that_lies(start: Start, watch: Watch) -> None:
    server = start()
    server.publish(make_map(5))
    watcher = watch(server.endpoint)
    assert watcher.wait_for_map(WAIT_S) is not None
    server.publish(make_map(6, owners=(0, 9)))
    wait_until(lambda: watcher.cache.statistics().unusable >= 1)
    assert watcher.cache.shard_map == make_map(5)
    server.publish(make_map(7))
    assert watcher.wait_for_epoch(7, WAIT_S)


def test_watcher_takes_a_new_lineage_from_this_machine(start: Start, watch: Watch) -> None:
    server = start()
    server.publish(make_map(5))
    watcher = watch(server.endpoint)
    assert watcher.wait_for_map(WAIT_S) is not None
    stranger = make_map(1, lineage=b"M" * 16)
    server.publish(stranger)
    wait_until(lambda: watcher.cache.shard_map == stranger)


def test_silent_stream_is_broken_and_opened_again(watch: Watch) -> None:
    """A server that sends one bookmark and then hangs, as a stopped process does."""
    hanging, opened = threading.Event(), []

    class Hanging(pb_grpc.MetadataServiceServicer):
        def GetShardMap(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's
            raise NotImplementedError

        def GetTicket(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's
            raise NotImplementedError

        def DropTenant(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's
            raise NotImplementedError

        def WatchShardMap(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  gRPC's
            opened.append(request)
            yield pb.WatchShardMapResponse(bookmark=pb.Bookmark(interval_ms=10))
            hanging.wait(WAIT_S)

    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        pb_grpc.add_MetadataServiceServicer_to_server(Hanging(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        watch(f"127.0.0.1:{port}")
        wait_until(lambda: len(opened) >= 2)
        hanging.set()
        server.stop(0).wait(WAIT_S)


def test_first_tries_to_connect_are_short_and_later_ones_have_time() -> None:
    tries = [connect_ms(failures) for failures in range(6)]
    assert tries == [250, 500, 1000, 2000, 2000, 2000]
    assert sum(tries[:3]) < MAP_BOOTSTRAP_TIMEOUT_MS  # a client's start has time for three
    assert dict(channel_options(None, tries[0]))[CONNECT_OPTION] == 250
    assert connect_ms(10_000) == 2000


def test_keepalive_pings_of_clients_are_welcome(start: Start) -> None:
    """A ping every 10 s is the fastest that the server takes; clients ping every 20 s."""
    options = dict(CLIENT_OPTIONS)
    assert int(options["grpc.keepalive_time_ms"]) >= 10_000
    server = start()
    with open_channel(server.endpoint, None) as channel:
        events = stream(channel)
        assert [next(events).WhichOneof("payload") for _ in range(5)] == ["bookmark"] * 5
