"""Registered regions never overlap; scatter lists are checked before anything is sent."""

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
