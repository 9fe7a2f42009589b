"""Of which network ports are used: on nodes and on clients, of machines that have both."""

import mmap
from collections.abc import Iterator

import pytest

from memkv._hotpath import address_of
from memkv.rdma.client_memory import ClientMemory, RdmaOptions
from memkv.rdma.discovery import Fabric
from memkv.rdma.rails import RailOptions, Rails, RailStatistics
from memkv.rdma.verbs import LinkLayer
from memkv.testing.clock import ManualClock
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs

SIZE = 1 << 16
BOTH = {
    Fabric.AUTO: ["ib0/1", "roce0/1"],
    Fabric.ROCE_V2: ["roce0/1"],
    Fabric.INFINIBAND: ["ib0/1"],
}


@pytest.fixture
def memory() -> Iterator[memoryview]:
    with mmap.mmap(-1, SIZE) as mapped:
        view = memoryview(mapped)
        yield view
        view.release()


@pytest.fixture
def verbs(fabric: FakeFabric) -> FakeVerbs:
    fabric.add_device("ib0", link_layer=LinkLayer.INFINIBAND)
    fabric.add_device("roce0")
    return FakeVerbs(fabric, ["ib0", "roce0"])


@pytest.mark.parametrize("wanted", Fabric)
def test_a_node_serves_on_ports_of_the_fabric(
    fabric: FakeFabric, verbs: FakeVerbs, memory: memoryview, wanted: Fabric
) -> None:
    rails = Rails(verbs, memory, RailOptions(fabric=wanted), ManualClock())
    told = rails.statistics()
    assert told == RailStatistics(tuple(BOTH[wanted]))
    assert fabric.open_objects() == {"devices": len(BOTH[wanted]), "regions": len(BOTH[wanted])}
    rails.close()


@pytest.mark.parametrize("wanted", Fabric)
def test_a_client_registers_with_devices_of_the_fabric(
    fabric: FakeFabric, verbs: FakeVerbs, memory: memoryview, wanted: Fabric
) -> None:
    client = ClientMemory(lambda: verbs, RdmaOptions(fabric=wanted))
    client.add(0, address_of(memory), SIZE)
    assert [port.name for port in client.ports()] == BOTH[wanted]
    assert fabric.open_objects() == {"devices": len(BOTH[wanted]), "regions": len(BOTH[wanted])}
    client.close()


def test_another_fabric_is_a_problem_where_there_is_no_other(
    fabric: FakeFabric, memory: memoryview
) -> None:
    fabric.add_device("roce0")
    verbs = FakeVerbs(fabric, ["roce0"])
    why = {"roce0": "it has no port of infiniband, which is asked for"}
    rails = Rails(verbs, memory, RailOptions(fabric=Fabric.INFINIBAND), ManualClock())
    assert rails.statistics() == RailStatistics(problems=why)
    rails.close()
    client = ClientMemory(lambda: verbs, RdmaOptions(fabric=Fabric.INFINIBAND))
    client.add(0, address_of(memory), SIZE)
    assert client.ports() == []
    assert client.problems == why
    client.close()
