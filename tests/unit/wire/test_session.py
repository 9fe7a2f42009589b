"""Sessions of both sides: every state with every operation, tokens, lanes, credits."""

from collections.abc import Callable
from itertools import count, product

import pytest

from memkv import limits
from memkv.status import Status
from memkv.wire.client_session import (
    ClientSession,
    NoLaneTokens,
    Outstanding,
    SessionRefused,
)
from memkv.wire.errors import OutOfState, UnexpectedResponse, VersionSkew
from memkv.wire.frame import Frame, FrameHeader, FrameReader, encode_error, encode_frame
from memkv.wire.messages import HelloRequest, HelloResponse, LaneHello
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.session import (
    EVENT_OF_OPCODE,
    TRANSITIONS,
    ConnectionState,
    Credits,
    Event,
    ServerConnection,
    Session,
    SessionTable,
    choose_protocol,
)
from memkv.wire.ticket import Rights, Ticket, anonymous_ticket

TICKET = anonymous_ticket("pool", "tenant", 1000)


def header(opcode: int, flags: int = 0, *, item_count: int = 0, request_id: int = 1) -> FrameHeader:
    return FrameHeader(opcode, flags, request_id, 0, item_count, 0, 0, 0, 0, 0, 0)


def counting_bytes() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda length: next(numbers).to_bytes(length, "big")


def opened(table: SessionTable, ticket: Ticket = TICKET) -> Session:
    session = table.open(ticket)
    assert isinstance(session, Session)
    return session


ALLOWED = {
    ConnectionState.CONTROL_OPEN: {
        Opcode.HELLO, Opcode.EXISTS, Opcode.DELETE, Opcode.PIN, Opcode.STAT, Opcode.LIST,
        Opcode.GOODBYE, Opcode.PREFETCH, Opcode.WHY, Opcode.EVENTS,
    },
    ConnectionState.LANE_OPEN: {
        Opcode.GET, Opcode.GET_RANGES, Opcode.PUT, Opcode.PULL, Opcode.GOODBYE,
        Opcode.RDMA_CONNECT, Opcode.RDMA_REGISTER, Opcode.RDMA_UNREGISTER, Opcode.RDMA_GET,
        Opcode.RDMA_PUT,
    },
    ConnectionState.NEW: {Opcode.HELLO},
    ConnectionState.LOCAL_OPEN: {
        Opcode.GET, Opcode.GET_RANGES, Opcode.PUT, Opcode.PULL, Opcode.GOODBYE, Opcode.REGISTER,
        Opcode.UNREGISTER, Opcode.LOCAL_GET, Opcode.LOCAL_PUT,
    },
}  # fmt: skip


@pytest.mark.parametrize(("state", "opcode"), list(product(ConnectionState, Opcode)))
def test_each_state_allows_exactly_its_operations(state: ConnectionState, opcode: Opcode) -> None:
    connection = ServerConnection()
    connection.state = state
    if opcode in ALLOWED.get(state, set()):
        connection.received(header(opcode))
    else:
        with pytest.raises(OutOfState, match="fix the client"):
            connection.received(header(opcode))


def test_a_lane_hello_never_opens_a_control_connection() -> None:
    connection = ServerConnection()
    assert connection.received(header(Opcode.HELLO, Flag.LANE)) is Event.LANE_HELLO
    connection.decided(Event.ACCEPTED)
    assert connection.state is ConnectionState.LANE_OPEN
    with pytest.raises(OutOfState):
        connection.received(header(Opcode.HELLO, Flag.LANE))


def test_every_state_can_end_and_nothing_leaves_closing() -> None:
    for state in ConnectionState:
        assert TRANSITIONS[state, Event.ENDED] is ConnectionState.CLOSING
    leaving = [target for (state, _), target in TRANSITIONS.items() if state.value == "closing"]
    assert leaving == [ConnectionState.CLOSING]


def test_every_state_is_reached_from_new() -> None:
    reached = {ConnectionState.NEW, ConnectionState.LOCAL_NEW}
    for _ in ConnectionState:
        reached |= {target for (state, _), target in TRANSITIONS.items() if state in reached}
    assert reached == set(ConnectionState)
    assert set(EVENT_OF_OPCODE.values()) < set(Event)


def test_token_binds_one_lane_once() -> None:
    table = SessionTable(counting_bytes())
    session = opened(table)
    hello = LaneHello(session.uuid, session.tokens[0])
    assert table.bind_lane(hello) is session
    assert table.bind_lane(hello) is Status.DENIED
    assert session.lanes == 1


def test_token_of_another_session_binds_nothing() -> None:
    table = SessionTable(counting_bytes())
    mine, other = opened(table), opened(table)
    assert table.bind_lane(LaneHello(mine.uuid, other.tokens[0])) is Status.DENIED
    assert table.bind_lane(LaneHello(b"x" * 16, mine.tokens[0])) is Status.DENIED


def test_closed_session_binds_no_lane_and_frees_its_place() -> None:
    table = SessionTable(counting_bytes(), sessions_max=1)
    session = opened(table)
    token = session.tokens[0]
    assert table.open(TICKET) is Status.BUSY
    table.close(session)
    assert table.bind_lane(LaneHello(session.uuid, token)) is Status.DENIED
    assert table.renew(session, TICKET) is Status.CLOSED
    assert isinstance(table.open(TICKET), Session)


def test_lanes_are_limited_until_one_ends() -> None:
    table = SessionTable(counting_bytes())
    session = opened(table)
    for _ in range(limits.LANES_PER_SESSION_MAX):
        assert table.bind_lane(LaneHello(session.uuid, session.tokens[0])) is session
    assert table.renew(session, TICKET) is Status.OK
    assert table.bind_lane(LaneHello(session.uuid, session.tokens[0])) is Status.BUSY
    table.lane_ended(session)
    assert table.bind_lane(LaneHello(session.uuid, session.tokens[0])) is session


