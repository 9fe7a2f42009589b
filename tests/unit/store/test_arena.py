"""The DRAM allocator."""

from hypothesis import given
from hypothesis import strategies as st

from memkv.store.arena import Arena, Extent

SECTORS = 32


def test_clean_extents_are_evicted_oldest_first_and_others_never() -> None:
    forgotten: list[int] = []
    arena = Arena(4 * 4096, lambda handle, _start: forgotten.append(handle))
    extents = [arena.allocate(1) for _ in range(4)]
    for handle, extent in enumerate(extents):
        assert extent is not None
        arena.name(extent, handle)
        if handle != 1:
            arena.release(extent)
    assert arena.allocate(1) is not None
    assert forgotten == [0]
    assert arena.allocate(2) is not None
    assert forgotten == [0, 2, 3]
    assert arena.allocate(1) is None
    arena.check_invariants()


def test_a_touched_extent_outlives_an_untouched_one() -> None:
    forgotten: list[int] = []
    arena = Arena(2 * 4096, lambda handle, _start: forgotten.append(handle))
    extents = [arena.allocate(1), arena.allocate(1)]
    for handle, extent in enumerate(extents):
        assert extent is not None
        arena.name(extent, handle)
        arena.release(extent)
    assert extents[0] is not None
    arena.hold(extents[0])
    arena.release(extents[0])
    arena.allocate(1)
    assert forgotten == [1]


def test_a_dropped_extent_is_free_when_its_last_reader_is_done() -> None:
    arena = Arena(4096, lambda _handle, _start: None)
    extent = arena.allocate(1)
    assert extent is not None
    arena.name(extent, 7)
    arena.drop(extent.start)
    assert arena.allocate(1) is None
    arena.release(extent)
    assert arena.allocate(1) is not None


@given(st.lists(st.tuples(st.sampled_from("ankrhd"), st.integers(0, 9)), max_size=60))
def test_any_order_of_calls_keeps_the_free_list_whole(steps: list[tuple[str, int]]) -> None:
    named: dict[int, Extent] = {}
    held: list[Extent] = []

    def forget(handle: int, start: int) -> None:
        assert start < 0
        del named[handle]

    arena = Arena(SECTORS * 4096, forget)
    for number, (what, size) in enumerate(steps):
        if what == "a":
            extent = arena.allocate(size + 1)
            if extent is not None:
                held.append(extent)
        elif what == "n" and held and held[-1].handle < 0:
            arena.name(held[-1], number)
            named[number] = held[-1]
        elif what in "rk" and held:
            arena.release(held.pop(size % len(held)))
        elif what == "h" and named:
            extent = list(named.values())[size % len(named)]
            arena.hold(extent)
            held.append(extent)
        elif what == "d" and named:
            handle = list(named)[size % len(named)]
            arena.drop(named.pop(handle).start)
        arena.check_invariants()
    for extent in held:
        arena.release(extent)
    for extent in named.values():
        arena.drop(extent.start)
    arena.check_invariants()
    assert arena.sectors_free == SECTORS
