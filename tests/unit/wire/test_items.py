"""Bodies of the payload operations: round trips, contradictions, garbage."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv import limits
from memkv.wire.errors import MalformedBody, Oversized, Truncated, WireError
from memkv.wire.hints import Hint, decode_hints, encode_hints
from memkv.wire.items import (
    GetResult,
    PullResult,
    PutItem,
    RangesItem,
    decode_get_request,
    decode_get_result,
    decode_pull_request,
    decode_pull_result,
    decode_put_item,
    decode_ranges_request,
    encode_get_request,
    encode_get_result,
    encode_get_result_with_hint,
    encode_pull_request,
    encode_pull_result,
    encode_put_item,
    encode_ranges_request,
)

IDS = st.binary(min_size=32, max_size=32)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
BLOCK = limits.BLOCK_BYTES_MAX
HINTS = st.builds(
    Hint,
    index=U32,
    slot=U32,
    map_epoch=U64,
    map_term=U32,
    worker_uuid=st.binary(min_size=16, max_size=16),
    host=st.text(st.characters(min_codepoint=45, max_codepoint=122), max_size=255),
    port=st.integers(0, 65535),
)


@given(st.lists(st.tuples(IDS, U64), min_size=1, max_size=20))
def test_get_request_round_trip(items: list[tuple[bytes, int]]) -> None:
    ids = b"".join(item[0] for item in items)
    lengths = [item[1] for item in items]
    assert decode_get_request(encode_get_request(ids, lengths), len(items)) == (ids, lengths)


@given(
    index=U32,
    status=st.integers(-(2**31), 2**31 - 1),
    length=U64,
    root=st.binary(min_size=16, max_size=16),
    sums=st.integers(0, 256).map(lambda count: bytes(8 * count)),
    source=st.integers(0, 1),
)
def test_get_result_round_trip(
    index: int, status: int, length: int, root: bytes, sums: bytes, source: int
) -> None:
    body = encode_get_result(index, status, length, root, sums, source)
    expected = GetResult(index, status, length, root, sums, source)
    assert decode_get_result(body, hints=False) == expected


@given(HINTS)
def test_get_result_with_hint_round_trip(hint: Hint) -> None:
    result = decode_get_result(encode_get_result_with_hint(3, -9, hint), hints=True)
    assert (result.index, result.status, result.hint) == (3, -9, hint)


@given(st.lists(HINTS, max_size=5))
def test_hints_round_trip(hints: list[Hint]) -> None:
    assert decode_hints(encode_hints(hints)) == hints


RANGES = st.lists(
    st.tuples(st.integers(0, BLOCK - 1000), st.integers(1, 1000)), min_size=1, max_size=20
)


@given(st.lists(st.builds(RangesItem, IDS, RANGES.map(tuple)), min_size=1, max_size=6))
def test_ranges_request_round_trip(items: list[RangesItem]) -> None:
    assert decode_ranges_request(encode_ranges_request(items), len(items)) == items


@given(
    st.builds(
        PutItem,
        block_id=IDS,
        length=st.just(300_000),
        root=st.binary(min_size=16, max_size=16),
        sums=st.binary(min_size=16, max_size=16),
        prefix_id=st.binary(min_size=8, max_size=8),
        session_id=st.binary(min_size=8, max_size=8),
        ttl_s=U32,
        depth=U32,
        durability=st.integers(0, 2),
    )
)
def test_put_item_round_trip(item: PutItem) -> None:
    assert decode_put_item(encode_put_item(item), item.length) == item


PUT_BODY = encode_put_item(PutItem(bytes(32), 300_000, bytes(16), bytes(16)))


@pytest.mark.parametrize(
    ("situation", "body", "payload_bytes"),
    [
        ("shorter than an item", PUT_BODY[:87], 300_000),
        ("payload longer than the block", PUT_BODY, 300_001),
        ("one sum missing", PUT_BODY[:-8], 300_000),
        ("a byte too many", PUT_BODY + b"\0", 300_000),
        ("sums for another length", PUT_BODY[:32] + bytes(8) + PUT_BODY[40:], 0),
        ("unknown durability", PUT_BODY[:80] + b"\3" + PUT_BODY[81:], 300_000),
    ],
)
def test_put_that_contradicts_itself_is_refused(
    situation: str, body: bytes, payload_bytes: int
) -> None:
    with pytest.raises(MalformedBody, match="PUT"):
        decode_put_item(body, payload_bytes)


def test_put_of_no_bytes_is_parsed_so_that_it_can_be_answered() -> None:
    assert decode_put_item(encode_put_item(PutItem(bytes(32), 0, bytes(16), b"")), 0).length == 0


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ([], Oversized),
        ([(0, 1)] * (limits.RANGES_PER_ITEM_MAX + 1), Oversized),
        ([(0, 0)], Oversized),
        ([(BLOCK, 1)], Oversized),
        ([(2**64 - 1, 2**64 - 1)], Oversized),
        ([(0, BLOCK), (0, 1)], Oversized),
    ],
    ids=["none", "too many", "empty", "beyond a block", "overflow", "more than a block in all"],
)
def test_ranges_that_ask_too_much_are_refused(
    ranges: list[tuple[int, int]], error: type[WireError]
) -> None:
    body = encode_ranges_request([RangesItem(bytes(32), tuple(ranges))])
    with pytest.raises(error):
        decode_ranges_request(body, 1)


@pytest.mark.parametrize("length", range(72))
def test_ranges_cut_anywhere_are_truncated(length: int) -> None:
    body = encode_ranges_request([RangesItem(bytes(32), ((0, 1), (5, 9)))])
    with pytest.raises(Truncated):
        decode_ranges_request(body[:length], 1)


@given(st.binary(max_size=4000), st.integers(0, 1100), st.booleans())
def test_garbage_bodies_are_typed_errors_or_values(body: bytes, count: int, hints: bool) -> None:
    for decode in (
        lambda: decode_get_request(body, count),
        lambda: decode_get_result(body, hints=hints),
        lambda: decode_ranges_request(body, count),
        lambda: decode_put_item(body, count),
        lambda: decode_hints(body),
    ):
        with suppress(WireError):
            decode()


@given(tag=st.binary(min_size=16, max_size=16), ids=st.lists(IDS, min_size=1, max_size=20))
def test_pull_request_round_trip(tag: bytes, ids: list[bytes]) -> None:
    body = encode_pull_request(tag, b"".join(ids))
    assert decode_pull_request(body, len(ids)) == (tag, b"".join(ids))
    for wrong in (0, len(ids) + 1):
        with pytest.raises(MalformedBody, match="PULL"):
            decode_pull_request(body, wrong)


@given(expiry_s=U32, depth=U32, prefix=st.binary(min_size=8, max_size=8), length=U64)
def test_pull_result_round_trip(expiry_s: int, depth: int, prefix: bytes, length: int) -> None:
    block = encode_get_result(1, 0, length, bytes(16), bytes(24))
    body = encode_pull_result(block, (expiry_s, depth, prefix, bytes(8)))
    wanted = GetResult(1, 0, length, bytes(16), bytes(24))
    assert decode_pull_result(body) == PullResult(wanted, expiry_s, depth, prefix, bytes(8))


@given(st.binary(max_size=200))
def test_garbage_is_no_pull_result(body: bytes) -> None:
    with suppress(WireError):
        decode_pull_result(body)