def test_renewal_gives_fresh_tokens_and_voids_the_old() -> None:
    table = SessionTable(counting_bytes())
    session = opened(table)
    old = session.tokens[0]
    newer = anonymous_ticket("pool", "tenant", 2000, rights=Rights.GET)
    assert table.renew(session, newer) is Status.OK
    assert table.bind_lane(LaneHello(session.uuid, old)) is Status.DENIED
    assert not session.allows(Opcode.PUT)
    assert session.allows(Opcode.GET)


@pytest.mark.parametrize(("pool", "tenant"), [("other", "tenant"), ("pool", "other")])
def test_a_session_never_changes_whose_it_is(pool: str, tenant: str) -> None:
    table = SessionTable(counting_bytes())
    session = opened(table)
    assert table.renew(session, anonymous_ticket(pool, tenant, 1)) is Status.DENIED
    assert session.ticket is TICKET


def test_rights_cover_each_operation() -> None:
    session = Session(b"", anonymous_ticket("p", "t", 1, rights=Rights.NONE))
    allowed = {opcode for opcode in set(Opcode) - {1, 9} if session.allows(opcode)}
    assert allowed == {  # they serve nothing
        Opcode.STAT, Opcode.REGISTER, Opcode.UNREGISTER, Opcode.RDMA_CONNECT,
        Opcode.RDMA_REGISTER, Opcode.RDMA_UNREGISTER,
    }  # fmt: skip


def test_credits_bound_what_is_outstanding_but_never_starve_one_large_request() -> None:
    credits = Credits(100)
    assert credits.take(500)
    assert not credits.take(1)
    credits.give_back(500)
    assert credits.take(60)
    assert credits.take(40)
    assert not credits.take(1)


@pytest.mark.parametrize(("low", "high"), [(3, 9), (0, 0)])
def test_no_common_protocol_is_version_skew(low: int, high: int) -> None:
    hello = HelloRequest(bytes(16), "p", b"", protocol_min=low, protocol_max=high)
    with pytest.raises(VersionSkew, match="upgrade"):
        choose_protocol(hello)


@pytest.mark.parametrize(("high", "chosen"), [(1, 1), (2, 2), (9, 2)])
def test_older_and_newer_clients_are_served(high: int, chosen: int) -> None:
    assert choose_protocol(HelloRequest(bytes(16), "p", b"", protocol_max=high)) == chosen


# --- the client's side ------------------------------------------------------------------------
def client() -> ClientSession:
    return ClientSession(HelloRequest(bytes(16), "pool", TICKET.encode()))


def granted(session_uuid: bytes = b"s" * 16, protocol: int = 1) -> HelloResponse:
    return HelloResponse(
        protocol, b"w" * 16, 1, session_uuid, 1, 1, 1 << 20, 1, bytes(16), 0, 0, (b"t" * 32,)
    )


def response(data: bytes) -> Frame:
    [frame] = FrameReader(responses=True).feed(data)
    assert isinstance(frame, Frame)
    return frame


def hello_response(request_id: int, body: HelloResponse) -> Frame:
    return response(
        encode_frame(Opcode.HELLO, Flag.RESPONSE | Flag.LAST, request_id, body.encode())
    )


def test_client_opens_and_uses_its_token_once() -> None:
    session = client()
    session.encode_hello()
    session.hello_answered(*hello_response(1, granted()))
    assert session.credits.window_bytes == 1 << 20
    frame = FrameReader(responses=False).feed(session.encode_lane_hello(express=True))[0]
    assert isinstance(frame, Frame)
    assert frame.header.flags == Flag.LANE | Flag.EXPRESS
    assert LaneHello.decode(frame.body) == LaneHello(b"s" * 16, b"t" * 32)
    with pytest.raises(NoLaneTokens, match="renew"):
        session.encode_lane_hello(express=False)


def test_client_learns_why_it_was_refused() -> None:
    session = client()
    session.encode_hello()
    with pytest.raises(SessionRefused, match="expired") as caught:
        session.hello_answered(*response(encode_error(Opcode.HELLO, 1, Status.DENIED, "expired")))
    assert caught.value.status is Status.DENIED


def test_client_refuses_a_protocol_it_did_not_offer() -> None:
    session = client()
    session.encode_hello()
    with pytest.raises(VersionSkew):
        session.hello_answered(*hello_response(1, granted(protocol=3)))


def test_client_refuses_a_renewal_that_changes_the_session() -> None:
    session = client()
    session.encode_hello()
    session.hello_answered(*hello_response(1, granted()))
    session.encode_hello()
    with pytest.raises(UnexpectedResponse):
        session.hello_answered(*hello_response(2, granted(b"other session..!")))


def test_responses_must_answer_what_is_outstanding() -> None:
    outstanding = Outstanding()
    request_id = outstanding.send(Opcode.GET, 2)
    one = header(Opcode.GET, 1, item_count=1, request_id=request_id)
    last = header(Opcode.GET, 3, item_count=1, request_id=request_id)
    assert not outstanding.received(one)
    assert outstanding.received(last)
    with pytest.raises(UnexpectedResponse, match="not outstanding"):
        outstanding.received(last)


def test_responses_with_more_items_than_asked_or_another_opcode_are_refused() -> None:
    outstanding = Outstanding()
    request_id = outstanding.send(Opcode.GET, 1)
    with pytest.raises(UnexpectedResponse, match="more items"):
        outstanding.received(header(Opcode.GET, 1, item_count=2, request_id=request_id))
    with pytest.raises(UnexpectedResponse, match="opcode"):
        outstanding.received(header(Opcode.PUT, 1, item_count=1, request_id=request_id))
