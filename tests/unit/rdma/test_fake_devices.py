"""The fake devices: opening, registering, connecting, ports, events and leaks."""

import gc
import os
import select
from collections.abc import Callable
from dataclasses import replace
from errno import EACCES, EBADF, EFAULT, EHOSTUNREACH, EINVAL, ENETUNREACH, ENODEV, ENOMEM
from errno import EOPNOTSUPP as UNSUPPORTED
from pathlib import Path

import pytest

from memkv.rdma.verbs import (
    REMOTE,
    Access,
    Completion,
    Event,
    EventKind,
    GidType,
    LinkLayer,
    MemoryRegion,
    Peer,
    QueuePair,
    VerbsError,
    Window,
)
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs, Registration
from memkv.testing.verbs_ends import OPEN, End, Ends, Memory

MIB = 1 << 20
LOCAL = Access.LOCAL_WRITE


def number(caught: pytest.ExceptionInfo[VerbsError]) -> int:
    return caught.value.number


# --- devices -------------------------------------------------------------------------------------


def test_a_machine_sees_its_own_devices(fabric: FakeFabric) -> None:
    fabric.add_device("mlx5_1", ports=2, numa_node=1, mtu_bytes=1024)
    one, other = FakeVerbs(fabric, ["mlx5_1", "mlx5_0"]), FakeVerbs(fabric, ["rxe0"])
    assert one.device_names() == ["mlx5_0", "mlx5_1"]
    assert other.device_names() == ["rxe0"]
    device = one.open("mlx5_1")
    assert (device.name, device.numa_node) == ("mlx5_1", 1)
    assert [(port.number, port.mtu_bytes) for port in device.ports()] == [(1, 1024), (2, 1024)]
    gids = {gid.value for port in device.ports() for gid in port.gids}
    assert len(gids) == 4, "each port has its own"
    device.close()
    device.close()
    for call in (device.ports, device.events, device.allocate_window):
        with pytest.raises(VerbsError) as caught:
            call()
        assert number(caught) == EBADF


def test_devices_that_cannot_be_opened(fabric: FakeFabric) -> None:
    verbs = FakeVerbs(fabric, ["rxe0"])
    FakeVerbs(fabric, ["rxe1"])
    with pytest.raises(VerbsError) as caught:
        verbs.open("rxe1")
    assert number(caught) == ENODEV
    fabric.forbid("rxe0")
    with pytest.raises(VerbsError) as caught:
        verbs.open("rxe0")
    assert number(caught) == EACCES
    missing = FakeVerbs(fabric, ["rxe0"], missing="no pyverbs: apt install python3-pyverbs")
    for call in (missing.device_names, lambda: missing.open("rxe0")):
        with pytest.raises(VerbsError, match="apt install"):
            call()


def test_ports_of_infiniband(fabric: FakeFabric) -> None:
    for name in ("ib0", "ib1"):
        fabric.add_device(name, link_layer=LinkLayer.INFINIBAND)
    verbs = FakeVerbs(fabric, ["ib0", "ib1"])
    with Ends((verbs, "ib0"), (verbs, "ib1")) as ends:
        assert ends.client.gid.type is GidType.INFINIBAND
        assert ends.client.port.lid != ends.server.port.lid != 0
        ends.server.write(ends.client, 9)
        ends.server.done()
        end = End(ends.client_device, 4096)
        with pytest.raises(VerbsError):
            end.queue_pair.connect(replace(ends.server.peer(), lid=99))
        end.close()


# --- registering ---------------------------------------------------------------------------------


def test_registrations_are_listed_with_their_rights(fabric: FakeFabric, ends: Ends) -> None:
    ends.server.register(LOCAL)
    assert fabric.registrations == [
        Registration("client0", ends.client.address, MIB, OPEN),
        Registration("server0", ends.server.address, MIB, OPEN),
        Registration("server0", ends.server.address, MIB, LOCAL),
    ]


