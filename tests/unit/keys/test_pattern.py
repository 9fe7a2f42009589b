"""The content pattern as a judge of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from memkv import pattern

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, SEEDS)
def test_two_seeds_differ_in_every_word(one: int, other: int) -> None:
    blocks = [memoryview(pattern.block(seed, 4096)).cast("Q") for seed in (one, other)]
    differ = sum(left != right for left, right in zip(*blocks, strict=True))
    assert differ == (512 if one != other else 0)


@given(SEEDS)
def test_words_of_one_block_differ(seed: int) -> None:
    assert len(set(memoryview(pattern.block(seed, 4096)).cast("Q"))) == 512


@given(SEEDS, st.integers(1, 3000), st.data())
def test_the_first_wrong_byte_is_named(seed: int, length: int, data: st.DataObject) -> None:
    block = bytearray(pattern.block(seed, length))
    assert pattern.first_wrong_byte(block, seed) is None
    wrong = data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=3))
    for at in wrong:
        block[at] ^= 0x80
    assert pattern.first_wrong_byte(block, seed) == min(wrong)


@given(SEEDS, st.integers(0, 600), st.integers(0, 600))
def test_a_part_equals_that_part_of_the_whole(seed: int, offset: int, length: int) -> None:
    part = pattern.block(seed, length, offset)
    assert part == pattern.block(seed, offset + length)[offset:]
    assert pattern.first_wrong_byte(part, seed, offset) is None


def test_a_shifted_block_is_wrong() -> None:
    assert pattern.first_wrong_byte(pattern.block(1, 4096, 8), 1) == 0


def test_seeds_tell_keys_and_versions_apart() -> None:
    seeds = {pattern.seed_of(key, version) for key in ("a", "b", b"\0a") for version in (0, 1)}
    assert len(seeds) == 6
    assert pattern.seed_of("a") == pattern.seed_of(b"a", 0)


def test_fill_writes_in_place() -> None:
    target = bytearray(100)
    pattern.fill(memoryview(target)[10:50], 5)
    assert target == bytes(10) + pattern.block(5, 40) + bytes(50)
