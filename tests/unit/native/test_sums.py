"""Checksums, ids, groups and the pattern: the native functions against their oracle."""

import ctypes
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memkv import _hotpath
from memkv.limits import CHUNK_BYTES, USER_KEY_BYTES_MAX
from memkv.testing import hotpath_oracle as oracle

LENGTHS = st.one_of(
    st.integers(0, 2000),
    st.sampled_from([65536, 65537, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]),
)
SEEDS = st.integers(0, 2**64 - 1)
KEYS = st.one_of(
    st.binary(min_size=1, max_size=USER_KEY_BYTES_MAX),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=USER_KEY_BYTES_MAX // 4),
)


def content(seed: int, length: int) -> bytearray:
    data = bytearray(length)
    _hotpath.fill_pattern(data, seed)
    return data


def test_the_loops_in_use_have_a_name() -> None:
    assert _hotpath.sums_engine in ("avx2", "baseline")


@given(SEEDS, LENGTHS)
def test_sums_match(seed: int, length: int) -> None:
    data = content(seed, length)
    assert _hotpath.xxh3_64(data) == oracle.xxh3_64(data)
    assert _hotpath.xxh3_128(data) == oracle.xxh3_128(data)
    assert _hotpath.chunk_sums(data) == oracle.chunk_sums(data)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), SEEDS, st.data())
def test_roots_match(block_id: bytes, tag: bytes, length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 64))
    sums = bytes(content(length, 8 * count))
    found = _hotpath.block_root(block_id, tag, length, sums)
    assert found == oracle.block_root(block_id, tag, length, sums)


@pytest.mark.parametrize(
    ("id_bytes", "tag_bytes", "sums_bytes"),
    [(31, 16, 8), (32, 15, 8), (32, 16, 7), (32, 16, 8 * 65)],
    ids=["short id", "short tag", "half a sum", "a sum too many"],
)
def test_roots_of_odd_lengths_are_refused(id_bytes: int, tag_bytes: int, sums_bytes: int) -> None:
    for module in (_hotpath, oracle):
        with pytest.raises(ValueError):
            module.block_root(bytes(id_bytes), bytes(tag_bytes), 1, bytes(sums_bytes))


@given(st.lists(KEYS, max_size=40), st.binary(max_size=64))
def test_ids_match(keys: list[str | bytes], salt: bytes) -> None:
    assert _hotpath.block_ids(keys, salt) == oracle.block_ids(keys, salt)
    assert _hotpath.block_ids(tuple(keys), salt) == oracle.block_ids(keys, salt)


@given(KEYS, st.binary(max_size=64), st.integers(1, 65536))
def test_names_match(key: str | bytes, salt: bytes, slots: int) -> None:
    block_id, slot = _hotpath.block_name(key, salt, slots)
    assert (block_id, slot) == oracle.block_name(key, salt, slots)
    assert block_id == _hotpath.block_ids([key], salt)
    assert slot.to_bytes(2, "little") == _hotpath.slots_of(block_id, slots)


@pytest.mark.parametrize("bad", ["", b"k" * 513, "\udc80", None, 5, ["key"]])
def test_what_is_no_key_has_no_name(bad: object) -> None:
    for module in (_hotpath, oracle):
        with pytest.raises((ValueError, TypeError), match=r"^keys\[0\] "):
            module.block_name(bad, b"", 1)


def test_large_batches_match() -> None:
    keys = [f"key-{number}" for number in range(5000)]
    assert _hotpath.block_ids(keys, b"salt") == oracle.block_ids(keys, b"salt")


@pytest.mark.parametrize("bad", ["", b"", b"k" * 513, "é" * 257, "\udc80"])
def test_the_first_bad_key_is_named(bad: str | bytes) -> None:
    for module in (_hotpath, oracle):
        with pytest.raises(ValueError, match=r"^keys\[1\] "):
            module.block_ids(["good", bad, ""], b"")


@pytest.mark.parametrize("bad", [None, 5, bytearray(b"key"), ["key"]])
def test_keys_of_another_type_are_refused(bad: object) -> None:
    for module in (_hotpath, oracle):
        with pytest.raises(TypeError, match=r"^keys\[1\] "):
            module.block_ids(["good", bad], b"")


@given(st.integers(0, 50), SEEDS, st.integers(1, 65536))
def test_slots_match(count: int, seed: int, slots: int) -> None:
    ids = bytes(content(seed, 32 * count))
    assert _hotpath.slots_of(ids, slots) == oracle.slots_of(ids, slots)


