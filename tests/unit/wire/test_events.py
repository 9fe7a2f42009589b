"""Bodies of EVENTS."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.limits import FEED_PAGE_MAX
from memkv.store.feeds import EVENT
from memkv.wire.errors import MalformedBody, Oversized, WireError
from memkv.wire.events import Event, EventsPage, EventsRequest, FeedFlag, FeedKind


@given(st.sampled_from(FeedKind), st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1),
       st.integers(1, FEED_PAGE_MAX))
def test_requests_come_back(kind: int, generation: int, cursor: int, limit: int) -> None:
    request = EventsRequest(kind, generation, cursor, limit)
    assert EventsRequest.decode(request.encode()) == request


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 3),
       st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_pages_come_back(generation: int, cursor: int, flags: int, events: list[bytes]) -> None:
    page = EventsPage(generation, cursor, flags, b"".join(events))
    assert EventsPage.decode(page.encode()) == page
    assert page.count == len(list(page.iterate())) == len(events)


def test_what_a_store_packs_is_what_the_wire_has() -> None:
    packed = EVENT.pack(b"d" * 16, b"prefix-1", 7, 1)
    (event,) = EventsPage(1, 2, FeedFlag.NONE, packed).iterate()
    assert event == Event(b"d" * 16, b"prefix-1", 7, 1)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ((2, 1, 0, 0), MalformedBody),
        ((0, 0, 0, 0), Oversized),
        ((0, FEED_PAGE_MAX + 1, 0, 0), Oversized),
        ((0, 1, 0, 1 << 63), Oversized),
    ],
    ids=["kind", "no limit", "limit", "cursor"],
)
def test_requests_that_make_no_sense_are_refused(
    fields: tuple[int, int, int, int], error: type[WireError]
) -> None:
    with pytest.raises(error):
        EventsRequest.decode(struct.pack("<IIQQ", *fields))


@given(st.binary(max_size=100))
def test_no_bytes_make_decoding_fail_otherwise(body: bytes) -> None:
    for decode in (EventsRequest.decode, EventsPage.decode):
        try:
            decode(body)
        except WireError:
            continue
