"""Sums and roots: what is accepted, and every way to be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv import pattern
from memkv.checksum import (
    chunk_count,
    covering_chunks,
    seal,
    verify_chunks,
    verify_payload,
    verify_root,
)
from memkv.keys import block_id
from memkv.limits import BLOCK_BYTES_MAX, CHUNK_BYTES
from memkv.tenant import tenant_tag

ID, TAG = block_id("key"), tenant_tag("default")
LENGTHS = [1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_block_passes_its_own_seal(length: int) -> None:
    data = pattern.block(1, length)
    found = seal(data, ID, TAG)
    assert found.length == length
    assert len(found.sums) == 8 * chunk_count(length)
    assert verify_payload(data, ID, TAG, *found)


@pytest.mark.parametrize("length", LENGTHS)
def test_any_flipped_byte_is_seen(length: int) -> None:
    data = bytearray(pattern.block(1, length))
    found = seal(data, ID, TAG)
    for at in {0, length // 2, length - 1}:
        data[at] ^= 1
        assert not verify_payload(data, ID, TAG, *found)
        data[at] ^= 1


def test_another_block_with_its_own_sums_is_seen() -> None:
    data = pattern.block(1, 5000)
    found = seal(data, ID, TAG)
    assert not verify_payload(data, block_id("other"), TAG, *found)
    assert not verify_payload(data, ID, tenant_tag("other"), *found)
    assert not verify_payload(pattern.block(2, 5000), ID, TAG, *found)


def test_a_wrong_length_or_odd_sums_are_seen_without_an_error() -> None:
    data = pattern.block(1, CHUNK_BYTES + 1)
    length, sums, root = seal(data, ID, TAG)
    assert not verify_payload(data, ID, TAG, length - 1, sums, root)
    assert not verify_payload(data[:-1], ID, TAG, length, sums, root)
    assert not verify_root(ID, TAG, length, sums[:-1], root)
    assert not verify_root(ID, TAG, length, sums[:-8], root)
    assert not verify_root(ID, TAG, 0, b"", root)
    assert not verify_root(ID, TAG, BLOCK_BYTES_MAX + 1, bytes(8 * 65), root)


@given(st.data())
def test_covering_chunks_hold_the_range_and_verify(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 4 * CHUNK_BYTES))
    offset = data.draw(st.integers(0, length - 1))
    size = data.draw(st.integers(1, length - offset))
    span = covering_chunks(offset, size, length)
    assert span.start <= offset
    assert offset + size <= span.stop <= length
    assert span.start % CHUNK_BYTES == 0
    assert offset - span.start < CHUNK_BYTES
    assert span.end - span.first == chunk_count(span.stop - span.start)


def test_a_part_is_verified_by_its_part_of_the_sums() -> None:
    data = bytearray(pattern.block(1, 3 * CHUNK_BYTES + 5))
    sums = seal(data, ID, TAG).sums
    span = covering_chunks(CHUNK_BYTES + 7, CHUNK_BYTES, len(data))
    assert span[:2] == (1, 3)
    assert verify_chunks(data[span.start : span.stop], span, sums)
    assert not verify_chunks(data[span.start : span.stop - 1], span, sums)
    data[2 * CHUNK_BYTES] ^= 1
    assert not verify_chunks(data[span.start : span.stop], span, sums)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 0), (5, 6), (10, 1)])
def test_a_range_outside_the_block_is_refused(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="outside 10 bytes"):
        covering_chunks(offset, size, 10)
