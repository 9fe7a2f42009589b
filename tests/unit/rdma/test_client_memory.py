"""Registered memory of a client: what devices refuse, and how it comes back."""

import mmap
from collections.abc import Iterator

import pytest

from memkv._hotpath import address_of
from memkv.rdma.client_memory import ClientMemory, MemoryMode, RdmaOptions
from memkv.rdma.verbs import REMOTE, Access, VerbsError
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs

SIZE = 1 << 16
ROOM = mmap.mmap(-1, 4 * SIZE)
ADDRESS = address_of(ROOM)


def made(verbs: FakeVerbs, mode: MemoryMode = MemoryMode.ARENA) -> ClientMemory:
    return ClientMemory(lambda: verbs, RdmaOptions(mode))


@pytest.fixture
def memory(fabric: FakeFabric) -> Iterator[ClientMemory]:
    memory = made(FakeVerbs(fabric, ["client0", "client1"]))
    yield memory
    memory.close()


def test_nothing_is_opened_before_the_first_region(
    fabric: FakeFabric, memory: ClientMemory
) -> None:
    memory.mend()
    assert memory.ports() == []
    assert fabric.open_objects() == {}
    memory.add(1, ADDRESS, SIZE)
    assert fabric.open_objects() == {"devices": 2, "regions": 2}
    assert not memory.is_incomplete


@pytest.mark.parametrize("mode", MemoryMode)
def test_rights_are_those_of_the_mode(fabric: FakeFabric, mode: MemoryMode) -> None:
    memory = made(FakeVerbs(fabric, ["client0"]), mode)
    memory.add(1, ADDRESS, SIZE)
    [registration] = fabric.registrations
    is_remote = bool(registration.access & REMOTE)
    assert is_remote is (mode is MemoryMode.ARENA)
    assert bool(registration.access & Access.WINDOWS) is (mode is MemoryMode.STRICT)
    found = memory.find(1, 0)
    assert found is not None
    assert bool(found.key) is is_remote
    memory.close()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_region_is_with_all_devices_or_none(
    fabric: FakeFabric, memory: ClientMemory, nth: int
) -> None:
    memory.add(1, ADDRESS, SIZE)
    fabric.knobs.fails_at["region"] = nth
    memory.add(2, ADDRESS + SIZE, SIZE)
    assert memory.find(2, 0) is None
    assert memory.is_incomplete
    assert len(memory.refused) == 1
    assert set(memory.regions(0)) == {1}
    assert fabric.open_objects() == {"devices": 2, "regions": 2}
    memory.mend()
    assert memory.find(2, 1) is not None
    assert (memory.is_incomplete, memory.refused) == (False, [])


def test_a_refused_region_that_is_forgotten_is_not_tried_again(
    fabric: FakeFabric, memory: ClientMemory
) -> None:
    memory.add(1, ADDRESS, SIZE)
    fabric.knobs.fails_at["region"] = 1
    memory.add(2, ADDRESS + SIZE, SIZE)
    memory.remove(2)
    memory.mend()
    assert len(memory) == 1
    assert memory.refused == []
    assert not memory.is_incomplete


def test_devices_that_come_late_are_opened(fabric: FakeFabric) -> None:
    verbs = FakeVerbs(fabric, ["client0"], missing="install it")
    memory = made(verbs)
    memory.add(1, ADDRESS, SIZE)
    assert memory.problems == {"RDMA": "install it"}
    assert memory.is_incomplete
    verbs._missing = ""
    memory.mend()
    assert memory.problems == {}
    assert memory.find(1, 0) is not None
    memory.close()


def test_a_device_that_is_back_has_other_keys(fabric: FakeFabric, memory: ClientMemory) -> None:
    memory.add(1, ADDRESS, SIZE)
    before = [memory.find(1, number) for number in range(2)]
    fabric.remove_device("client0")
    assert {port.device_number for port in memory.ports()} == {1}
    memory.mend()
    assert memory.is_incomplete
    fabric.add_device("client0")
    memory.mend()
    assert not memory.is_incomplete
    assert memory.find(1, 0) != before[0]
    assert memory.find(1, 1) is before[1]
    assert {port.device_number for port in memory.ports()} == {0, 1}
    assert fabric.open_objects() == {"devices": 2, "regions": 2}


def test_a_dmabuf_that_is_refused_is_an_error_and_forgotten(memory: ClientMemory) -> None:
    with pytest.raises(VerbsError, match="dma-buf"):
        memory.add_dmabuf(1, 0, 0, SIZE)
    assert not memory.is_incomplete
    assert memory.refused == []