@pytest.mark.parametrize(
    ("first", "size_bytes", "access", "error"),
    [
        (0, 0, LOCAL, EINVAL),
        (0, 9, Access.REMOTE_WRITE, EINVAL),
        (0, 1 << 46, LOCAL, EFAULT),
    ],
    ids=["nothing", "REMOTE_WRITE without LOCAL_WRITE", "not mapped"],
)
def test_registrations_refused(
    ends: Ends, first: int, size_bytes: int, access: Access, error: int
) -> None:
    with pytest.raises(VerbsError) as caught:
        ends.client.device.register(ends.client.address + first, size_bytes, access)
    assert number(caught) == error


def test_memory_that_cannot_be_written(ends: Ends) -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(line for line in maps if line.split()[1] == "r--p")
    address = int(library.split("-")[0], 16)
    ends.client.device.register(address, 4096, Access.REMOTE_READ).close()
    with pytest.raises(VerbsError) as caught:
        ends.client.device.register(address, 4096, LOCAL)
    assert number(caught) == EFAULT


def test_unmapping_registered_memory_is_noted(fabric: FakeFabric, ends: Ends) -> None:
    memory = Memory(1 << 24)
    region = ends.client.device.register(memory.address, memory.size_bytes, OPEN)
    memory.close()
    region.close()
    assert fabric.complaints == ["client0: registered memory was unmapped"]
    fabric.complaints.clear()


def test_dmabuf(fabric: FakeFabric, ends: Ends) -> None:
    """Peers name it by its offset, which is no address of this process."""
    fd = os.memfd_create("accelerator")
    os.ftruncate(fd, 3 * 4096)
    arguments = (fd, 4096, 2 * 4096, OPEN)
    with pytest.raises(VerbsError) as caught:
        ends.client.device.register_dmabuf(*arguments)
    assert number(caught) == UNSUPPORTED
    fabric.knobs.accepts_dmabuf = True
    region = ends.client.device.register_dmabuf(*arguments)
    server = ends.server
    operands = (server.address, 5000, server.region.local_key, 4096 + 3, region.remote_key)
    server.queue_pair.write(1, *operands)
    server.done()
    assert os.pread(fd, 5000, 4096 + 3) == server.memory.bytes[:5000]
    region.close()
    with pytest.raises(VerbsError):
        ends.client.device.register_dmabuf(fd, 4096, 3 * 4096, OPEN)
    os.close(fd)


@pytest.mark.parametrize("kind", ["region", "window", "queue pair"])
def test_the_nth_of_a_kind_fails(fabric: FakeFabric, ends: Ends, kind: str) -> None:
    device, address = ends.client.device, ends.client.address
    fabric.knobs.fails_at[kind] = 3
    makers: dict[str, Callable[[], MemoryRegion | Window | QueuePair]] = {
        "region": lambda: device.register(address, 4096, OPEN),
        "window": device.allocate_window,
        "queue pair": lambda: device.open_queue_pair(1, 3, 4, LOCAL),
    }
    errors = []
    for _ in range(5):
        try:
            makers[kind]().close()
            errors.append(0)
        except VerbsError as error:
            errors.append(error.number)
    assert errors == [0, 0, ENOMEM, 0, 0]


# --- connecting ----------------------------------------------------------------------------------

PEERS: dict[str, tuple[Callable[[Peer], Peer], int]] = {
    "another GID": (lambda peer: replace(peer, gid=bytes(15) + b"\1"), EHOSTUNREACH),
    "a GID of 4 bytes": (lambda peer: replace(peer, gid=bytes(4)), EINVAL),
    "queue pair 0": (lambda peer: replace(peer, queue_pair=0), EINVAL),
    "queue pair of 25 bits": (lambda peer: replace(peer, queue_pair=1 << 24), EINVAL),
    "sequence of 25 bits": (lambda peer: replace(peer, sequence=1 << 24), EINVAL),
    "an odd MTU": (lambda peer: replace(peer, mtu_bytes=1500), EINVAL),
}


@pytest.mark.parametrize("case", PEERS)
def test_peers_refused(ends: Ends, case: str) -> None:
    change, error = PEERS[case]
    end = End(ends.client_device, 4096)
    with pytest.raises(VerbsError) as caught:
        end.queue_pair.connect(change(ends.server.peer()))
    assert number(caught) == error
    end.queue_pair.connect(ends.server.peer())
    with pytest.raises(VerbsError, match="is connected"):
        end.queue_pair.connect(ends.server.peer())
    end.close()


