"""The driver on a real kernel's RDMA device: soft-RoCE within the micro VM, or a NIC.

Both queue pairs are this process's own, on one device. Run with -s: it prints what it saw.
"""

import ctypes
import errno
import logging
import mmap
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv.rdma.driver import PyVerbs
from memkv.rdma.verbs import (
    REMOTE,
    Access,
    Completion,
    Device,
    Event,
    EventKind,
    GidType,
    Peer,
    Port,
    QueuePair,
    VerbsError,
)

NAMES = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
pytestmark = pytest.mark.skipif(not NAMES, reason="no RDMA device (it runs within the micro VM)")

DEPTH = 8
LENGTH = 2 * MIB
PAGE = 4096
DEADLINE_S = 60.0
LOCAL, BOTH = Access.LOCAL_WRITE, Access.LOCAL_WRITE | REMOTE


class Memory:
    """Pages that begin and end where devices want them."""

    def __init__(self, size_bytes: int) -> None:
        self.bytes = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def is_zero(self) -> bool:
        return self.bytes[:] == bytes(len(self.bytes))


@dataclass
class Ends:
    """A node's end and a client's end of one connection, and memory for each."""

    device: Device
    node: QueuePair
    client: QueuePair
    staging: Memory
    arena: Memory


@pytest.fixture
def device() -> Iterator[Device]:
    opened = PyVerbs().open(NAMES[0])
    yield opened
    opened.close()


def usable(device: Device) -> tuple[Port, int]:
    """Any port that is up, and a routable GID of it."""
    for port in device.ports():
        for gid in port.gids:
            if port.is_active and gid.type is not GidType.ROCE_V1 and gid.value[:2] != b"\xfe\x80":
                return port, gid.index
    raise AssertionError(f"no usable port: {device.ports()}")


def open_pair(device: Device, access: Access) -> tuple[QueuePair, Peer]:
    port, index = usable(device)
    pair = device.open_queue_pair(port.number, index, DEPTH, access)
    (gid,) = (gid.value for gid in port.gids if gid.index == index)
    return pair, Peer(pair.number, pair.sequence, gid, port.lid, port.mtu_bytes)


@pytest.fixture
def ends(device: Device) -> Ends:
    node, node_peer = open_pair(device, LOCAL)
    client, client_peer = open_pair(device, BOTH)
    node.connect(client_peer)
    client.connect(node_peer)
    return Ends(device, node, client, Memory(LENGTH + 2 * PAGE), Memory(LENGTH + 2 * PAGE))


def wait(pair: QueuePair, count: int = 1) -> list[Completion]:
    """Wait as the product does: by the event descriptor, under epoll."""
    found: list[Completion] = []
    deadline = time.monotonic() + DEADLINE_S
    with select.epoll() as epoll:
        epoll.register(pair.event_fd, select.EPOLLIN)
        while len(found) < count:
            pair.arm()
            found += pair.poll()
            if len(found) >= count:
                break
            assert time.monotonic() < deadline, f"{len(found)} of {count} completions"
            epoll.poll(1.0)
    return found


def done(work: int) -> Completion:
    return Completion(work, "", False)


def test_the_device_tells_its_ports(device: Device) -> None:
    ports = device.ports()
    for port in ports:
        print(f"\n{port.device} port {port.number} {port.state} {port.link_layer} {port.mtu_bytes}")
        for gid in port.gids:
            print("  ", gid.index, gid.value.hex(":", 2), gid.type, gid.interface)
    print("numa node", device.numa_node, "of", PyVerbs().device_names())
    assert any(port.is_active and port.gids for port in ports)
    assert all(port.mtu_bytes in (256, 512, 1024, 2048, 4096) for port in ports)
    assert all(len(gid.value) == 16 and any(gid.value) for port in ports for gid in port.gids)


def test_importing_pyverbs_leaves_logging_alone(device: Device) -> None:
    import pyverbs.base

    names = [type(handler).__module__ for handler in logging.getLogger().handlers]
    print("\nroot handlers:", names, "after importing", pyverbs.base.__name__)
    assert all("pytest" in name for name in names)


def test_written_bytes_arrive_and_their_neighbours_stay(ends: Ends) -> None:
    ends.staging.bytes[:] = os.urandom(len(ends.staging.bytes))
    ends.arena.bytes[:] = b"\xee" * len(ends.arena.bytes)
    local = ends.device.register(ends.staging.address, len(ends.staging.bytes), LOCAL)
    remote = ends.device.register(ends.arena.address, len(ends.arena.bytes), BOTH)
    assert remote.address == ends.arena.address

    ends.node.write(
        7, local.address, LENGTH, local.local_key, remote.address + PAGE, remote.remote_key
    )

    assert wait(ends.node) == [done(7)]
    assert ends.arena.bytes[PAGE:-PAGE] == ends.staging.bytes[:LENGTH]
    assert ends.arena.bytes[:PAGE] == ends.arena.bytes[-PAGE:] == b"\xee" * PAGE


