"""The content that demo, benchmarks and tests store, so that any byte read back can be judged.

Word i of a block is a function of the block's seed and i; two seeds differ in every word. A reader
needs the key only, not a copy of the block, to say which byte is the first wrong one.
"""

from typing import TYPE_CHECKING

from memkv import _hotpath

if TYPE_CHECKING:
    from typing_extensions import Buffer


def seed_of(key: str | bytes, version: int = 0) -> int:
    """Return the seed (u64) of a key's content; `version` tells several puts of one key apart."""
    data = key.encode() if isinstance(key, str) else key
    return _hotpath.xxh3_64(version.to_bytes(8, "little") + data)


def block(seed: int, length: int, offset: int = 0) -> bytes:
    """Return `length` bytes of the pattern, from byte `offset` on."""
    target = bytearray(length)
    _hotpath.fill_pattern(target, seed, offset)
    return bytes(target)


def fill(target: "Buffer", seed: int, offset: int = 0) -> None:
    """Write the pattern into a buffer."""
    _hotpath.fill_pattern(target, seed, offset)


def first_wrong_byte(data: "Buffer", seed: int, offset: int = 0) -> int | None:
    """Return the index of the first byte that is not the pattern's, or None."""
    wrong = _hotpath.check_pattern(data, seed, offset)
    return None if wrong < 0 else wrong