def other_gid(ends: Ends, peer: Peer) -> Peer:
    """The same port by its link-local address."""
    end = ends.client if peer.gid == ends.client.gid.value else ends.server
    return replace(peer, gid=end.port.gids[1].value)


LOST: dict[str, Callable[[Ends, Peer], Peer]] = {
    "another sequence": lambda ends, peer: replace(peer, sequence=peer.sequence ^ 1),
    "another queue pair": lambda ends, peer: replace(peer, queue_pair=peer.queue_pair ^ 1),
    "another GID": other_gid,
}


@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("side", ["client", "server"])
def test_requests_to_a_peer_that_expects_others_are_lost(
    fabric: FakeFabric, ends: Ends, case: str, side: str
) -> None:
    """Each side may have been told something wrong. What the server's sequence is does not matter
    to its own requests."""
    client, server = End(ends.client_device, 4096), End(ends.server_device, 4096)
    told = {"client": server.peer(), "server": client.peer()}
    told[side] = LOST[case](ends, told[side])
    client.queue_pair.connect(told["client"])
    server.queue_pair.connect(told["server"])
    server.write(client, 9)
    fabric.settle()
    is_lost = (case, side) != ("another sequence", "server")
    assert len(server.queue_pair.poll()) == (0 if is_lost else 1)
    client.close()
    server.close()


def test_requests_wait_for_a_peer_that_is_not_connected_yet(fabric: FakeFabric, ends: Ends) -> None:
    client, server = End(ends.client_device, 4096), End(ends.server_device, 4096)
    server.queue_pair.connect(client.peer())
    server.write(client, 9)
    fabric.settle()
    assert server.queue_pair.poll() == []
    client.queue_pair.connect(server.peer())
    server.done()
    client.close()
    server.close()


def test_the_smaller_mtu_counts_on_both_sides(fabric: FakeFabric) -> None:
    fabric.add_device("small", mtu_bytes=1024)
    verbs = FakeVerbs(fabric, ["small", "large"])
    with Ends((verbs, "small"), (verbs, "large")) as ends:
        ends.server.write(ends.client, 5000)
        ends.server.done()
        client, server = End(ends.client_device, 4096), End(ends.server_device, 4096)
        client.queue_pair.connect(server.peer())
        server.queue_pair.connect(replace(client.peer(), mtu_bytes=4096))
        server.write(client, 4000)
        assert server.wait() == [Completion(1, "remote invalid request error", False)]
        client.close()
        server.close()


def test_queue_pairs_refused(ends: Ends) -> None:
    device = ends.client.device
    for arguments in ((2, 3, 4, LOCAL), (1, 9, 4, LOCAL), (1, 3, 0, LOCAL), (1, 3, 4, OPEN)):
        with pytest.raises(VerbsError) as caught:
            device.open_queue_pair(*arguments)
        assert number(caught) == EINVAL
    pair = device.open_queue_pair(1, 3, 4, LOCAL | REMOTE, traffic_class=106)
    with pytest.raises(VerbsError, match="not connected"):
        pair.write(1, 0, 9, 0, 0, 0)
    pair.close()


# --- ports and events ----------------------------------------------------------------------------


def test_a_port_that_goes_down_holds_what_is_on_its_way(fabric: FakeFabric, ends: Ends) -> None:
    client, server = ends.client, ends.server
    for name in ("client0", "server0"):
        fabric.hold(after_pieces=3)
        server.write(client, MIB)
        fabric.settle()
        fabric.set_port(name, False)
        client.memory.fill(b"\0")
        fabric.release()
        fabric.settle()
        assert server.queue_pair.poll() == []
        assert client.memory.bytes[:] == bytes(MIB)
        fabric.set_port(name, True)
        server.done()
    events = client.device.events()
    assert events == [
        Event(EventKind.PORT_DOWN, 1, "port error"),
        Event(EventKind.PORT_UP, 1, "port active"),
    ]
    assert client.device.events() == []