def test_read_bytes_arrive_and_their_neighbours_stay(ends: Ends) -> None:
    ends.arena.bytes[:] = os.urandom(len(ends.arena.bytes))
    ends.staging.bytes[:] = b"\xee" * len(ends.staging.bytes)
    local = ends.device.register(ends.staging.address, len(ends.staging.bytes), LOCAL)
    remote = ends.device.register(ends.arena.address, len(ends.arena.bytes), BOTH)

    ends.node.read(
        8, local.address + PAGE, LENGTH, local.local_key, remote.address, remote.remote_key
    )

    assert wait(ends.node) == [done(8)]
    assert ends.staging.bytes[PAGE:-PAGE] == ends.arena.bytes[:LENGTH]
    assert ends.staging.bytes[:PAGE] == ends.staging.bytes[-PAGE:] == b"\xee" * PAGE


def test_a_full_queue_completes_in_order(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, PAGE, LOCAL)
    remote = ends.device.register(ends.arena.address, PAGE, BOTH)
    for turn in range(3):
        for work in range(DEPTH):
            ends.node.write(
                100 * turn + work, local.address, 64, local.local_key, remote.address,
                remote.remote_key,
            )  # fmt: skip
        assert wait(ends.node, DEPTH) == [done(100 * turn + work) for work in range(DEPTH)]


def test_a_region_without_remote_rights_has_no_remote_key(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, PAGE, LOCAL)
    assert local.remote_key == 0
    assert local.access == LOCAL
    assert ends.device.register(ends.arena.address, PAGE, BOTH).remote_key != 0


@pytest.mark.parametrize("what", ["another key", "no rights", "past the end", "closed region"])
def test_what_the_client_did_not_open_is_refused_and_untouched(ends: Ends, what: str) -> None:
    local = ends.device.register(ends.staging.address, PAGE, LOCAL)
    remote = ends.device.register(ends.arena.address, PAGE, BOTH)
    bare = ends.device.register(ends.arena.address + PAGE, PAGE, LOCAL)
    ends.staging.bytes[:PAGE] = b"\x11" * PAGE
    address, key = remote.address, remote.remote_key
    if what == "another key":
        key ^= 0x5500
    elif what == "no rights":
        address, key = bare.address, bare.local_key
    elif what == "past the end":
        address += 64
    else:
        remote.close()

    ends.node.write(1, local.address, PAGE, local.local_key, address, key)

    (failed,) = wait(ends.node)
    print(f"\n{what}: {failed}")
    assert failed.work == 1
    assert failed.error in ("remote access error", "remote invalid request")
    assert not failed.is_flushed
    assert ends.arena.is_zero()


def test_the_client_reaches_nothing_at_the_node(ends: Ends) -> None:
    staging = ends.device.register(ends.staging.address, PAGE, LOCAL)
    arena = ends.device.register(ends.arena.address, PAGE, BOTH)
    ends.arena.bytes[:PAGE] = b"\x22" * PAGE
    ends.client.write(3, arena.address, PAGE, arena.local_key, staging.address, staging.local_key)
    (failed,) = wait(ends.client)
    print("\nclient writes to the node:", failed)
    assert failed.error in ("remote access error", "remote invalid request")
    assert ends.staging.is_zero()


def test_failing_flushes_what_is_posted(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, LENGTH, LOCAL)
    remote = ends.device.register(ends.arena.address, LENGTH, BOTH)
    ends.client.close()  # so that nothing completes by itself for long
    for work in range(4):
        ends.node.write(
            work, local.address, LENGTH, local.local_key, remote.address, remote.remote_key
        )
    ends.node.fail()
    found = wait(ends.node, 4)
    print("\nafter fail:", found)
    assert [completion.work for completion in found] == [0, 1, 2, 3]
    assert all(completion.error for completion in found)
    assert found[-1].is_flushed
    ends.node.write(9, local.address, 64, local.local_key, remote.address, remote.remote_key)
    assert wait(ends.node) == [Completion(9, "flushed", True)]


