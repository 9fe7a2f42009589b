"""Bodies of the operations on shared memory: there and back, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv import limits
from memkv.wire.errors import MalformedBody, Oversized, Truncated, WireError
from memkv.wire.items import PutItem
from memkv.wire.local import (
    Access,
    LocalGetItem,
    Part,
    RegisterRequest,
    decode_local_get,
    decode_local_put,
    decode_registered,
    decode_unregister,
    encode_local_get,
    encode_local_put,
    encode_registered,
    encode_unregister,
    parts_bytes,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
PARTS = st.lists(
    st.builds(Part, U32, U64, st.integers(1, limits.BLOCK_BYTES_MAX // 8), U32),
    min_size=1, max_size=8,
)  # fmt: skip
IDS = st.binary(min_size=32, max_size=32)


@given(st.lists(st.tuples(IDS, PARTS), min_size=1, max_size=20))
def test_gets_come_back_as_they_were(items: list[tuple[bytes, list[Part]]]) -> None:
    made = [LocalGetItem(block_id, tuple(parts)) for block_id, parts in items]
    assert decode_local_get(encode_local_get(made), len(made)) == made


@given(IDS, PARTS)
def test_puts_come_back_as_they_were(block_id: bytes, parts: list[Part]) -> None:
    length = parts_bytes(parts)
    sums = bytes(8 * -(-length // limits.CHUNK_BYTES))
    item = PutItem(block_id, length, b"r" * 16, sums, ttl_s=5, depth=9)
    assert decode_local_put(encode_local_put(item, parts)) == (item, tuple(parts))


@given(st.binary(max_size=400), st.integers(0, 5))
def test_any_bytes_are_a_body_or_a_typed_error(body: bytes, count: int) -> None:
    for decode in (
        lambda: decode_local_get(body, count), lambda: decode_local_put(body),
        lambda: RegisterRequest.decode(body), lambda: decode_unregister(body),
        lambda: decode_registered(body),
    ):  # fmt: skip
        try:
            decode()
        except WireError:
            continue


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (LocalGetItem(bytes(32), ()), Oversized),
        (LocalGetItem(bytes(32), (Part(1, 0, 0),)), Oversized),
        (LocalGetItem(bytes(32), (Part(1, 0, 1),) * 257), Oversized),
        (LocalGetItem(bytes(32), (Part(1, 0, 2**24), Part(1, 0, 1))), Oversized),
        (LocalGetItem(bytes(32), (Part(1, 0, 2**63), Part(1, 0, 2**63))), Oversized),
    ],
)
def test_layouts_that_cannot_be_a_block(item: LocalGetItem, error: type[WireError]) -> None:
    with pytest.raises(error, match=r"LOCAL_GET.*(fix|use)"):
        decode_local_get(encode_local_get([item]), 1)


def test_bodies_of_a_wrong_length() -> None:
    body = encode_local_get([LocalGetItem(bytes(32), (Part(1, 2, 3),))])
    with pytest.raises(Truncated):
        decode_local_get(body[:-1], 1)
    with pytest.raises(Truncated):
        decode_local_get(body, 2)
    with pytest.raises(MalformedBody):
        decode_local_get(body * 2, 1)
    with pytest.raises(MalformedBody):
        decode_local_get(b"", 0)
    put = encode_local_put(PutItem(bytes(32), 5, bytes(16), bytes(8)), [Part(1, 0, 5)])
    with pytest.raises(MalformedBody, match="whole parts"):
        decode_local_put(put[:-1])
    with pytest.raises(MalformedBody, match="for 5"):
        decode_local_put(put[:-8] + (6).to_bytes(8, "little"))


def test_registering() -> None:
    request = RegisterRequest(7, Access.WRITE, 4096, 2**40)
    assert RegisterRequest.decode(request.encode()) == request
    assert decode_unregister(encode_unregister(7)) == 7
    assert [decode_registered(encode_registered(is_mapped)) for is_mapped in (True, False)] == [
        True, False
    ]  # fmt: skip
    for access in (0, 4, 255):
        with pytest.raises(MalformedBody, match="access"):
            RegisterRequest.decode(RegisterRequest(7, access, 0, 1).encode())