def test_events_make_their_fd_readable(fabric: FakeFabric, ends: Ends) -> None:
    device = ends.client.device
    second = FakeVerbs(fabric, ["client0"]).open("client0")
    assert not select.select([device.event_fd, second.event_fd], [], [], 0)[0]
    fabric.set_port("client0", False)
    assert len(select.select([device.event_fd, second.event_fd], [], [], 0)[0]) == 2
    (port,) = device.ports()
    assert (port.is_active, port.state) == (False, "down")
    device.events()
    assert select.select([device.event_fd, second.event_fd], [], [], 0)[0] == [second.event_fd]
    second.close()


def test_no_connecting_through_a_port_that_is_down(fabric: FakeFabric, ends: Ends) -> None:
    for name, error in (("client0", ENETUNREACH), ("server0", EHOSTUNREACH)):
        end = End(ends.client_device, 4096)
        fabric.set_port(name, False)
        with pytest.raises(VerbsError) as caught:
            end.queue_pair.connect(ends.server.peer())
        assert number(caught) == error
        fabric.set_port(name, True)
        end.close()


def test_a_gid_that_goes_away(fabric: FakeFabric, ends: Ends) -> None:
    gids = ends.client.port.gids
    end = End(ends.client_device, 4096)
    fabric.set_gids("client0", gids[:2])
    assert ends.client.device.events() == [Event(EventKind.GIDS_CHANGED, 1, "GID table change")]
    assert ends.client.device.ports()[0].gids == gids[:2]
    with pytest.raises(VerbsError, match="no longer in the table"):
        end.queue_pair.connect(ends.server.peer())
    fabric.set_gids("client0", gids)
    for one in (ends.client, ends.server):
        fabric.set_gids(one.device.name, one.port.gids[:2])
        ends.server.write(ends.client, 9)
        fabric.settle()
        assert ends.server.queue_pair.poll() == []
        fabric.set_gids(one.device.name, one.port.gids)
        ends.server.done()
    end.close()


@pytest.mark.parametrize("name", ["client0", "server0"])
def test_a_device_that_is_pulled_out(fabric: FakeFabric, ends: Ends, name: str) -> None:
    end = ends.client if name == "client0" else ends.server
    fabric.hold(after_pieces=3)
    ends.server.write(ends.client, MIB)
    fabric.settle()
    fabric.remove_device(name)
    ends.client.memory.fill(b"reused")
    content = ends.client.memory.bytes[:]
    fabric.release()
    fabric.settle()
    assert ends.client.memory.bytes[:] == content
    assert end.device.events() == [Event(EventKind.DEVICE_GONE, 0, "device fatal error")]
    flushed = [Completion(1, "WR flush error", True)] if name == "server0" else []
    assert ends.server.queue_pair.poll() == flushed
    assert FakeVerbs(fabric, [name]).device_names() == []
    for call in (end.device.ports, end.device.allocate_window, lambda: end.register(LOCAL)):
        with pytest.raises(VerbsError) as caught:
            call()
        assert number(caught) == ENODEV
    fabric.add_device(name)
    FakeVerbs(fabric, [name]).open(name).close()


# --- leaks ---------------------------------------------------------------------------------------


def test_what_is_open_is_counted() -> None:
    gc.collect()  # of what tests before this one left open
    before = len(os.listdir("/proc/self/fd"))
    with FakeFabric() as fabric:
        verbs = FakeVerbs(fabric, ["a", "b"])
        ends = Ends((verbs, "a"), (verbs, "b"))
        ends.client.window()
        kinds = {"devices": 2, "regions": 2, "windows": 1, "queue pairs": 2}
        assert fabric.open_objects() == kinds
        ends.client.close()
        assert fabric.open_objects() == {"devices": 2, "regions": 1, "queue pairs": 1}
        ends.server_device.close()
        assert fabric.open_objects() == {"devices": 1}
        ends.close()
        assert fabric.open_objects() == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_a_device_closes_what_was_opened_of_it(fabric: FakeFabric, ends: Ends) -> None:
    ends.client.bound(Access.REMOTE_WRITE, 0, 9)
    ends.client.device.close()
    assert fabric.open_objects() == {"devices": 1, "regions": 1, "queue pairs": 1}
