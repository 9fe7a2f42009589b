"""Watching blocks: real workers, the client's watcher, a router's directory and the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from memkv.client.block_directory import BlockDirectory
from memkv.client.block_watch import BlockUpdate, BlockWatch, Change
from memkv.client.options import PutOptions
from memkv.client.sync import Client
from memkv.errors import ConfigError
from memkv.integrations.block_service import BlockServer, BlockServicer
from memkv.integrations.hints import hints_of
from memkv.keys import block_id
from memkv.limits import MIB
from memkv.metadata.certificates import ClientTls, TlsFiles, client_tls
from memkv.metadata.endpoint import open_channel
from memkv.shardmap.map import Move
from memkv.status import Status
from memkv.store import feeds
from memkv.testing.certificates import Authority
from memkv.testing.local_workers import POOL, SLOTS, LocalWorkers, local_workers
from memkv.wire import session as wire_session
from memkv.wire.events import Event
from memkv_proto import block_events_pb2 as pb
from memkv_proto import block_events_pb2_grpc as pb_grpc

WAIT_S = 30
NAMES = [f"prompt-{number}" for number in range(20)]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path, 2, capacity_bytes=64 * MIB, memory_bytes=32 * MIB) as running:
        yield running


def connected(pool: LocalWorkers, tenant: str = "default") -> Client:
    client, _ = pool.client(pool.map(), tenant=tenant)
    assert client.wait_ready(WAIT_S * 1000)
    return client


class Router:
    """A watcher and what it makes of it."""

    def __init__(self, client: Client) -> None:
        self.watch: BlockWatch = client.watch_blocks()
        self.directory = BlockDirectory()
        self.updates: list[BlockUpdate] = []

    def catch_up(self) -> list[BlockUpdate]:
        """Ask until nothing is new; return what was."""
        news: list[BlockUpdate] = []
        while updates := self.watch.poll():
            news += updates
            self.directory.apply(updates)
        return news

    def scores(self, names: list[str]) -> dict[str, int]:
        return self.directory.scores(self.watch.digests(names))


def test_a_router_scores_nodes_as_the_pool_itself_would(pool: LocalWorkers) -> None:
    client = connected(pool)
    for name in NAMES[:10]:
        assert client.put(name, bytes(100)) == Status.OK
    router = Router(client)
    first = router.catch_up()
    assert [update.change for update in first].count(Change.SYNCED) == 2
    assert router.directory.synced == 2
    assert router.scores(NAMES) == client.match_prefix_by_node(NAMES)
    for name in NAMES[10:15]:
        client.put(name, bytes(100))
    client.remove(NAMES[12])
    later = router.catch_up()
    assert {update.change for update in later} == {Change.EVENTS}
    assert router.scores(NAMES) == client.match_prefix_by_node(NAMES)
    assert sum(router.scores(NAMES).values()) == 12
    assert router.directory.blocks == 14


def test_events_name_block_and_hints(pool: LocalWorkers) -> None:
    client = connected(pool)
    router = Router(client)
    router.catch_up()
    chain = [b"head", b"tail"]
    hints = hints_of(chain)
    for key, hint in zip(chain, hints, strict=True):
        client.put(key, bytes(10), PutOptions(hints=[hint]))
    events = [event for update in router.catch_up() for event in update.events]
    assert set(events) == {
        Event(block_id(key, b"default")[:16], hint.prefix_id, hint.depth, 0)
        for key, hint in zip(chain, hints, strict=True)
    }


def test_tenants_do_not_hear_of_each_other(pool: LocalWorkers) -> None:
    mine, theirs = connected(pool), connected(pool, "other")
    router = Router(theirs)
    router.catch_up()
    mine.put("secret", bytes(10))
    assert router.catch_up() == []
    assert router.directory.blocks == 0


def test_a_slow_reader_gets_a_gap_and_a_snapshot(
    pool: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "FEED_EVENTS_MAX", 4)
    client = connected(pool)
    router = Router(client)
    router.catch_up()
    for name in NAMES:
        client.put(name, bytes(10))
    news = router.catch_up()
    assert {update.change for update in news} == {Change.GAP, Change.EVENTS, Change.SYNCED}
    assert router.scores(NAMES) == client.match_prefix_by_node(NAMES)


def test_a_worker_that_stops_and_comes_back(pool: LocalWorkers) -> None:
    client = connected(pool)
    for name in NAMES:
        client.put(name, bytes(10))
    router = Router(client)
    router.catch_up()
    pool.workers[0].server.stop()
    news = router.catch_up()
    assert [(update.change, update.node_name) for update in news] == [(Change.GONE, "node-0")]
    assert news[0].reason
    assert router.directory.synced == 1
    assert router.catch_up() == []


def test_slots_that_move_away_are_a_gap(pool: LocalWorkers) -> None:
    client, source = pool.client(pool.map([0] * SLOTS))
    assert client.wait_ready(WAIT_S * 1000)
    for name in NAMES:
        client.put(name, bytes(10))
    router = Router(client)
    router.catch_up()
    source.publish(pool.map([1] * SLOTS, {slot: Move((0,), pool.epoch + 1) for slot in range(64)}))
    pool.workers[0].store.drop_slots(range(SLOTS))
    news = router.catch_up()
    assert {update.change for update in news if update.node_name == "node-0"} == {
        Change.GAP, Change.SYNCED
    }
    assert router.directory.blocks == 0


def test_an_older_node_tells_nothing_and_is_left_alone(
    pool: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_session, "PROTOCOL_MAX", 1)
    client = connected(pool)
    news = Router(client).catch_up()
    assert {update.change for update in news} == {Change.GONE}
    assert "older version" in news[0].reason
    events = [worker.server.statistics().events for worker in pool.workers]
    assert sum(event.protocol_errors for event in events) == 0


# --- the gateway ------------------------------------------------------------------------------
@pytest.fixture
def gateway(pool: LocalWorkers) -> Iterator[tuple[Client, BlockServer]]:
    client = connected(pool)
    server = BlockServer(BlockServicer(client, POOL, 5), "127.0.0.1", 0)
    yield client, server
    server.stop()


def test_routers_of_any_language_are_told_by_grpc(gateway: tuple[Client, BlockServer]) -> None:
    client, server = gateway
    client.put("before", bytes(10))
    with grpc.insecure_channel(server.endpoint) as channel:
        stream: Any = pb_grpc.BlockEventsServiceStub(channel).WatchBlocks(
            pb.WatchBlocksRequest(pool=POOL), timeout=WAIT_S
        )
        held: set[bytes] = set()
        salts, synced = [], 0
        for response in stream:
            salts.append(response.tenant_salt)
            synced += response.change == pb.BLOCK_CHANGE_SYNCED
            for event in response.events:
                (held.discard if event.removed else held.add)(event.digest)
            if synced == 2:
                break
        assert salts == [b"default", *[b""] * (len(salts) - 1)]
        assert held == {block_id("before", salts[0])[:16]}
        client.put("after", bytes(10))
        client.remove("before")
        while held != {block_id("after", salts[0])[:16]}:
            for event in next(stream).events:
                (held.discard if event.removed else held.add)(event.digest)


def test_another_pool_is_refused(gateway: tuple[Client, BlockServer]) -> None:
    _, server = gateway
    with grpc.insecure_channel(server.endpoint) as channel:
        stub: Any = pb_grpc.BlockEventsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            next(stub.WatchBlocks(pb.WatchBlocksRequest(pool="default/no"), timeout=WAIT_S))
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_stopping_gateway_ends_its_streams(gateway: tuple[Client, BlockServer]) -> None:
    _, server = gateway
    with grpc.insecure_channel(server.endpoint) as channel:
        stream: Any = pb_grpc.BlockEventsServiceStub(channel).WatchBlocks(
            pb.WatchBlocksRequest(), timeout=WAIT_S
        )
        next(stream)
        server.stop()
        with pytest.raises(grpc.RpcError):
            for _ in stream:
                pass


# --- the gateway under TLS --------------------------------------------------------------------
@pytest.fixture
def secure_gateway(pool: LocalWorkers, tmp_path: Path) -> Iterator[tuple[TlsFiles, BlockServer]]:
    client = connected(pool)
    client.put("before", bytes(10))
    files = Authority().files(tmp_path, "gateway", "127.0.0.1")
    server = BlockServer(BlockServicer(client, POOL, 5), "127.0.0.1", 0, files)
    yield files, server
    server.stop()


def first_response(server: BlockServer, tls: ClientTls | None) -> pb.WatchBlocksResponse:
    with open_channel(server.endpoint, tls) as channel:
        stream: Any = pb_grpc.BlockEventsServiceStub(channel).WatchBlocks(
            pb.WatchBlocksRequest(pool=POOL), timeout=WAIT_S, wait_for_ready=False
        )
        response: pb.WatchBlocksResponse = next(stream)
        stream.cancel()
        return response


def test_a_gateway_under_tls_is_for_readers_with_a_certificate(
    secure_gateway: tuple[TlsFiles, BlockServer], tmp_path: Path
) -> None:
    files, server = secure_gateway
    strangers = Authority("a stranger").files(tmp_path, "stranger", "router")
    for tls in (
        None,
        ClientTls(files.authority),
        ClientTls(files.authority, strangers.certificate, strangers.key),
        ClientTls(strangers.authority, files.certificate, files.key),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            first_response(server, tls)
        assert isinstance(failure.value, grpc.Call)
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
    assert first_response(server, client_tls(files)).tenant_salt == b"default"


def test_a_gateway_takes_over_replaced_certificates(
    secure_gateway: tuple[TlsFiles, BlockServer], tmp_path: Path
) -> None:
    files, server = secure_gateway
    (tmp_path / "new").mkdir()
    fresh = Authority("another").files(tmp_path / "new", "gateway", "127.0.0.1")
    with pytest.raises(grpc.RpcError):
        first_response(server, client_tls(fresh))
    for old, new in (
        (files.authority, fresh.authority), (files.certificate, fresh.certificate),
        (files.key, fresh.key),
    ):
        new.replace(old)
    assert first_response(server, client_tls(files)).tenant_salt == b"default"


def test_a_gateway_with_unfit_certificates_does_not_start(pool: LocalWorkers, tmp_path: Path
                                                          ) -> None:
    files = Authority().files(tmp_path, "gateway", "127.0.0.1")
    files.key.unlink()
    with pytest.raises(ConfigError, match=r"gateway\.key"):
        BlockServer(BlockServicer(connected(pool), POOL, 5), "127.0.0.1", 0, files)
