"""Lanes that end while nobody uses them, and what serves small payloads until they are back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memkv._hotpath import address_of
from memkv.client.session import Lanes
from memkv.client.sync import Client
from memkv.node.connection import Connection
from memkv.shardmap.map import ShardMap
from memkv.status import Status
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.proxy import FaultProxy, faithful
from memkv.testing.waiting import eventually

WAIT_S = 60
SMALL = b"s" * 1000


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path, 1) as pool:
        yield pool


@pytest.fixture
def proxy(pool: LocalWorkers) -> Iterator[FaultProxy]:
    proxy = FaultProxy(("127.0.0.1", pool.workers[0].server.port))
    yield proxy
    proxy.close()


@pytest.fixture
def client(pool: LocalWorkers, proxy: FaultProxy) -> Iterator[Client]:
    truth = pool.map()
    workers = tuple(replace(worker, port=proxy.port) for worker in truth.workers)
    client, _ = pool.client(ShardMap(truth.version, truth.slots, workers, truth.owners))
    assert client.wait_ready(WAIT_S * 1000)
    yield client
    client.close()


def lanes_at_node(pool: LocalWorkers) -> list[Connection]:
    return [
        connection
        for connection in list(pool.workers[0].server._connections.values())
        if connection.lane is not None
    ]


def lanes_of(client: Client) -> Lanes:
    lanes = client.attachment.core.sessions()[0].lanes_or_status()
    assert isinstance(lanes, Lanes)
    return lanes


def no_new_connection(sent: int, piece: bytearray) -> bool:
    """Swallow the first answer of a connection and end it; those that had one go on."""
    if sent > 0:
        return True
    piece.clear()
    return False


def lose_express_lanes(pool: LocalWorkers, proxy: FaultProxy, client: Client) -> Lanes:
    """Cut them, and let no connection come in their place."""
    lanes = lanes_of(client)
    proxy.fault = no_new_connection
    for connection in lanes_at_node(pool):
        if connection.lane is not None and connection.lane.express:
            connection.cut()
    eventually(lambda: lanes.express.lanes_open == 0, "the loss of the express lanes")
    assert lanes.bulk.lanes_open > 0
    return lanes


def test_idle_lanes_come_back_without_a_call(pool: LocalWorkers, client: Client) -> None:
    """The keeper looks at idle lanes: no call pays for finding out that a lane is gone."""
    options = client.attachment.core.options
    wanted = options.bulk_lanes + options.express_lanes
    eventually(lambda: len(lanes_at_node(pool)) == wanted, "all lanes")
    before = lanes_at_node(pool)
    for connection in before:
        connection.cut()
    eventually(
        lambda: len(lanes_at_node(pool)) == wanted and not {*lanes_at_node(pool)} & {*before},
        "new lanes in the place of those that were cut",
    )
    assert client.stats().puts == client.stats().gets == 0
    eventually(lambda: client.put("after", SMALL) == Status.OK, "a put on new lanes")


def test_bulk_lanes_serve_small_payloads_while_the_express_lane_is_away(
    pool: LocalWorkers, proxy: FaultProxy, client: Client
) -> None:
    assert client.put("before", SMALL) == Status.OK
    lanes = lose_express_lanes(pool, proxy, client)
    for n in range(8):  # more than the failures that open a breaker
        assert client.put(f"small-{n}", SMALL) == Status.OK
        assert client.get(f"small-{n}") == SMALL
    target = bytearray(len(SMALL))  # a get into memory of a small block takes the short way
    address = address_of(target)
    assert client.batch_get_into(["before"], [address], [len(target)]) == [len(SMALL)]
    assert target == SMALL
    assert client.get("absent") is None
    assert client.batch_is_exist(["before", "absent"]) == [1, 0]
    assert lanes.express.lanes_open == 0, "the express lane was away all the time"
    proxy.fault = faithful
    eventually(lambda: lanes_of(client).express.lanes_open > 0, "the express lane's return")
    assert client.get("small-0") == SMALL
