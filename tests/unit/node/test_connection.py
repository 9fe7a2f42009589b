"""Sessions with their connections: threads of one session, the queue, what ends with what."""

import socket
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from memkv._hotpath import Stream
from memkv.node.connection import Connection, NodeSession, Sessions
from memkv.status import Status
from memkv.tenant import Tenant
from memkv.wire.messages import LaneHello
from memkv.wire.ticket import anonymous_ticket

TICKET = anonymous_ticket("pool", "tenant", 1)
TENANT = Tenant.named("tenant")


@pytest.fixture
def connect() -> Iterator[Callable[[], Connection]]:
    peers: list[socket.socket] = []

    def make() -> Connection:
        mine, peer = socket.socketpair()
        peers.append(peer)
        return Connection(Stream(mine.detach()))

    yield make
    for peer in peers:
        peer.close()


def sessions(threads_max: int = 2) -> Sessions:
    numbers = count(1)
    return Sessions(lambda size: next(numbers).to_bytes(size, "big"), 10, threads_max, 100)


def opened(table: Sessions, connection: Connection) -> NodeSession:
    session = table.open(TICKET, TENANT, connection)
    assert isinstance(session, NodeSession)
    connection.session = session
    return session


def bound(table: Sessions, session: NodeSession, lane: Connection) -> Connection:
    hello = LaneHello(session.session.uuid, session.session.tokens[0])
    assert table.bind_lane(hello, lane, express=False) is Status.OK
    return lane


def test_threads_of_a_session_are_limited_and_the_queue_goes_on(
    connect: Callable[[], Connection],
) -> None:
    session = opened(sessions(threads_max=2), connect())
    resumed: list[str] = []
    assert session.enter(lambda: resumed.append("a"))
    assert session.enter(lambda: resumed.append("b"))
    assert not session.enter(lambda: resumed.append("c"))
    assert not session.enter(lambda: resumed.append("d"))
    session.leave()
    assert resumed == ["c"]
    assert session.enter(lambda: resumed.append("c again"))
    session.leave()
    assert resumed == ["c", "d"]


def test_lanes_end_with_their_control_connection(connect: Callable[[], Connection]) -> None:
    table = sessions()
    control = connect()
    session = opened(table, control)
    first, second = (bound(table, session, connect()) for _ in range(2))
    assert table.counts() == (1, 2)
    assert table.ended(first) == []
    assert table.counts() == (1, 1)
    assert table.ended(control) == [second]
    assert table.counts() == (0, 0)
    assert table.ended(second) == []


def test_no_lane_binds_to_a_session_that_ended(connect: Callable[[], Connection]) -> None:
    table = sessions()
    control = connect()
    session = opened(table, control)
    hello = LaneHello(session.session.uuid, session.session.tokens[0])
    table.ended(control)
    assert table.bind_lane(hello, connect(), express=False) is Status.DENIED


def test_credit_is_the_sessions(connect: Callable[[], Connection]) -> None:
    session = opened(sessions(), connect())
    assert session.take_credit(60)
    assert not session.take_credit(60)
    session.give_credit(60)
    assert session.take_credit(60)
