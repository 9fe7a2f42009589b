"""Which port of a node a client gets, and what becomes of it when ports change."""

import errno
import mmap
from collections.abc import Iterator
from dataclasses import replace

import pytest

from memkv import limits
from memkv.rdma.rails import RailOptions, Rails, Refused
from memkv.rdma.verbs import REMOTE, LinkLayer, Peer, VerbsError
from memkv.status import Status
from memkv.testing.clock import ManualClock
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.fake_verbs.queue_pair import FakeQueuePair
from memkv.wire.rdma import ConnectRequest, End


class Node:
    """Rails with their memory, and the cuts of lanes that were called."""

    def __init__(self, fabric: FakeFabric, names: list[str], near: int = -1) -> None:
        self.clock = ManualClock()
        self.memory = mmap.mmap(-1, 1 << 20)
        self.rails = Rails(
            FakeVerbs(fabric, names), memoryview(self.memory), RailOptions(near_numa_node=near),
            self.clock,
        )  # fmt: skip
        self.cuts: list[str] = []

    def connect(self, end: End, rail: int = 0) -> str:
        """Return the name of the rail that a client gets; it keeps its queue pair."""
        opened = self.rails.connect(ConnectRequest(end, 0, rail), lambda: self.cuts.append("cut"))
        return opened.rail.name


@pytest.fixture
def end(fabric: FakeFabric) -> End:
    """A client's port with a queue pair number that no node looks at."""
    fabric.add_device("client0")
    return end_of(fabric, "client0")


def end_of(fabric: FakeFabric, name: str) -> End:
    port = fabric.adapters[name].ports[1]
    return End(99, 1, port.mtu_bytes, port.lid, port.gids[-1].value)


@pytest.fixture
def node(fabric: FakeFabric) -> Iterator[Node]:
    node = Node(fabric, ["node0", "node1"])
    yield node
    node.rails.close()


def test_clients_get_the_rail_that_they_ask_for(node: Node, end: End) -> None:
    assert [node.connect(end, rail) for rail in range(4)] == [
        "node0/1", "node1/1", "node0/1", "node1/1"
    ]  # fmt: skip
    assert node.rails.queue_pairs == 4


def test_rails_near_the_drive_come_first(fabric: FakeFabric, end: End) -> None:
    fabric.add_device("far0", numa_node=0)
    fabric.add_device("near0", numa_node=1)
    node = Node(fabric, ["far0", "near0"], near=1)
    assert [node.connect(end, rail) for rail in range(2)] == ["near0/1", "far0/1"]
    node.rails.close()


def test_the_same_network_comes_first(fabric: FakeFabric, node: Node, end: End) -> None:
    other = bytes(10) + b"\xff\xff" + bytes([192, 168, 7, 1])
    gids = tuple(
        replace(gid, value=other) for gid in fabric.adapters["node0"].ports[1].gids
    )
    fabric.set_gids("node0", gids)
    node.rails.refresh()
    assert {node.connect(end, rail) for rail in range(3)} == {"node1/1"}


def test_infiniband_and_ethernet_do_not_mix(fabric: FakeFabric, node: Node, end: End) -> None:
    with pytest.raises(Refused, match="no infiniband port") as caught:
        node.connect(replace(end, lid=5))
    assert caught.value.status is Status.UNAVAILABLE
    fabric.add_device("ib0", link_layer=LinkLayer.INFINIBAND)
    both = Node(fabric, ["ib0", "node1"])
    assert both.connect(end, 0) == both.connect(end, 1) == "node1/1"
    both.rails.close()


def test_lanes_on_a_rail_that_goes_down_are_cut_once_each(
    fabric: FakeFabric, node: Node, end: End
) -> None:
    node.connect(end, 0)
    node.connect(end, 1)
    fabric.set_port("node0", False)
    for fd in node.rails.event_fds:
        node.rails.take_events(fd)
    assert node.cuts
    assert node.rails.usable == ["node1/1"]
    assert "down" in node.rails.problems["node0/1"]
    assert node.connect(end, 0) == "node1/1"
    fabric.set_port("node0", True)
    node.rails.refresh()
    assert node.rails.usable == ["node0/1", "node1/1"]


def test_what_no_event_tells_is_seen_after_a_while(
    fabric: FakeFabric, node: Node, end: End
) -> None:
    fabric.set_port("node0", False)
    node.clock.advance_ms(limits.RDMA_REFRESH_MS - 1)
    node.rails.refresh_at_times()
    assert len(node.rails.usable) == 2
    node.clock.advance_ms(1)
    node.rails.refresh_at_times()
    assert node.rails.usable == ["node1/1"]


def test_a_removed_device_is_opened_again_when_its_lanes_are_gone(
    fabric: FakeFabric, node: Node, end: End
) -> None:
    cut = node.cuts.clear
    opened = node.rails.connect(ConnectRequest(end, 0, 0), cut)
    fabric.remove_device("node0")
    fds = set(node.rails.event_fds)
    for fd in fds:
        node.rails.take_events(fd)
    assert node.rails.problems == {"node0": "the device was removed",
                                   "node0/1": "the device was removed"}  # fmt: skip
    fabric.add_device("node0")
    node.rails.refresh()
    assert set(node.rails.event_fds) == fds  # a lane is still on it
    opened.pair.close()
    node.rails.forget(opened.rail, cut)
    node.rails.refresh()
    node.rails.refresh()
    assert node.rails.problems == {}
    assert set(node.rails.event_fds) != fds
    assert len(node.rails.regions()) == 2
    assert not any(region.access & REMOTE for region in node.rails.regions())
    assert {node.connect(end, rail) for rail in range(2)} == {"node0/1", "node1/1"}


def test_a_refused_connection_leaves_nothing(fabric: FakeFabric, node: Node, end: End) -> None:
    fabric.knobs.fails_at["queue pair"] = 1
    with pytest.raises(Refused, match="no memory") as caught:
        node.connect(end)
    assert caught.value.status is Status.UNAVAILABLE
    assert node.rails.queue_pairs == 0
    assert node.connect(end)  # the address is not to blame


def test_an_attribute_that_is_refused_blames_no_address_however_slow_the_machine(
    node: Node, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def connect(_: FakeQueuePair, peer: Peer) -> None:
            node.clock.advance_ms(limits.RDMA_SLOW_CONNECT_MS)
            raise VerbsError("no such number", errno.EINVAL)

        patched.setattr(FakeQueuePair, "connect", connect)
        with pytest.raises(Refused, match="no such number"):
            node.connect(end)
    assert node.connect(end)


def test_an_address_that_was_waited_for_is_not_tried_again_soon(
    node: Node, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def connect(_: FakeQueuePair, peer: Peer) -> None:
        tries.append(peer)
        node.clock.advance_ms(1_000)  # the kernel looks for it
        raise VerbsError("no way to it")

    monkeypatch.setattr(FakeQueuePair, "connect", connect)
    for status in (Status.UNAVAILABLE, Status.BUSY, Status.BUSY):
        with pytest.raises(Refused) as caught:
            node.connect(end)
        assert caught.value.status is status
    assert len(tries) == 1
    node.clock.advance_ms(limits.RDMA_UNREACHABLE_MS)
    with pytest.raises(Refused):
        node.connect(end)
    assert len(tries) == 2
