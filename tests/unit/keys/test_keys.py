"""Block ids: canonical form, limits and refusals."""

import hashlib

import pytest

from memkv.errors import CallerError
from memkv.keys import block_id, block_ids, slot_of, slots_of


def test_id_is_keyed_blake2b_of_the_length_prefixed_key() -> None:
    expected = hashlib.blake2b(b"\3\0\0\0key", digest_size=32, key=b"salt").digest()
    assert block_id("key", b"salt") == expected


def test_without_a_salt_the_hash_is_unkeyed() -> None:
    assert block_id(b"key") == hashlib.blake2b(b"\3\0\0\0key", digest_size=32).digest()


def test_text_and_its_utf8_bytes_name_one_block() -> None:
    assert block_id("préfix") == block_id("préfix".encode())


def test_keys_that_concatenate_alike_have_different_ids() -> None:
    assert block_id(b"ab") != block_id(b"ab\0")


def test_batch_is_in_order() -> None:
    assert block_ids(["a", b"b", "c"], b"s") == b"".join(block_id(key, b"s") for key in "abc")


@pytest.mark.parametrize("length", [1, 124, 125, 508, 512])
def test_every_length_up_to_the_limit_is_taken(length: int) -> None:
    assert len(block_id(b"k" * length)) == 32


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("", "0 bytes"), (b"k" * 513, "513 bytes"), ("é" * 257, "514 bytes"), ("\ud800", "UTF-8")],
    ids=["empty", "one over the limit", "over the limit only in UTF-8", "lone surrogate"],
)
def test_a_bad_key_is_refused_by_its_index(bad: str | bytes, reason: str) -> None:
    with pytest.raises(CallerError, match=rf"keys\[2\].*{reason}"):
        block_ids(["a", "b", bad, ""])


def test_a_salt_over_64_bytes_is_refused() -> None:
    assert len(block_id("k", b"s" * 64)) == 32
    with pytest.raises(CallerError, match="65 bytes"):
        block_id("k", b"s" * 65)


def test_one_key_instead_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="a sequence of keys"):
        block_ids("key")


def test_slots_stay_below_their_count() -> None:
    ids = block_ids([f"key-{n}" for n in range(1000)])
    for slots in (1, 7, 4096, 65536):
        table = memoryview(slots_of(ids, slots)).cast("H")
        assert len(table) == 1000
        assert max(table) < slots
        assert table[999] == slot_of(ids[-32:], slots)
