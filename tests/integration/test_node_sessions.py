"""Opening, renewing and ending sessions against a worker's server."""

from collections.abc import Iterator

import pytest

from memkv.status import Status
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import POOL, RunningWorker, running_worker
from memkv.testing.wire_client import Lane, RequestFailed, WireClient
from memkv.wire.client_session import ClientSession, SessionRefused
from memkv.wire.frame import encode_frame
from memkv.wire.messages import HelloRequest, LaneHello
from memkv.wire.opcodes import Flag, Opcode, Transport
from memkv.wire.ticket import anonymous_ticket


@pytest.fixture
def worker() -> Iterator[RunningWorker]:
    with running_worker(MemoryStore()) as running:
        yield running


@pytest.mark.parametrize(
    ("situation", "pool", "now_offset_s", "tenant", "hint"),
    [
        ("another pool's ticket", "other/pool", 0, "default", "check the endpoint"),
        ("an expired ticket", POOL, -13 * 3600, "default", "renew it"),
        ("a tenant name that is no name", POOL, 0, "UPPER CASE", "lower-case"),
    ],
)
def test_ticket_that_does_not_open_is_denied_with_the_reason(
    worker: RunningWorker, situation: str, pool: str, now_offset_s: int, tenant: str, hint: str
) -> None:
    ticket = anonymous_ticket(pool, tenant, worker.clock.wall_s() + now_offset_s).encode()
    session = ClientSession(HelloRequest(bytes(16), POOL, ticket))
    wire = worker.wire()
    wire.send(session.encode_hello())
    frame, _ = wire.receive()
    with pytest.raises(SessionRefused, match=hint) as caught:
        session.hello_answered(*frame)
    assert caught.value.status is Status.DENIED
    assert wire.is_closed_by_peer()


def test_no_common_protocol_names_both_ranges(worker: RunningWorker) -> None:
    wire = worker.wire()
    hello = HelloRequest(bytes(16), POOL, b"", protocol_min=7, protocol_max=9)
    wire.send(encode_frame(Opcode.HELLO, 0, 5, hello.encode()))
    with pytest.raises(RequestFailed, match="7 to 9, this node 1 to 2"):
        wire.answer()
    assert wire.is_closed_by_peer()


def test_more_sessions_than_allowed_are_busy_until_one_ends() -> None:
    with running_worker(MemoryStore(), sessions_max=2) as worker:
        first, _ = worker.client(), worker.client()
        for refused in range(1, 31):
            with pytest.raises(SessionRefused, match="another worker") as caught:
                worker.client()
            assert caught.value.status is Status.BUSY
            # Counted before it is said: once in a while the peer was quicker than the count.
            assert worker.server.statistics().events.refused_sessions == refused
        first.goodbye()
        assert first.control.is_closed_by_peer()
        assert worker.client().stat()["sessions"] == 2


def test_node_grants_what_both_sides_have(worker: RunningWorker) -> None:
    granted = worker.client().granted
    assert granted.transports == Transport.TCP
    assert granted.protocol == 2
    assert len(set(granted.lane_tokens)) == 8


def test_token_opens_one_lane(worker: RunningWorker) -> None:
    client = worker.client()
    hello = LaneHello(client.granted.session_uuid, client.granted.lane_tokens[0]).encode()
    frame = encode_frame(Opcode.HELLO, Flag.LANE, 1, hello)
    lane = worker.wire()
    lane.send(frame)
    lane.answer()
    second = worker.wire()
    second.send(frame)
    with pytest.raises(RequestFailed) as caught:
        second.answer()
    assert caught.value.status is Status.DENIED
    assert second.is_closed_by_peer()


def open_lanes(client: WireClient, count: int) -> list[Lane]:
    return [client.lane(express=bool(index % 2)) for index in range(count)]


def test_lost_lane_is_replaced_after_a_renewal(worker: RunningWorker) -> None:
    client = worker.client()
    lanes = open_lanes(client, 8)
    client.hello()
    with pytest.raises(RequestFailed) as caught:
        client.lane()
    assert caught.value.status is Status.BUSY
    lanes[0].send(encode_frame(Opcode.GOODBYE, 0, 1))
    lanes[0].answer()
    assert lanes[0].is_closed_by_peer()
    assert client.lane().get(bytes(32))[0].status is Status.MISS


def test_lanes_end_with_the_session(worker: RunningWorker) -> None:
    client = worker.client()
    lanes = open_lanes(client, 4)
    client.control.close()
    assert all(lane.is_closed_by_peer() for lane in lanes)


def test_renewal_with_another_tenants_ticket_is_denied_and_the_session_goes_on(
    worker: RunningWorker,
) -> None:
    client = worker.client("tenant-a")
    ticket = anonymous_ticket(POOL, "tenant-b", worker.clock.wall_s()).encode()
    hello = HelloRequest(bytes(16), POOL, ticket)
    client.control.send(encode_frame(Opcode.HELLO, 0, 50, hello.encode()))
    with pytest.raises(RequestFailed, match="keeps its pool and tenant"):
        client.control.answer()
    assert client.exists(bytes(32)) == [0]


def test_stop_ends_every_connection() -> None:
    with running_worker(MemoryStore()) as worker:
        client = worker.client()
        lanes = open_lanes(client, 4)
        stranger = worker.wire()
        worker.server.stop()
        for wire in [client.control, stranger, *lanes]:
            assert wire.is_closed_by_peer()