def test_closing_amid_a_write_is_quick_and_final(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, LENGTH, LOCAL)
    remote = ends.device.register(ends.arena.address, LENGTH, BOTH)
    ends.staging.bytes[:] = b"\x33" * len(ends.staging.bytes)
    for work in range(DEPTH):
        ends.node.write(
            work, local.address, LENGTH, local.local_key, remote.address, remote.remote_key
        )
    began = time.monotonic()
    ends.client.close()
    print(f"\nclosed after {(time.monotonic() - began) * 1e3:.1f} ms")
    ends.arena.bytes[:] = b"\xaa" * len(ends.arena.bytes)
    with select.epoll() as epoll:  # the node goes on sending
        epoll.register(ends.node.event_fd, select.EPOLLIN)
        ends.node.arm()
        ends.node.poll()
        epoll.poll(0.3)
    assert ends.arena.bytes[:] == b"\xaa" * len(ends.arena.bytes)


def test_no_event_without_a_completion(ends: Ends) -> None:
    ends.node.arm()
    with select.epoll() as epoll:
        epoll.register(ends.node.event_fd, select.EPOLLIN)
        assert epoll.poll(0.2) == []
    assert ends.node.poll() == []
    assert not os.get_blocking(ends.node.event_fd)
    assert not os.get_blocking(ends.device.event_fd)


def test_descriptors_are_given_back(device: Device) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pairs = [open_pair(device, LOCAL)[0] for _ in range(10)]
    assert len({pair.event_fd for pair in pairs}) == 10
    assert len({pair.sequence for pair in pairs}) > 1
    for pair in pairs:
        pair.close()
        pair.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_event_descriptors_are_told_apart_in_threads(device: Device) -> None:
    """Each queue pair's own completion makes its own descriptor readable, and no other's."""
    staging = Memory(PAGE)
    region = device.register(staging.address, PAGE, BOTH)

    def opened(_: int) -> tuple[QueuePair, QueuePair]:
        node, node_peer = open_pair(device, LOCAL)
        client, client_peer = open_pair(device, BOTH)
        node.connect(client_peer)
        client.connect(node_peer)
        return node, client

    with ThreadPoolExecutor(4) as threads:
        pairs = list(threads.map(opened, range(24)))
    assert len({end.event_fd for both in pairs for end in both}) == 2 * len(pairs)
    for work, (node, _) in enumerate(pairs):
        node.write(work, staging.address, 64, region.local_key, staging.address, region.remote_key)
        assert wait(node) == [done(work)]


def test_a_window_opens_and_ends(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, PAGE, LOCAL)
    region = ends.device.register(ends.arena.address, LENGTH, LOCAL | Access.WINDOWS)
    assert region.remote_key == 0
    ends.staging.bytes[:PAGE] = b"\x44" * PAGE
    window = ends.device.allocate_window()
    keys = []
    for turn in range(3):
        ends.client.bind(1, window, region, region.address, PAGE, Access.REMOTE_WRITE)
        assert wait(ends.client) == [done(1)]
        keys.append(window.remote_key)
        ends.node.write(2, local.address, PAGE, local.local_key, region.address, keys[-1])
        assert wait(ends.node) == [done(2)]
        assert ends.arena.bytes[:PAGE] == b"\x44" * PAGE
        ends.client.invalidate(3, window)
        assert wait(ends.client) == [done(3)], turn
    print("\nkeys:", [hex(key) for key in keys])
    assert len(set(keys)) == 3

    ends.arena.bytes[:PAGE] = bytes(PAGE)
    ends.node.write(4, local.address, PAGE, local.local_key, region.address, keys[-1])
    assert wait(ends.node)[0].error == "remote access error"
    assert ends.arena.is_zero()


def test_a_window_ends_by_closing_it(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, PAGE, LOCAL)
    region = ends.device.register(ends.arena.address, LENGTH, LOCAL | Access.WINDOWS)
    window = ends.device.allocate_window()
    ends.client.bind(1, window, region, region.address, PAGE, REMOTE)
    assert wait(ends.client) == [done(1)]
    with pytest.raises(VerbsError, match="windows are bound") as refused:
        region.close()
    print("\n", refused.value)
    ends.client.fail()
    window.close()
    window.close()
    ends.staging.bytes[:PAGE] = b"\x55" * PAGE
    ends.node.write(2, local.address, PAGE, local.local_key, region.address, window.remote_key)
    ends.node.fail()
    assert wait(ends.node)[0].error
    with pytest.raises(VerbsError, match="window is closed"):
        ends.client.bind(1, window, region, region.address, PAGE, REMOTE)
    region.close()
    assert ends.arena.is_zero()


