"""Registered regions never overlap; scatter lists are checked before anything is sent."""

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.client.buffers import (
    Region,
    RegionTable,
    check_scatters,
    multi_segments,
    single_segments,
)
from memkv.errors import CallerError
from memkv.wire.local import Access, Part


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), max_size=30))
def test_the_table_equals_a_list_of_disjoint_ranges(pieces: list[tuple[int, int]]) -> None:
    table = RegionTable()
    kept: list[tuple[int, int]] = []
    for address, size in pieces:
        overlaps = any(address < a + s and a < address + size for a, s in kept)
        if overlaps:
            with pytest.raises(CallerError, match="overlaps"):
                table.add(Region(address, size, None, 0))
        else:
            table.add(Region(address, size, None, 0))
            kept.append((address, size))
    for probe in range(1, 350):
        expected = next((a for a, s in kept if a <= probe and probe + 2 <= a + s), None)
        found = table.find(probe, 2)
        assert (found.address if found else None) == expected
    for address, _ in kept:
        table.remove(address)
    assert len(table) == 0


def test_unknown_and_empty_regions_are_the_callers_error() -> None:
    table = RegionTable()
    with pytest.raises(CallerError, match="no registered buffer"):
        table.remove(4096)
    with pytest.raises(CallerError, match="positive size"):
        table.add(Region(4096, 0, None, 0))


def test_scatter_lists_are_checked() -> None:
    assert single_segments([10, 20], [1, 2]) == [((10, 1),), ((20, 2),)]
    assert multi_segments([[10, 20]], [[1, 2]]) == [((10, 1), (20, 2))]
    with pytest.raises(CallerError, match="2 pointers for 1 sizes"):
        single_segments([1, 2], [1])
    with pytest.raises(CallerError, match="key 0: 1 pointers for 2 sizes"):
        multi_segments([[1]], [[1, 2]])
    with pytest.raises(CallerError, match="1 buffers for 2 keys"):
        check_scatters(single_segments([1], [1]), 2)
    with pytest.raises(CallerError, match="is not a buffer"):
        check_scatters(single_segments([0], [1]), 1)


def test_shared_regions_are_located_by_access_and_number() -> None:
    table = RegionTable()
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 8192)
        table.add(Region(0x10000, 4096, file.fileno(), 0))
        table.add(Region(0x20000, 4096, file.fileno(), 4096))
        table.add(Region(0x30000, 4096, None, 0))
    version, shared = table.shared()  # of duplicates: the file is closed
    first, second = sorted(shared)
    assert table.shared_count == 2
    both = {first, second}
    scatter = ((0x10010, 16), (0x20000, 0), (0x20000, 4096))
    assert table.locate(scatter, Access.WRITE, both) == (
        Part(first, 16, 16), Part(second, 0, 4096)
    )
    assert table.locate(scatter, Access.WRITE, {first}) is True  # it could be, but not now
    assert table.locate(((0x10000, 4097),), Access.WRITE, both) is False
    assert table.locate(((0x30000, 16),), Access.WRITE, both) is False
    assert table.locate(((0x10000, 1),) * 257, Access.WRITE, both) is False
    assert table.locate(((0x10000, 0),), Access.WRITE, both) is False
    fd = table.duplicate_fd(shared[second])
    assert fd is not None
    os.close(fd)
    removed = table.remove(0x20000)
    assert table.duplicate_fd(removed) is None
    assert table.version > version
    assert table.locate(scatter, Access.WRITE, both) is False
    table.close()
    assert table.shared_count == 0
    assert table.remove(0x10000).fd is None


def test_a_region_is_shared_for_what_its_fd_allows() -> None:
    table = RegionTable()
    fd = os.open("/dev/null", os.O_RDONLY)
    table.add(Region(4096, 4096, fd, 0))
    os.close(fd)
    numbers = table.shared()[1]
    assert isinstance(table.locate(((4096, 1),), Access.READ, numbers), tuple)
    assert table.locate(((4096, 1),), Access.WRITE, numbers) is False
    with pytest.raises(CallerError, match="must be open"):
        table.add(Region(0x90000, 4096, fd, 0))
    table.close()
