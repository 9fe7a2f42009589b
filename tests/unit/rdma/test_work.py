"""Transfers of a node: posting, awaiting, and giving up with the queue pair closed."""

import socket
from collections.abc import Iterator

import pytest

from memkv.clock import SystemClock
from memkv.rdma.regions import Piece
from memkv.rdma.verbs import VerbsError
from memkv.rdma.work import Broken, Transfers
from memkv.testing.fake_verbs import FakeFabric
from memkv.testing.verbs_ends import Ends

CLOCK = SystemClock()
SIZE = 64 << 10


def after_ms(ms: int) -> int:
    return CLOCK.monotonic_ns() + ms * 1_000_000


@pytest.fixture
def peer() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for one in pair:
        one.close()


@pytest.fixture
def work(
    ends: Ends, peer: tuple[socket.socket, socket.socket]
) -> Iterator[Transfers[str]]:
    server = ends.server
    work = Transfers[str](
        server.queue_pair, server.region.local_key, peer[0].fileno(), CLOCK, depth=4
    )
    yield work
    work.close()


def pieces(ends: Ends, count: int, size: int = SIZE) -> list[Piece]:
    client = ends.client
    return [
        Piece(client.address + n * size, client.region.remote_key, size) for n in range(count)
    ]


def test_more_pieces_than_the_depth_arrive_in_order(ends: Ends, work: Transfers[str]) -> None:
    work.write("a", ends.server.address, pieces(ends, 8, 1024), after_ms(5_000))
    work.write("b", ends.server.address, pieces(ends, 7, 1024), after_ms(5_000))
    assert len(work) == 2
    found: list[str] = []
    while len(work):
        found += work.completed(after_ms(5_000), wait=True)
    assert found == ["a", "b"]
    assert ends.client.memory.bytes[: 8 * 1024] == ends.server.memory.bytes[: 8 * 1024]
    assert work.completed(after_ms(5_000), wait=True) == []


def test_reads_come_the_other_way(ends: Ends, work: Transfers[str]) -> None:
    ends.client.memory.fill(b"client-1")
    work.read("r", ends.server.address, pieces(ends, 2), after_ms(5_000))
    assert work.completed(after_ms(5_000), wait=True) == ["r"]
    assert ends.server.memory.bytes[: 2 * SIZE] == ends.client.memory.bytes[: 2 * SIZE]


def test_the_deadline_closes_the_queue_pair(
    fabric: FakeFabric, ends: Ends, work: Transfers[str]
) -> None:
    fabric.hold()
    work.write("a", ends.server.address, pieces(ends, 1), after_ms(30))
    with pytest.raises(Broken, match="in time"):
        work.completed(after_ms(30), wait=True)
    assert work.is_closed
    assert work.number not in fabric.queue_pairs


def test_the_end_of_the_peer_is_noticed_at_once(
    fabric: FakeFabric, ends: Ends, work: Transfers[str],
    peer: tuple[socket.socket, socket.socket],
) -> None:  # fmt: skip
    fabric.hold()
    work.write("a", ends.server.address, pieces(ends, 1), after_ms(60_000))
    peer[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(Broken, match="gone"):
        work.completed(after_ms(60_000), wait=True)
    assert work.is_closed


def test_a_refused_access_breaks(ends: Ends, work: Transfers[str]) -> None:
    wrong = [piece._replace(key=piece.key ^ 1) for piece in pieces(ends, 1)]
    work.write("a", ends.server.address, wrong, after_ms(5_000))
    with pytest.raises(Broken, match="remote access"):
        work.completed(after_ms(5_000), wait=True)


def test_what_cannot_be_posted_breaks(ends: Ends, work: Transfers[str]) -> None:
    ends.server.queue_pair.close()
    with pytest.raises((Broken, VerbsError)):
        work.write("a", ends.server.address, pieces(ends, 1), after_ms(5_000))


def test_a_close_that_is_refused_is_tried_until_nothing_is_in_flight(
    fabric: FakeFabric, ends: Ends, work: Transfers[str]
) -> None:
    fabric.hold()
    work.write("a", ends.server.address, pieces(ends, 1), after_ms(5_000))
    fabric.knobs.refuse_closes["server0"] = 5
    work.close()
    assert fabric.knobs.refuse_closes["server0"] == 0
    assert work.number not in fabric.queue_pairs


def test_a_close_without_anything_in_flight_is_left_to_the_device(
    fabric: FakeFabric, work: Transfers[str]
) -> None:
    fabric.knobs.refuse_closes["server0"] = 5
    work.close()
    assert work.is_closed
    assert fabric.knobs.refuse_closes.pop("server0") == 4


