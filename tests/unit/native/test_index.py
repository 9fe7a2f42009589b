"""The block index: the native one against its oracle, handle numbers included."""

import struct
from typing import Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memkv import _hotpath
from memkv.testing import hotpath_oracle as oracle

TENANTS = st.integers(0, 1)
NUMBERS = st.integers(0, 12)  # few, so that most calls meet an entry
SECTORS = st.one_of(st.integers(0, 8), st.just(2**40 - 1))
STAMPS = st.integers(0, 2**33)
SLOTS = st.integers(0, 3)
TIMES = st.integers(0, 3)


def block_id(number: int) -> bytes:
    """Ids that differ in their first byte, and so in few bits of a tag."""
    return struct.pack("<BxxxIQQQ", number, 0, number // 2, 0, 0)


class Index(Protocol):
    """What both indexes are here: the machine calls methods by name."""

    def __len__(self) -> int: ...


class Comparison(RuleBasedStateMachine):
    """Every call goes to both; they must answer alike."""

    @initialize(
        capacity=st.integers(1, 30), tag_bits=st.sampled_from([1, 3, 5, 64, 65, 128]),
        check_tenant=st.booleans(), hash_key=st.binary(min_size=16, max_size=16),
        filled=st.lists(st.tuples(TENANTS, NUMBERS, SECTORS, TIMES), max_size=20),
    )
    def open(
        self, capacity: int, tag_bits: int, check_tenant: bool, hash_key: bytes,
        filled: list[tuple[int, int, int, int]],
    ) -> None:
        self.native = _hotpath.BlockIndex(
            capacity, tag_bits=tag_bits, check_tenant=check_tenant, hash_key=hash_key
        )
        self.slow = oracle.BlockIndex(
            capacity, tag_bits=tag_bits, check_tenant=check_tenant, hash_key=hash_key
        )
        for tenant, number, sector, expiry_s in filled:
            self.both("insert", tenant, block_id(number), number % 4, sector, 1, expiry_s, 0, 0)

    def both(self, method: str, *arguments: object) -> object:
        found, expected = (self.answer(index, method, arguments) for index in self.indexes())
        assert found == expected, (method, arguments)
        return found

    def indexes(self) -> tuple[Index, Index]:
        return self.native, self.slow

    @staticmethod
    def answer(index: Index, method: str, arguments: tuple[object, ...]) -> object:
        try:
            return getattr(index, method)(*arguments)
        except ValueError:
            return ValueError

    def handle(self, draw: int) -> int:
        """A number that is mostly a handle, sometimes one that was given back or never given."""
        return draw % (self.slow.handles_end + 1)

    @rule(
        tenant=TENANTS, number=NUMBERS, slot=SLOTS, sector=SECTORS, sectors=st.integers(1, 65535),
        expiry_s=TIMES, depth=st.sampled_from([0, 7, 65535, 65536, 2**32 - 1]), stamp=STAMPS,
    )
    def insert(
        self, tenant: int, number: int, slot: int, sector: int, sectors: int, expiry_s: int,
        depth: int, stamp: int,
    ) -> None:
        self.both(
            "insert", tenant, block_id(number), slot, sector, sectors, expiry_s, depth, stamp
        )

    @rule(tenant=TENANTS, number=NUMBERS)
    def find(self, tenant: int, number: int) -> None:
        self.both("find", tenant, block_id(number))

    @rule(draw=NUMBERS)
    def remove(self, draw: int) -> None:
        self.both("remove", self.handle(draw))

    @rule(tenant=TENANTS, number=NUMBERS, sector=SECTORS)
    def remove_if_at(self, tenant: int, number: int, sector: int) -> None:
        self.both("remove_if_at", tenant, block_id(number), sector)

    @rule(draw=NUMBERS, sector=st.one_of(SECTORS, st.just(2**40)))
    def relocate(self, draw: int, sector: int) -> None:
        self.both("relocate", self.handle(draw), sector)

    @rule(draw=NUMBERS, buffer=st.sampled_from([-2, -1, 0, 5, 2**32 - 2, 2**32 - 1]))
    def set_buffer(self, draw: int, buffer: int) -> None:
        self.both("set_buffer", self.handle(draw), buffer)

    @rule(draw=NUMBERS, flags=st.integers(0, 65535), expiry_s=TIMES)
    def set_flags_and_expiry(self, draw: int, flags: int, expiry_s: int) -> None:
        self.both("set_flags", self.handle(draw), flags)
        self.both("set_expiry_s", self.handle(draw), expiry_s)

    @rule(draw=NUMBERS, stamp=STAMPS)
    def touch(self, draw: int, stamp: int) -> None:
        self.both("touch", self.handle(draw), stamp)

    @rule(tenant=TENANTS, numbers=st.lists(NUMBERS, max_size=20), now_s=TIMES, stamp=STAMPS)
    def batch(self, tenant: int, numbers: list[int], now_s: int, stamp: int) -> None:
        ids = b"".join(map(block_id, numbers))
        self.both("exists_many", tenant, ids, now_s)
        self.both("touch_many", self.both("find_many", tenant, ids, now_s), stamp)

    @rule(first=st.integers(0, 8), count=st.integers(0, 4))
    def remove_sectors(self, first: int, count: int) -> None:
        self.both("remove_sectors", first, first + count)

    @precondition(lambda self: len(self.slow) > 5)
    @rule()
    def clear(self) -> None:
        self.both("clear")

    @invariant()
    def same_entries(self) -> None:
        assert len(self.native) == len(self.slow)
        assert self.native.handles_end == self.slow.handles_end
        for handle in range(self.slow.handles_end + 1):
            for field in (
                "location", "expiry_s", "stamp", "slot", "tenant", "depth", "buffer", "flags"
            ):
                self.both(field, handle)

    @invariant()
    def same_slots(self) -> None:
        for slot in range(4):
            self.both("handles_of_slot", slot)
            self.both("handles_of_slot", slot, 2, 6)

    @invariant()
    def same_blocks(self) -> None:
        for tenant in range(3):
            self.both("blocks_of_tenant", tenant, 0, 0xFFFFFFFF, 50)
            self.both("blocks_of_tenant", tenant, 2, 6, 0)


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_block_costs_at_most_60_bytes() -> None:
    for capacity in (1000, 2**20, 2**20 + 1, 10_000_000):
        index = _hotpath.BlockIndex(capacity)  # maps, touches nothing
        assert index.memory_bytes / capacity <= 60
        assert index.capacity == capacity


def test_a_full_index_refuses_and_takes_again() -> None:
    index = _hotpath.BlockIndex(1)
    assert index.insert(1, block_id(1), 0, 0, 1, 0, 0, 0) == 0
    assert index.insert(1, block_id(1), 0, 0, 1, 0, 0, 0) == -2
    assert index.insert(1, block_id(2), 0, 0, 1, 0, 0, 0) == -1
    index.remove(0)
    assert index.insert(1, block_id(2), 0, 0, 1, 0, 0, 0) == 0


def test_tenants_do_not_see_each_other() -> None:
    index = _hotpath.BlockIndex(10)
    index.insert(1, block_id(1), 0, 5, 1, 0, 0, 0)
    assert index.find(2, block_id(1)) == -1
    assert not index.remove_if_at(2, block_id(1), 5)
    assert index.insert(2, block_id(1), 0, 6, 1, 0, 0, 0) == 1
    assert index.remove_if_at(1, block_id(1), 5)
    assert index.find(2, block_id(1)) == 1


def test_with_the_tenant_check_off_they_do() -> None:
    index = _hotpath.BlockIndex(10, check_tenant=False)
    index.insert(1, block_id(1), 0, 5, 1, 0, 0, 0)
    assert index.find(2, block_id(1)) == 0
    assert index.insert(2, block_id(1), 0, 6, 1, 0, 0, 0) == -2


def test_the_head_of_a_batch_is_stamped_youngest() -> None:
    index = _hotpath.BlockIndex(10)
    for number in range(4):
        index.insert(1, block_id(number), 0, number, 1, 0, 0, 0)
    index.touch_many(struct.pack("<5i", 2, 0, -1, 3, 9), 100)
    assert [index.stamp(handle) for handle in range(4)] == [103, 0, 104, 101]


def test_a_long_slot_is_listed_whole_and_in_parts() -> None:
    index = _hotpath.BlockIndex(20_000)
    for number in range(20_000):
        index.insert(1, struct.pack("<QQQQ", number, 0, 0, 0), number % 2, 0, 1, 0, 0, 0)
    odd = struct.pack("<10000I", *range(1, 20_000, 2))
    assert index.handles_of_slot(1) == odd
    parts = (index.handles_of_slot(1, at, at + 999) for at in range(0, index.handles_end, 999))
    assert b"".join(parts) == odd


@pytest.mark.parametrize(
    "arguments",
    [{"capacity": 0}, {"capacity": 2**31}, {"tag_bits": 0}, {"tag_bits": 129}],
)
def test_odd_tables_are_refused(arguments: dict[str, int]) -> None:
    wanted = {"capacity": 1, "tag_bits": 128} | arguments
    for module in (_hotpath, oracle):
        with pytest.raises(ValueError):
            module.BlockIndex(wanted["capacity"], tag_bits=wanted["tag_bits"])


@pytest.mark.parametrize("field", ["tenant", "slot", "sector", "sectors", "expiry_s", "depth"])
def test_numbers_that_do_not_fit_are_refused(field: str) -> None:
    index = _hotpath.BlockIndex(1)
    numbers = dict.fromkeys(["tenant", "slot", "sector", "sectors", "expiry_s", "depth"], 1)
    for bad in (-1, 2**40):
        wrong = numbers | {field: bad}
        with pytest.raises((OverflowError, ValueError)):
            index.insert(
                wrong["tenant"], block_id(1), wrong["slot"], wrong["sector"], wrong["sectors"],
                wrong["expiry_s"], wrong["depth"], 0,
            )
    assert len(index) == 0


def test_ids_of_another_length_are_refused() -> None:
    index = _hotpath.BlockIndex(1)
    for odd in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="bytes"):
            index.find(1, odd)
        with pytest.raises(ValueError, match="bytes"):
            index.find_many(1, odd + b"\0" * (odd == b""), 0)
