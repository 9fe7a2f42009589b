"""The limit of the local transport does what it is called: memcpy, then xxh3_128."""

import pytest

from memkv import _hotpath
from memkv.bench import memory_limit
from memkv.bench.limits import MemoryLimit
from memkv.testing import hotpath_oracle as oracle

SIZE_BYTES = 100_000


def test_each_copied_block_is_summed_by_xxh3_128(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = []

    def xxh3_128(data: bytearray) -> bytes:
        summed.append(oracle.xxh3_128(data))
        return summed[-1]

    monkeypatch.setattr(_hotpath, "xxh3_128", xxh3_128)
    assert memory_limit.measure_gbps(SIZE_BYTES, seconds=1e-9, blocks=3) > 0
    blocks = [bytearray(SIZE_BYTES) for _ in range(3)]
    for number, block in enumerate(blocks):
        _hotpath.fill_pattern(block, number)
    assert summed == [oracle.xxh3_128(block) for block in blocks], "one turn of all blocks"
    assert MemoryLimit.name == "memcpy + xxh3_128"