@given(
    st.lists(st.integers(0, 65535), min_size=1, max_size=30).flatmap(
        lambda owners: st.tuples(
            st.just(owners), st.lists(st.integers(0, len(owners) - 1), max_size=60)
        )
    )
)
def test_groups_match_and_stay_in_order(case: tuple[list[int], list[int]]) -> None:
    owners, slots = (struct.pack(f"<{len(numbers)}H", *numbers) for numbers in case)
    groups = _hotpath.group_by_owner(slots, owners)
    assert groups == oracle.group_by_owner(slots, owners)
    assert [owner for owner, _ in groups] == sorted({case[0][slot] for slot in case[1]})


def test_a_slot_outside_the_table_is_named() -> None:
    for module in (_hotpath, oracle):
        with pytest.raises(ValueError, match=r"^slots\[1\] is 2"):
            module.group_by_owner(struct.pack("<2H", 1, 2), bytes(4))


@given(st.integers(1, 40), st.integers(1, 20), st.lists(st.integers(0, 19), max_size=30))
def test_gathered_records_match(width: int, count: int, positions: list[int]) -> None:
    records = bytes(content(1, width * count))
    wanted = struct.pack(f"<{len(positions)}I", *(position % count for position in positions))
    assert _hotpath.gather(records, width, wanted) == oracle.gather(records, width, wanted)


@pytest.mark.parametrize(
    ("width", "positions"), [(4, struct.pack("<I", 2)), (3, b""), (0, b""), (4, b"\0")]
)
def test_odd_gathers_are_refused(width: int, positions: bytes) -> None:
    for module in (_hotpath, oracle):
        with pytest.raises(ValueError):
            module.gather(bytes(8), width, positions)


@settings(max_examples=30, deadline=None)
@given(SEEDS, LENGTHS, st.integers(0, 2**63))
def test_patterns_match(seed: int, length: int, offset: int) -> None:
    length %= 70_000  # the oracle takes a microsecond a word
    native, slow = bytearray(length), bytearray(length)
    _hotpath.fill_pattern(native, seed, offset)
    oracle.fill_pattern(slow, seed, offset)
    assert native == slow
    assert _hotpath.check_pattern(slow, seed, offset) == -1
    assert oracle.check_pattern(native, seed, offset) == -1


@given(SEEDS, st.integers(1, 1000), st.data())
def test_first_wrong_bytes_match(seed: int, length: int, data: st.DataObject) -> None:
    block = content(seed, length)
    at = data.draw(st.integers(0, length - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    block[data.draw(st.integers(at, length - 1))] ^= 1
    assert _hotpath.check_pattern(block, seed) == oracle.check_pattern(block, seed)


@given(SEEDS, LENGTHS)
def test_copies_match_and_are_summed(seed: int, length: int) -> None:
    source, target = content(seed, length), bytearray(length)
    assert _hotpath.copy_and_sum(target, source) == oracle.chunk_sums(source)
    assert target == source
    other = bytearray(length)
    _hotpath.copy_memory(other, source)
    assert other == source


def test_copies_of_unequal_lengths_are_refused_and_let_go() -> None:
    target, source = bytearray(2), bytearray(3)
    for copy in (_hotpath.copy_memory, _hotpath.copy_and_sum):
        with pytest.raises(ValueError, match="target has 2 bytes, source 3"):
            copy(target, source)
    target.append(0)  # would raise BufferError while a view is held
    source.append(0)


def test_read_only_targets_are_refused_and_sources_let_go() -> None:
    source = bytearray(3)
    for copy in (_hotpath.copy_memory, _hotpath.copy_and_sum):
        with pytest.raises(BufferError):
            copy(bytes(3), source)
    with pytest.raises(BufferError):
        _hotpath.fill_pattern(bytes(3), 0)
    source.append(0)


def test_buffers_of_other_items_and_shapes_are_bytes() -> None:
    data = content(3, 4096)
    words = memoryview(data).cast("d")
    assert _hotpath.xxh3_64(words) == oracle.xxh3_64(data)
    foreign = (ctypes.c_uint32 * 1024).from_buffer(data)
    assert _hotpath.chunk_sums(foreign) == oracle.chunk_sums(data)
    with pytest.raises(BufferError):
        _hotpath.chunk_sums(memoryview(data)[::2])


def test_foreign_memory_is_written_in_place() -> None:
    data = bytearray(16)
    for module in (_hotpath, oracle):
        view = module.memory_at(module.address_of(data) + 4, 4)
        view[:] = b"\1\2\3\4"
        assert data == bytes(4) + b"\1\2\3\4" + bytes(8)
        with pytest.raises(ValueError, match="no memory"):
            module.memory_at(0, 1)