def test_a_queue_pair_closes_quickly_with_a_window_bound(ends: Ends) -> None:
    region = ends.device.register(ends.arena.address, LENGTH, LOCAL | Access.WINDOWS)
    window = ends.device.allocate_window()
    ends.client.bind(1, window, region, region.address, PAGE, REMOTE)
    assert wait(ends.client) == [done(1)]
    began = time.monotonic()
    ends.client.close()
    took_s = time.monotonic() - began
    print(f"\nclosed after {took_s * 1e3:.1f} ms")
    assert took_s < 20  # rxe waits 50 s for a window that is still bound
    region.close()


def test_an_abandoned_connection_is_closed_with_its_device() -> None:
    device = PyVerbs().open(NAMES[0])
    node, node_peer = open_pair(device, LOCAL)
    client, client_peer = open_pair(device, BOTH)
    node.connect(client_peer)
    client.connect(node_peer)
    arena = Memory(PAGE)
    region = device.register(arena.address, PAGE, BOTH | Access.WINDOWS)
    client.bind(1, device.allocate_window(), region, region.address, PAGE, REMOTE)
    assert wait(client) == [done(1)]
    began = time.monotonic()
    device.close()
    device.close()
    assert time.monotonic() - began < 20
    for use in (
        device.ports, device.events, device.allocate_window, node.poll, node.arm, node.fail,
        lambda: node.write(1, 1, 1, 1, 1, 1), lambda: device.register(1, 1, LOCAL),
    ):  # fmt: skip
        with pytest.raises(VerbsError, match="closed") as refused:
            use()
        assert refused.value.number == errno.EBADF


def test_refusals_say_what_to_do(ends: Ends) -> None:
    device = ends.device
    port, index = usable(device)
    attempts: dict[str, Callable[[], object]] = {
        "no such device": lambda: PyVerbs().open("mlx5_99"),
        "memory that is not there": lambda: device.register(1 << 40, PAGE, LOCAL),
        "address 0": lambda: device.register(0, PAGE, LOCAL),
        "no bytes": lambda: device.register(ends.arena.address, 0, LOCAL),
        "remote without local": lambda: device.register(
            ends.arena.address, PAGE, Access.REMOTE_WRITE
        ),
        "no dma-buf": lambda: device.register_dmabuf(os.memfd_create("memory"), 0, PAGE, LOCAL),
        "too deep": lambda: device.open_queue_pair(port.number, index, 10**7, LOCAL),
        "no such port": lambda: device.open_queue_pair(9, index, DEPTH, LOCAL),
        "connected twice": lambda: ends.node.connect(Peer(1, 1, bytes(16), 0, 1024)),
        "half a GID": lambda: ends.node.connect(Peer(1, 1, bytes(8), 0, 1024)),
        "no queue pair's number": lambda: ends.node.connect(Peer(1 << 40, 1, bytes(16), 0, 1024)),
        "a length without end": lambda: ends.node.write(1, 1, 1 << 33, 1, 1, 1),
    }
    for what, attempt in attempts.items():
        with pytest.raises(VerbsError) as refused:
            attempt()
        print(f"\n{what}: [{refused.value.number}] {refused.value}", end="")
        assert refused.value.number != 0
    print()


def test_too_many_requests_are_refused(ends: Ends) -> None:
    local = ends.device.register(ends.staging.address, LENGTH, LOCAL)
    remote = ends.device.register(ends.arena.address, LENGTH, BOTH)
    ends.client.close()

    def post_many() -> None:
        for work in range(100 * DEPTH):
            ends.node.write(
                work, local.address, LENGTH, local.local_key, remote.address, remote.remote_key
            )

    with pytest.raises(VerbsError, match="more requests in flight") as refused:
        post_many()
    print("\n", refused.value)
    ends.node.fail()


def test_a_port_that_goes_down_is_an_event(device: Device) -> None:
    (port, _) = usable(device)
    (interface,) = {gid.interface for gid in port.gids}
    name = {i: n for n, i in ((p.name, int((p / "ifindex").read_text()))
            for p in Path("/sys/class/net").iterdir())}[interface]  # fmt: skip
    device.events()
    seen: list[Event] = []
    with select.epoll() as epoll:
        epoll.register(device.event_fd, select.EPOLLIN)
        subprocess.run(["ip", "link", "set", name, "down"], check=True)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while EventKind.PORT_DOWN not in {event.kind for event in seen}:
                assert time.monotonic() < deadline, seen
                epoll.poll(1.0)
                seen += device.events()
            state = device.ports()[0].state
        finally:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        while EventKind.PORT_UP not in {event.kind for event in seen}:
            assert time.monotonic() < deadline, seen
            epoll.poll(1.0)
            seen += device.events()
    print("\n", seen, "while down:", state)
    assert state != "active"
