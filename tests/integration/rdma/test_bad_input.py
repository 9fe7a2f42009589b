"""Wrong requests over the wire: each is refused and hurts nobody, its own lane as little as the
protocol says."""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memkv import limits
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.testing import wire_rdma
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import POOL, LocalWorkers, local_workers
from memkv.testing.registered import Arena, content, wait_for_lanes
from memkv.testing.waiting import eventually
from memkv.testing.wire_client import Block, Lane, RequestFailed
from memkv.testing.wire_rdma import RdmaClient, RdmaPeer, new_id, request
from memkv.wire.local import Access as Rights
from memkv.wire.local import LocalGetItem, Part, encode_local_get
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.rdma import End

SIZE = 256 * KIB
DATA = content("k", SIZE)
ID = new_id()
ROOM = 4 * MIB


@pytest.fixture
def others(fabric: FakeFabric, pool: LocalWorkers) -> Iterator[list[int]]:
    """Another client gets all the while, each get within its deadline; the results it had."""
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["other0"]), deadline_ms=5_000)
    arena = Arena(client, MIB)
    assert client.batch_put_from(["k"], [arena.fill(0, DATA)], [SIZE]) == [0]
    wait_for_lanes(client)
    stop = threading.Event()
    results: list[int] = []

    def run() -> None:
        while not stop.is_set():
            results.extend(client.batch_get_into(["k"], [arena.address], [SIZE]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield results
        seen = len(results)
        eventually(lambda: len(results) > seen, "one more get")
    finally:
        stop.set()
        thread.join(30)
    assert set(results) == {SIZE}
    assert client.stats().rdma_fallbacks <= 1  # the put may have been before the lanes


@pytest.fixture
def client(fabric: FakeFabric, pool: LocalWorkers, others: list[int]) -> Iterator[RdmaClient]:
    client = RdmaClient(fabric, "client0", ("127.0.0.1", pool.workers[0].server.port), POOL)
    assert client.lane.put([Block(ID, DATA)]) == [Status.OK]
    yield client
    client.close()


def works(client: RdmaClient) -> bool:
    """Whether the lane still does what it is for."""
    client.peer.memory[:] = bytes(ROOM)
    got = wire_rdma.get(client.lane, [LocalGetItem(ID, (Part(1, 0, SIZE),))])
    return got[0].status is Status.OK and client.peer.memory[:SIZE] == DATA


@contextmanager
def refused(status: Status, why: str = "") -> Iterator[None]:
    with pytest.raises(RequestFailed, match=why or None) as caught:
        yield
    assert caught.value.status is status


# --- before and twice CONNECT --------------------------------------------------------------------
def test_get_before_connect_is_refused_and_the_lane_goes_on(client: RdmaClient) -> None:
    lane = client.wire.lane()
    with refused(Status.INVALID, "RDMA_CONNECT comes first"):
        wire_rdma.get(lane, [LocalGetItem(ID, (Part(1, 0, SIZE),))])
    assert lane.get(ID)[0].payload == DATA


def test_put_before_connect_ends_its_lane(client: RdmaClient) -> None:
    lane = client.wire.lane()
    with refused(Status.PROTOCOL, "RDMA_CONNECT comes first"):
        wire_rdma.put(lane, new_id(), DATA, [Part(1, 0, SIZE)])
    assert lane.is_closed_by_peer()
    assert works(client)


def test_a_lane_connects_once(fabric: FakeFabric, client: RdmaClient) -> None:
    pairs = fabric.open_objects()["queue pairs"]
    with refused(Status.INVALID, "connected already"):
        wire_rdma.connect(client.lane, client.peer)
    assert fabric.open_objects()["queue pairs"] == pairs
    assert works(client)


def honest_end(client: RdmaClient) -> End:
    pair, end = client.peer.pair()
    pair.close()
    return end


def connect_body(client: RdmaClient, **changes: int | bytes) -> bytes:
    end = honest_end(client)
    fields: dict[str, int | bytes] = {
        "queue_pair": end.queue_pair, "sequence": end.sequence, "mtu": end.mtu_bytes,
        "lid": end.lid, "device": 0, "rail": 0, "zero": 0, "gid": end.gid, "zeros": 0,
    }  # fmt: skip
    return struct.pack("<IIIIIHH16sQ", *(fields | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"queue_pair": 1 << 24}, {"queue_pair": (1 << 32) - 1}, {"sequence": 1 << 24},
        {"mtu": 0}, {"mtu": 1500}, {"mtu": 8192}, {"mtu": (1 << 32) - 1}, {"lid": 1 << 16},
        {"device": limits.RDMA_DEVICES_MAX}, {"device": (1 << 32) - 1},
    ],
)  # fmt: skip
def test_garbage_in_connect_ends_its_lane(
    fabric: FakeFabric, client: RdmaClient, changes: dict[str, int | bytes]
) -> None:
    pairs = fabric.open_objects()["queue pairs"]
    lane = client.wire.lane()
    with refused(Status.PROTOCOL, "RDMA_CONNECT"):
        request(lane, Opcode.RDMA_CONNECT, connect_body(client, **changes))
    assert lane.is_closed_by_peer()
    assert fabric.open_objects()["queue pairs"] == pairs
    assert works(client)


@pytest.mark.parametrize(
    "changes",
    [
        {"gid": bytes(16)}, {"gid": b"\xff" * 16}, {"lid": 7}, {"queue_pair": 0},
        {"gid": bytes.fromhex("fe80000000000000000000000000dead")},
    ],
)  # fmt: skip
def test_an_end_that_cannot_be_reached_is_refused_and_the_lane_goes_on(
    fabric: FakeFabric, pool: LocalWorkers, client: RdmaClient, changes: dict[str, int | bytes]
) -> None:
    rails = pool.workers[0].rails
    assert rails is not None
    pairs, counted = fabric.open_objects()["queue pairs"], rails.queue_pairs
    lane = client.wire.lane()
    with refused(Status.UNAVAILABLE):
        request(lane, Opcode.RDMA_CONNECT, connect_body(client, **changes))
    assert (fabric.open_objects()["queue pairs"], rails.queue_pairs) == (pairs, counted)
    pair = wire_rdma.connect(lane, client.peer)
    pair.close()


def test_a_queue_pair_of_somebody_else_gets_nothing(
    fabric: FakeFabric, client: RdmaClient
) -> None:
    """The number of a queue pair that waits for another node's: nothing arrives, and the request
    ends by its deadline."""
    lane = client.wire.lane()
    request(lane, Opcode.RDMA_CONNECT, connect_body(client, queue_pair=client.pair.number))
    client.peer.memory[:] = bytes(ROOM)
    with pytest.raises((EOFError, ConnectionResetError)):
        wire_rdma.get(lane, [LocalGetItem(ID, (Part(1, 0, SIZE),))], deadline_ms=150)
    assert client.peer.memory[:] == bytes(ROOM)
    assert works(client)


def test_there_are_so_many_queue_pairs_and_no_more(
    pool: LocalWorkers, client: RdmaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rails = pool.workers[0].rails
    assert rails is not None
    monkeypatch.setattr(limits, "RDMA_QUEUE_PAIRS_MAX", rails.queue_pairs + 1)
    first, second = client.wire.lane(), client.wire.lane()
    pair = wire_rdma.connect(first, client.peer)
    with refused(Status.BUSY, "queue pairs"):
        wire_rdma.connect(second, client.peer)
    assert second.get(ID)[0].payload == DATA
    count = rails.queue_pairs
    first.close()
    eventually(lambda: rails.queue_pairs < count, "one less")
    wire_rdma.connect(second, client.peer).close()
    pair.close()
    assert works(client)


# --- regions -------------------------------------------------------------------------------------
PART = Part(1, 0, SIZE)
BAD_PARTS = [
    Part(2, 0, SIZE), Part(0, 0, SIZE), Part((1 << 32) - 1, 0, SIZE),
    Part(1, ROOM, SIZE), Part(1, ROOM - SIZE + 1, SIZE), Part(1, (1 << 64) - 1, SIZE),
    Part(1, (1 << 64) - SIZE, SIZE), Part(1, ROOM - 1, 2), Part(3, 0, SIZE), Part(4, 0, SIZE),
]  # fmt: skip
"""Regions that are unknown, of another device (3), without a key (4), and places beyond the end."""


def more_regions(client: RdmaClient) -> None:
    wire_rdma.register(client.lane, client.peer.register(3, device=1))
    wire_rdma.register(client.lane, client.peer.register(4, key=0))


@pytest.mark.parametrize("part", BAD_PARTS)
def test_wrong_parts_are_refused_before_anything_is_posted(
    fabric: FakeFabric, client: RdmaClient, part: Part
) -> None:
    more_regions(client)
    before = bytes(client.peer.memory)
    moved = dict(fabric.moved_bytes)
    got = wire_rdma.get(
        client.lane, [LocalGetItem(ID, (part,)), LocalGetItem(ID, (Part(1, 0, 1), part))]
    )
    assert [got[0].status, got[1].status] == [Status.INVALID] * 2
    assert bytes(client.peer.memory) == before
    if part.length == SIZE:
        data = content("p", SIZE)
        assert wire_rdma.put(client.lane, new_id(), data, [part]) == [Status.INVALID]
    assert fabric.moved_bytes["read"] == moved["read"]
    assert works(client)


def test_a_stale_region_is_refused(client: RdmaClient) -> None:
    wire_rdma.unregister(client.lane, 1)
    got = wire_rdma.get(client.lane, [LocalGetItem(ID, (PART,))])
    assert got[0].status is Status.INVALID
    with refused(Status.MISS):
        wire_rdma.unregister(client.lane, 1)
    with refused(Status.MISS):
        wire_rdma.unregister(client.lane, 1, device=9)
    wire_rdma.register(client.lane, client.peer.register())
    assert works(client)
    with refused(Status.INVALID, "already"):
        wire_rdma.register(client.lane, client.peer.register())
    assert works(client)


def test_regions_are_a_sessions_own(pool: LocalWorkers, client: RdmaClient) -> None:
    with wire_rdma.session(("127.0.0.1", pool.workers[0].server.port), POOL) as stranger:
        lane = stranger.lane()
        pair = wire_rdma.connect(lane, client.peer)
        got = wire_rdma.get(lane, [LocalGetItem(ID, (PART,))])
        assert got[0].status is Status.INVALID
        pair.close()
    assert works(client)


@pytest.mark.parametrize(("access", "get", "put"), [
    (Rights.READ, Status.INVALID, Status.OK), (Rights.WRITE, Status.OK, Status.INVALID),
])  # fmt: skip
def test_rights_of_a_region_hold(
    client: RdmaClient, access: int, get: Status, put: Status
) -> None:
    wire_rdma.register(client.lane, client.peer.register(5, access=access))
    got = wire_rdma.get(client.lane, [LocalGetItem(ID, (Part(5, 0, SIZE),))])
    assert got[0].status is get
    data = content("rights", SIZE)
    client.peer.memory[:SIZE] = data
    assert wire_rdma.put(client.lane, new_id(), data, [Part(5, 0, SIZE)]) == [put]
    assert works(client)


@pytest.mark.parametrize("key", [1, 0xDEADBEEF])
def test_a_wrong_key_costs_the_lane_and_no_byte(
    pool: LocalWorkers, client: RdmaClient, key: int
) -> None:
    """What the device refuses breaks the queue pair: the lane ends, others go on."""
    lane = client.wire.lane()
    pair = wire_rdma.connect(lane, client.peer)
    wire_rdma.register(lane, client.peer.register(6, key=key))
    client.peer.memory[:] = bytes(ROOM)
    with pytest.raises((EOFError, ConnectionResetError)):
        wire_rdma.get(lane, [LocalGetItem(ID, (Part(6, 0, SIZE),))])
    assert client.peer.memory[:] == bytes(ROOM)
    pair.close()
    assert works(client)


def test_there_are_so_many_regions_and_no_more(client: RdmaClient) -> None:
    last = limits.RDMA_REGIONS_PER_SESSION_MAX
    for number in range(2, last + 1):
        wire_rdma.register(client.lane, client.peer.register(number))
    with refused(Status.BUSY, "regions"):
        wire_rdma.register(client.lane, client.peer.register(last + 1))
    wire_rdma.unregister(client.lane, 7)
    wire_rdma.register(client.lane, client.peer.register(1 << 31))
    assert works(client)


def register_body(client: RdmaClient, **changes: int) -> bytes:
    honest = client.peer.register(9)
    fields = {
        "region": 9, "device": 0, "access": 3, "key": honest.key, "address": honest.address,
        "size": honest.size_bytes,
    }  # fmt: skip
    return struct.pack("<IIIIQQ", *(fields | changes).values())


@pytest.mark.parametrize("changes", [
    {"access": 0}, {"access": 4}, {"access": (1 << 32) - 1}, {"size": 0},
    {"address": (1 << 64) - 1}, {"size": (1 << 64) - 1}, {"device": limits.RDMA_DEVICES_MAX},
])  # fmt: skip
def test_garbage_in_register_ends_its_lane(client: RdmaClient, changes: dict[str, int]) -> None:
    lane = client.wire.lane()
    with refused(Status.PROTOCOL, "RDMA_REGISTER"):
        request(lane, Opcode.RDMA_REGISTER, register_body(client, **changes))
    assert lane.is_closed_by_peer()
    assert works(client)


# --- bodies --------------------------------------------------------------------------------------
def bodies(client: RdmaClient) -> list[tuple[int, bytes, int, int]]:
    got = encode_local_get([LocalGetItem(ID, (PART, Part(1, SIZE, SIZE)))])
    put = wire_rdma.put_frame(client.lane, new_id(), DATA, [PART])
    return [
        (Opcode.RDMA_CONNECT, connect_body(client), 0, 0),
        (Opcode.RDMA_REGISTER, register_body(client), 0, 0),
        (Opcode.RDMA_UNREGISTER, struct.pack("<II", 1, 0), 0, 0),
        (Opcode.RDMA_GET, got, 1, 0),
        (Opcode.RDMA_PUT, put, 1, Flag.LAST),
    ]


@pytest.mark.parametrize("number", range(5))
def test_bodies_that_are_cut_or_too_long_end_their_lane(client: RdmaClient, number: int) -> None:
    opcode, body, count, flags = bodies(client)[number]
    for wrong in (b"", body[:1], body[:-1], body + b"\0"):
        if len(client.wire.lanes) == limits.LANES_PER_SESSION_MAX:
            break
        lane = client.wire.lane()
        with refused(Status.PROTOCOL):
            request(lane, opcode, wrong, count, flags)
        assert lane.is_closed_by_peer()
        lane.close()
        client.wire.lanes.remove(lane)
    assert works(client)


def empty_part(_: Lane) -> bytes:
    return encode_local_get([LocalGetItem(ID, (Part(1, 0, 0),))])


def no_part(_: Lane) -> bytes:
    return encode_local_get([LocalGetItem(ID, ())])


def too_many_parts(_: Lane) -> bytes:
    many = limits.LOCAL_PARTS_PER_ITEM_MAX + 1
    return encode_local_get([LocalGetItem(ID, (Part(1, 0, 1),) * many)])


def too_long_parts(_: Lane) -> bytes:
    return encode_local_get([LocalGetItem(ID, (Part(1, 0, limits.BLOCK_BYTES_MAX), Part(1, 0, 1)))])


@pytest.mark.parametrize("make", [empty_part, no_part, too_many_parts, too_long_parts])
def test_parts_that_no_block_has_end_their_lane(
    client: RdmaClient, make: Callable[[Lane], bytes]
) -> None:
    lane = client.wire.lane()
    with pytest.raises(RequestFailed) as caught:
        request(lane, Opcode.RDMA_GET, make(lane), 1)
    assert caught.value.status in (Status.PROTOCOL, Status.INVALID, Status.TOO_LARGE)
    assert lane.is_closed_by_peer()
    assert works(client)


def test_rdma_on_the_control_connection_is_refused(pool: LocalWorkers, client: RdmaClient) -> None:
    with (
        wire_rdma.session(("127.0.0.1", pool.workers[0].server.port), POOL) as stranger,
        refused(Status.PROTOCOL),
    ):
        stranger.request(Opcode.RDMA_UNREGISTER, struct.pack("<II", 1, 0))
    assert works(client)


# --- a node without RDMA -------------------------------------------------------------------------
def test_a_node_without_rdma_says_so(tmp_path: Path, fabric: FakeFabric) -> None:
    with local_workers(tmp_path, 1, memory_bytes=32 * MIB) as plain:
        address = ("127.0.0.1", plain.workers[0].server.port)
        peer = RdmaPeer(fabric, "client0")
        with wire_rdma.session(address, POOL) as wire:
            lane = wire.lane()
            for wrong in (
                lambda: wire_rdma.connect(lane, peer),
                lambda: wire_rdma.register(lane, peer.register()),
                lambda: wire_rdma.unregister(lane, 1),
                lambda: wire_rdma.get(lane, [LocalGetItem(ID, (PART,))]),
            ):
                with refused(Status.INVALID, "serves no RDMA"):
                    wrong()
            assert lane.put([Block(ID, DATA)]) == [Status.OK]
            with refused(Status.PROTOCOL, "serves no RDMA"):
                wire_rdma.put(lane, new_id(), DATA, [PART])
            assert lane.is_closed_by_peer()
        peer.close()
