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


SMALL, LARGE = 3, 12
GUARANTEES = {1: 10, 2: 6}


class Cache:
    """Named extents of three tenants, as an index would point at them; one of these guaranteed
    nothing. Each extent holds its handle, so that one that was moved is known by its content."""

    def __init__(self) -> None:
        self.arena = Arena(SECTORS * 4096, self.point)
        self.at: dict[int, int] = {}
        self.tenant: dict[int, int] = {}
        self.evicted_by = 0
        self.arena.guarantee(GUARANTEES)

    def point(self, handle: int, start: int) -> None:
        if start >= 0:
            self.at[handle] = start
            return
        del self.at[handle]
        owner = self.tenant[handle]
        held = self.arena.held_sectors(owner)
        mine = owner == self.evicted_by or owner not in GUARANTEES
        assert mine or held > GUARANTEES[owner], "others took what is guaranteed"

    def add(self, handle: int, tenant: int, sectors: int) -> bool:
        self.evicted_by = tenant
        extent = self.arena.allocate(sectors, tenant)
        if extent is None:
            return False
        extent.view[:8] = handle.to_bytes(8, "big")
        self.at[handle], self.tenant[handle] = extent.start, tenant
        self.arena.name(extent, handle)
        self.arena.release(extent)
        return True

    def check(self) -> None:
        self.arena.check_invariants()
        for handle, start in self.at.items():
            extent = self.arena.get(start)
            assert bytes(extent.view[:8]) == handle.to_bytes(8, "big")
            assert (extent.start, extent.handle) == (start, handle)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 6), st.sampled_from("aaaad")), max_size=60
    )
)
def test_what_a_tenant_is_guaranteed_is_never_taken_for_others(
    steps: list[tuple[int, int, str]],
) -> None:
    cache = Cache()
    for handle, (tenant, size, what) in enumerate(steps):
        if what == "a":
            cache.add(handle, tenant, size)
        elif cache.at:
            victim = list(cache.at)[size % len(cache.at)]
            cache.arena.drop(cache.at.pop(victim))
        cache.check()


def test_a_tenant_gets_its_guarantee_however_much_others_hold_in_use() -> None:
    arena = Arena(SECTORS * 4096, lambda _handle, _start: None)
    arena.guarantee(GUARANTEES)
    held = []
    while (extent := arena.allocate(2)) is not None:
        held.append(extent)
    assert len(held) == (SECTORS - sum(GUARANTEES.values())) // 2
    mine = [arena.allocate(1, 1) for _ in range(GUARANTEES[1])]
    assert None not in mine
    assert arena.allocate(1, 1) is None


def test_guaranteed_extents_are_moved_where_they_lie_in_the_way_of_a_long_one() -> None:
    cache = Cache()
    cache.arena.guarantee({1: SMALL * 4})
    for handle in range(4):  # one of the tenant, then one of somebody else's, and so on
        assert cache.add(handle, 1, SMALL)
        assert cache.add(100 + handle, 0, SMALL)
    before = {handle: cache.at[handle] for handle in range(4)}
    assert cache.add(200, 0, LARGE)
    cache.check()
    assert before.keys() <= cache.at.keys()
    assert any(cache.at[handle] != start for handle, start in before.items())
