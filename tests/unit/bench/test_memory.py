"""Memory to measure with begins where the buffers of engines do."""

import mmap

import pytest

from memkv import _hotpath
from memkv.bench.memory import page_aligned


@pytest.mark.parametrize("size_bytes", [1, 4096, 5000, 2 << 20])
def test_memory_begins_on_a_page_and_has_the_length_asked_for(size_bytes: int) -> None:
    memory = page_aligned(size_bytes)
    assert _hotpath.address_of(memory) % mmap.PAGESIZE == 0
    assert memory.nbytes == size_bytes
    memory[-1] = 1  # writable
