"""Bodies of the control operations: round trips, limits, garbage."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv import limits
from memkv.status import Status
from memkv.wire.errors import MalformedBody, Oversized, WireError
from memkv.wire.frame import FrameHeader
from memkv.wire.hints import Hint
from memkv.wire.messages import (
    HelloRequest,
    HelloResponse,
    LaneHello,
    ListEntry,
    ListKind,
    ListPage,
    ListRequest,
    decode_keys,
    decode_statuses,
    encode_keys,
    encode_statuses,
    error_text,
    pack_statuses,
    status_of,
    unpack_statuses,
)
from memkv.wire.opcodes import Flag, Opcode

UUIDS = st.binary(min_size=16, max_size=16)
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
I32 = st.integers(-(2**31), 2**31 - 1)


def response_header(count: int, flags: int) -> FrameHeader:
    return FrameHeader(Opcode.EXISTS, flags, 1, 0, count, 0, 0, 0, 0, 0, 0)


@given(
    st.builds(
        HelloRequest,
        client_uuid=UUIDS,
        pool=st.text(max_size=80),
        ticket=st.binary(max_size=200),
        lineage=UUIDS,
        transports=U32,
        protocol_min=U16,
        protocol_max=U16,
    )
)
def test_hello_round_trip(hello: HelloRequest) -> None:
    assert HelloRequest.decode(hello.encode()) == hello


@given(
    st.builds(
        HelloResponse,
        protocol=U16,
        worker_uuid=UUIDS,
        incarnation=U64,
        session_uuid=UUIDS,
        block_length_max=U64,
        items_max=U32,
        credit_bytes=U64,
        transports=U32,
        lineage=UUIDS,
        map_term=U32,
        map_epoch=U64,
        lane_tokens=st.lists(st.binary(min_size=32, max_size=32), max_size=8).map(tuple),
    )
)
def test_hello_response_round_trip(response: HelloResponse) -> None:
    assert HelloResponse.decode(response.encode()) == response


def test_lane_hello_round_trip() -> None:
    hello = LaneHello(b"s" * 16, b"t" * 32)
    assert LaneHello.decode(hello.encode()) == hello


@given(argument=U32, count=st.integers(1, 50))
def test_keys_round_trip_as_one_object(argument: int, count: int) -> None:
    ids = bytes(range(32)) * count
    assert decode_keys(encode_keys(argument, ids), count) == (argument, ids)


@given(st.lists(I32, min_size=1, max_size=50), st.booleans())
def test_statuses_round_trip(values: list[int], elsewhere: bool) -> None:
    hints = [Hint(0, 5, 6, 7, b"w" * 16, "host", 80)] if elsewhere else []
    body = encode_statuses(pack_statuses(values), hints)
    header = response_header(len(values), Flag.HINTS if elsewhere else 0)
    statuses = decode_statuses(header, body)
    assert list(unpack_statuses(statuses.values)) == values
    assert statuses.hints == hints


def test_hint_for_no_item_is_refused() -> None:
    body = encode_statuses(pack_statuses([0]), [Hint(1, 5, 6, 7, b"w" * 16, "host", 80)])
    with pytest.raises(MalformedBody, match="names no item"):
        decode_statuses(response_header(1, Flag.HINTS), body)


@given(
    st.builds(
        ListRequest,
        slot=U16,
        kind=st.sampled_from([0, 1]),
        cursor=U64,
        limit=st.integers(1, limits.ITEMS_PER_FRAME_MAX),
    )
)
def test_list_request_round_trip(request: ListRequest) -> None:
    assert ListRequest.decode(request.encode()) == request


@pytest.mark.parametrize("change", [{"slot": limits.SLOTS_MAX}, {"limit": 0}, {"limit": 1025}])
def test_list_out_of_range_is_refused(change: dict[str, int]) -> None:
    fields = {"slot": 1, **change}
    with pytest.raises(Oversized, match="LIST"):
        ListRequest.decode(ListRequest(**fields).encode())


@given(
    next_cursor=U64,
    complete=st.booleans(),
    entries=st.lists(
        st.builds(ListEntry, st.binary(min_size=32, max_size=32), UUIDS, U64, U64, U32, U32),
        max_size=8,
    ),
)
def test_list_page_round_trip(next_cursor: int, entries: list[ListEntry], complete: bool) -> None:
    page = ListPage(ListKind.TOMBSTONES, next_cursor, tuple(entries), complete)
    assert ListPage.decode(page.encode(), len(entries)) == page


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (0, Status.OK),
        (1, Status.OK),
        (-1, Status.MISS),
        (-16, Status.QUOTA),
        (-999, Status.INTERNAL),
    ],
)
def test_unknown_statuses_of_later_versions_mean_not_served(value: int, status: Status) -> None:
    assert status_of(value) is status


@given(st.binary(max_size=600), st.integers(0, 1100), st.integers(0, 63))
def test_garbage_bodies_are_typed_errors_or_values(body: bytes, count: int, flags: int) -> None:
    for decode in (
        lambda: HelloRequest.decode(body),
        lambda: HelloResponse.decode(body),
        lambda: LaneHello.decode(body),
        lambda: decode_keys(body, count),
        lambda: decode_statuses(response_header(count, flags), body),
        lambda: ListRequest.decode(body),
        lambda: ListPage.decode(body, count),
        lambda: error_text(body),
    ):
        with suppress(WireError):
            decode()
