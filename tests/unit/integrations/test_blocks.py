"""Headers of blocks: a fresh process reads them, and a foreign block is never taken for ours."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv._hotpath import xxh3_64
from memkv.errors import CallerError
from memkv.integrations.blocks import (
    DETAILS_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    BlockFormat,
    judge,
)
from memkv.integrations.keys import Adapter, Namespace, Rank
from memkv.limits import BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES
from memkv.reasons import MissReason, reason_of
from memkv.status import Status

OURS = Namespace("llama", "r1", "bfloat16", "L2.2.T.H8.D64", 16, "sha256/0")
PAYLOAD_BYTES = 2 * 2 * 16 * 8 * 64 * 2
FORMAT = BlockFormat.of(OURS, PAYLOAD_BYTES, shape=(2, 2, 16, 8, 64), details=b"more")
LENGTH = BLOCK_HEADER_BYTES + PAYLOAD_BYTES


def test_a_fresh_process_reads_all_of_it() -> None:
    found = BlockFormat.read(FORMAT.header)
    assert found == FORMAT
    assert found is not None
    assert (found.tokens, found.dtype, found.shape) == (16, "bfloat16", (2, 2, 16, 8, 64))
    assert found.namespace_encoding == OURS.encoding


def test_the_page_is_a_page() -> None:
    assert len(FORMAT.header) == BLOCK_HEADER_BYTES
    assert BLOCK_HEADER_BYTES % 4096 == 0


def test_the_block_that_was_expected_is_a_hit() -> None:
    assert judge(LENGTH, FORMAT.header, FORMAT).is_hit
    assert judge(LENGTH, memoryview(bytearray(FORMAT.header)), FORMAT).is_hit


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Namespace)])
def test_a_block_of_another_namespace_is_a_miss_that_says_so(field: str) -> None:
    others: dict[str, Any] = {
        "model": "mistral", "revision": "r2", "kv_dtype": "float16", "layout": "other",
        "block_tokens": 32, "hashing": "xxhash/0", "ranks": (Rank("tp", 0, 2),),
        "adapter": Adapter.of_path("sql", "/a"), "cache_salt": b"salt",
    }
    theirs = dataclasses.replace(OURS, **{field: others[field]})
    found = judge(LENGTH, BlockFormat.of(theirs, PAYLOAD_BYTES).header,
                  BlockFormat.of(OURS, PAYLOAD_BYTES))
    assert found.reason is MissReason.WRONG_NAMESPACE
    assert found.text == f"another {field}"


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(FORMAT, tokens=15),
        dataclasses.replace(FORMAT, shape=(2, 2, 8, 16, 64)),
        dataclasses.replace(FORMAT, dtype="float16"),
        dataclasses.replace(FORMAT, group=1),
        dataclasses.replace(FORMAT, coding="fp8"),
        dataclasses.replace(FORMAT, details=b"less"),
        dataclasses.replace(FORMAT, payload_bytes=PAYLOAD_BYTES - 2),
    ],
    ids=["tokens", "shape", "dtype", "group", "coding", "details", "payload"],
)
def test_a_block_of_another_shape_is_a_miss_that_says_so(other: BlockFormat) -> None:
    found = judge(BLOCK_HEADER_BYTES + other.payload_bytes, other.header, FORMAT)
    assert found.reason is MissReason.WRONG_FORMAT


def test_a_block_shorter_than_its_header_says_is_a_miss() -> None:
    assert judge(LENGTH - 1, FORMAT.header, FORMAT).reason is MissReason.WRONG_FORMAT


def test_a_block_that_no_engine_stored_is_a_miss() -> None:
    assert judge(LENGTH, bytes(BLOCK_HEADER_BYTES), FORMAT).reason is MissReason.WRONG_FORMAT
    assert judge(3, FORMAT.header, FORMAT).reason is MissReason.WRONG_FORMAT


@pytest.mark.parametrize("status", [each for each in Status if each < 0])
def test_results_that_are_no_hit_have_a_reason(status: Status) -> None:
    found = judge(status, FORMAT.header, FORMAT)
    assert not found.is_hit
    assert found.reason is reason_of(status)


@given(st.integers(0, BLOCK_HEADER_BYTES - 1), st.integers(0, 7))
def test_a_flipped_bit_is_noticed(position: int, bit: int) -> None:
    page = bytearray(FORMAT.header)
    page[position] ^= 1 << bit
    assert BlockFormat.read(page) is None
    assert not judge(LENGTH, page, FORMAT).is_hit


@given(st.binary(max_size=200))
def test_no_header_with_a_right_sum_makes_reading_fail(fields: bytes) -> None:
    page = bytearray(FORMAT.header)
    page[6:8], page[16 : 16 + len(fields)] = fields[:2].ljust(2), fields
    page[8:16] = bytes(8)
    page[8:16] = xxh3_64(page).to_bytes(8, "little")
    found = BlockFormat.read(page)
    assert found is None or found.payload_bytes > 0
    assert BlockFormat.read(page[:-1]) is None


def test_what_fits_no_header_is_refused() -> None:
    assert BLOCK_HEADER_BYTES + PAYLOAD_BYTES_MAX == BLOCK_BYTES_MAX
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"payload_bytes": 0}, "fit a block"),
        ({"payload_bytes": PAYLOAD_BYTES_MAX + 1}, "fewer tokens"),
        ({"shape": (1,) * 9}, "axes"),
        ({"dtype": ""}, "is no name"),
        ({"coding": "x" * 25}, "is no name"),
        ({"details": bytes(DETAILS_BYTES_MAX + 1)}, "of details"),
    )
    for changes, message in refused:
        with pytest.raises(CallerError, match=message):
            dataclasses.replace(FORMAT, **changes)
    with pytest.raises(CallerError, match="not a block's format"):
        _ = dataclasses.replace(FORMAT, group=1 << 32).header
    largest = dataclasses.replace(FORMAT, details=bytes(DETAILS_BYTES_MAX))
    assert BlockFormat.read(largest.header) == largest
