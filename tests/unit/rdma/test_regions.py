"""What a node takes for memory of a client, and what it does not."""

import pytest

from memkv.rdma.regions import ClientRegions, Piece
from memkv.status import Status
from memkv.wire.local import Access, Part
from memkv.wire.rdma import RdmaRegister

BOTH = Access.READ | Access.WRITE
SIZE = 1000


def regions(**changes: int) -> ClientRegions:
    found = ClientRegions(regions_max=3)
    fields = {"region": 1, "device": 0, "access": BOTH, "key": 77, "address": 5000} | changes
    assert found.register(RdmaRegister(**fields, size_bytes=SIZE)) is Status.OK
    return found


def test_parts_become_addresses_with_the_regions_key() -> None:
    parts = [Part(1, 0, 1), Part(1, SIZE - 10, 10), Part(1, 0, SIZE, key=9)]
    assert regions().locate(parts, 0, Access.WRITE) == [
        Piece(5000, 77, 1), Piece(5990, 77, 10), Piece(5000, 77, SIZE)
    ]  # fmt: skip


def test_a_region_without_a_key_takes_that_of_each_part() -> None:
    strict = regions(key=0)
    assert strict.locate([Part(1, 4, 5, key=9)], 0, Access.READ) == [Piece(5004, 9, 5)]
    assert strict.locate([Part(1, 4, 5)], 0, Access.READ) is None


@pytest.mark.parametrize(
    "part",
    [
        Part(2, 0, 1), Part(1, SIZE, 1), Part(1, 1, SIZE), Part(1, (1 << 64) - 1, 2),
        Part(1, 0, SIZE + 1), Part(1, SIZE + 1, 0),
    ],
)  # fmt: skip
def test_one_wrong_part_refuses_all(part: Part) -> None:
    assert regions().locate([Part(1, 0, 1), part], 0, Access.WRITE) is None


def test_device_and_access_count() -> None:
    assert regions().locate([Part(1, 0, 1)], 1, Access.WRITE) is None
    assert regions(access=Access.READ).locate([Part(1, 0, 1)], 0, Access.WRITE) is None
    assert regions(access=Access.WRITE).locate([Part(1, 0, 1)], 0, Access.READ) is None


def test_there_are_so_many_and_each_once() -> None:
    found = regions()
    again = RdmaRegister(1, 0, BOTH, 5, 0, 1)
    assert found.register(again) is Status.INVALID
    assert found.register(RdmaRegister(1, 1, BOTH, 5, 0, 1)) is Status.OK
    assert found.register(RdmaRegister(2, 0, BOTH, 5, 0, 1)) is Status.OK
    assert found.register(RdmaRegister(3, 0, BOTH, 5, 0, 1)) is Status.BUSY
    assert found.unregister(1, 0) is Status.OK
    assert found.unregister(1, 0) is Status.MISS
    assert found.register(RdmaRegister(3, 0, BOTH, 5, 0, 1)) is Status.OK
    assert len(found) == 3
    assert found.locate([Part(1, 0, 1)], 0, Access.READ) is None
