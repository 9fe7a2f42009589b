"""Peers that break the rules: what each costs, and that everyone else goes on."""

import os
import select
import struct
from collections.abc import Iterator

import pytest

from memkv import limits
from memkv._hotpath import xxh3_64
from memkv.status import Status
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import RunningWorker, running_worker
from memkv.testing.waiting import eventually
from memkv.testing.wire_client import Block, RequestFailed, Wire, WireClient
from memkv.wire.frame import encode_frame
from memkv.wire.items import RangesItem, encode_get_request, encode_ranges_request
from memkv.wire.messages import encode_keys
from memkv.wire.opcodes import Flag, Opcode

LARGE = limits.BLOCK_BYTES_MAX


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def handshake_timeout_ms() -> int:
    """How long a peer may owe something; a machine that starves its threads must not look so."""
    return 30_000


@pytest.fixture
def send_stall_ms() -> int:
    return 30_000


# For tests that wait for the limit.
SHORT_HANDSHAKES = pytest.mark.parametrize("handshake_timeout_ms", [1_000])
SHORT_STALLS = pytest.mark.parametrize("send_stall_ms", [1_000])


@pytest.fixture
def worker(
    store: MemoryStore, handshake_timeout_ms: int, send_stall_ms: int
) -> Iterator[RunningWorker]:
    with running_worker(
        store,
        handshake_timeout_ms=handshake_timeout_ms,
        send_stall_ms=send_stall_ms,
        lane_threads=4,
        unsettled_max=50,
    ) as running:
        yield running
        assert_unharmed(running)
    assert store.pinned == 0
    assert store.puts_open == 0
    assert running.server.statistics().events.internal_errors == 0


def assert_unharmed(worker: RunningWorker) -> None:
    """Every kind of operation still works for somebody else."""
    client = worker.client("bystander")
    block = Block(os.urandom(32), os.urandom(300_000))
    for express in (False, True):
        lane = client.lane(express=express)
        assert lane.get(os.urandom(32))[0].status is Status.MISS
    assert client.lanes[0].put([block]) == [Status.OK]
    assert client.lanes[0].get(block.block_id)[0].payload == block.data
    assert client.exists(block.block_id) == [1]
    assert client.delete(block.block_id) == [0]
    client.goodbye()


def resummed(frame: bytes, offset: int, layout: str, value: int) -> bytes:
    changed = bytearray(frame)
    struct.pack_into(layout, changed, offset, value)
    struct.pack_into("<Q", changed, 56, xxh3_64(bytes(changed[:56])))
    return bytes(changed)


STAT = encode_frame(Opcode.STAT, 0, 9, deadline_ms=1000)
EXISTS = encode_frame(Opcode.EXISTS, 0, 9, encode_keys(0, bytes(32)), count=1, deadline_ms=1000)
GET = encode_frame(
    Opcode.GET, 0, 9, encode_get_request(bytes(32), [100]), count=1, deadline_ms=1000
)
PUT_WITHOUT_SUMS = encode_frame(
    Opcode.PUT, Flag.LAST, 9, bytes(88), count=1, payload_bytes=LARGE, deadline_ms=1000
)
FAULTS = {
    "garbage": (os.urandom(100_000), "4d4b|starts with|speaks"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "9471"),
    "TLS": (b"\x16\x03\x01" + bytes(200), "payloadEncryption"),
    "another frame version": (resummed(STAT, 4, "<B", 9), "upgrade"),
    "a flipped bit": (STAT[:33] + b"\x01" + STAT[34:], "sum"),
    "an unknown opcode": (resummed(STAT, 5, "<B", 99), "newer"),
    "a body of 4 GiB": (resummed(EXISTS, 24, "<I", 2**32 - 1), "limits"),
    "a payload of 2**60 bytes": (resummed(PUT_WITHOUT_SUMS, 32, "<Q", 2**60), "limits"),
    "a count that the body does not hold": (resummed(EXISTS, 20, "<I", 2), "EXISTS|ids|lanes"),
    "a response": (resummed(STAT, 6, "<H", 1), "mixed up"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["before HELLO", "control", "lane", "express lane"])
def test_faulty_frame_is_answered_and_the_connection_closed(
    worker: RunningWorker, where: str, fault: str
) -> None:
    data, hint = FAULTS[fault]
    wire: Wire
    if where == "before HELLO":
        wire = worker.wire()
    else:
        client = worker.client()
        wire = client.control if where == "control" else client.lane(express="ex" in where)
    wire.send(data)
    with pytest.raises(RequestFailed, match=hint) as caught:
        wire.answer()
    assert caught.value.status is Status.PROTOCOL
    assert wire.is_closed_by_peer()
    assert worker.server.statistics().events.protocol_errors == 1


@pytest.mark.parametrize("frame", [STAT, EXISTS, GET, PUT_WITHOUT_SUMS])
def test_request_before_hello_is_refused(worker: RunningWorker, frame: bytes) -> None:
    wire = worker.wire()
    wire.send(frame)
    with pytest.raises(RequestFailed, match="after HELLO"):
        wire.answer()
    assert wire.is_closed_by_peer()


def test_payload_request_on_control_and_control_request_on_a_lane(worker: RunningWorker) -> None:
    client = worker.client()
    for wire, frame in ((client.lane(), EXISTS), (client.control, GET)):
        wire.send(frame)
        with pytest.raises(RequestFailed, match="payload requests go on lanes"):
            wire.answer()
        assert wire.is_closed_by_peer()


def test_put_that_contradicts_itself_closes_the_lane(worker: RunningWorker) -> None:
    lane = worker.client().lane()
    lane.send(PUT_WITHOUT_SUMS)
    with pytest.raises(RequestFailed, match="PUT"):
        lane.answer()


def test_another_request_inside_a_batch_closes_the_lane(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    blocks = [Block(os.urandom(32), b"x" * 1000) for _ in range(2)]
    first, _ = lane.put_frames(blocks)
    lane.send(first + lane.get_frame(bytes(32)))
    with pytest.raises(RequestFailed, match="inside a batch"):
        lane.answer()
    assert lane.is_closed_by_peer()
    assert client.exists(blocks[0].block_id) == [1]  # complete, though nobody was told


@pytest.mark.parametrize("kept", [1, 63, 64, 100, 160, 161, 100_000, 299_999])
def test_put_cut_anywhere_leaves_nothing(
    worker: RunningWorker, store: MemoryStore, kept: int
) -> None:
    client = worker.client()
    lane = client.lane()
    block = Block(os.urandom(32), os.urandom(300_000))
    [frame] = lane.put_frames([block])
    lane.send(frame[:kept])
    lane.close()
    assert client.exists(block.block_id) == [0]
    client.goodbye()
    assert client.control.is_closed_by_peer()


@SHORT_HANDSHAKES
def test_silent_connection_is_closed(worker: RunningWorker) -> None:
    assert worker.wire().is_closed_by_peer()
    assert worker.server.statistics().events.timed_out == 1


@SHORT_HANDSHAKES
@pytest.mark.parametrize("kept", [1, 30, 64, 90])
@pytest.mark.parametrize("where", ["before HELLO", "control", "lane", "express lane"])
def test_frame_that_does_not_go_on_is_closed(worker: RunningWorker, where: str, kept: int) -> None:
    client = worker.client()
    if where == "before HELLO":
        wire: Wire = worker.wire()
        wire.send(client.session.encode_hello()[:kept])
    elif where == "control":
        wire = client.control
        wire.send(EXISTS[:kept])
    else:
        wire = client.lane(express="ex" in where)
        wire.send(GET[:kept])
    assert wire.is_closed_by_peer()
    assert worker.server.statistics().events.timed_out == 1


@SHORT_HANDSHAKES
def test_idle_session_is_not_closed(worker: RunningWorker) -> None:
    idle = worker.client()
    lane = idle.lane()
    assert worker.wire().is_closed_by_peer()  # a full handshake timeout has passed now
    assert worker.wire().is_closed_by_peer()
    assert idle.exists(bytes(32)) == [0]
    assert lane.get(bytes(32))[0].status is Status.MISS


def test_too_many_connections_in_a_handshake_are_closed_at_once(worker: RunningWorker) -> None:
    wires = [worker.wire() for _ in range(80)]
    for wire in wires[50:]:
        assert wire.is_closed_by_peer()
    assert worker.server.statistics().events.refused_connections == 30
    for wire in wires[:50]:
        wire.close()


def first_closed(wires: list[Wire]) -> Wire:
    poll = select.poll()
    for wire in wires:
        poll.register(wire.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
    [(fd, _), *_] = poll.poll(20_000)
    return next(wire for wire in wires if wire.socket.fileno() == fd)


def test_memory_of_unfinished_frames_is_bounded(store: MemoryStore) -> None:
    item = RangesItem(bytes(32), ((0, 1),) * limits.RANGES_PER_ITEM_MAX)
    frame = encode_frame(
        Opcode.GET_RANGES, 0, 1, encode_ranges_request([item] * 250), count=250, deadline_ms=1000
    )
    assert len(frame) > 1_000_000
    with running_worker(store) as worker:
        clients = [worker.client() for _ in range(6)]
        lanes: list[Wire] = [client.lane() for client in clients for _ in range(8)]
        cut = []
        for lane in lanes:
            try:
                lane.send(frame[:-1])
            except OSError:
                cut.append(lane)
        assert first_closed(lanes).is_closed_by_peer()
        assert_unharmed(worker)


# --- peers that do not take or send payload ---------------------------------------------------
def stored(client: WireClient, length: int) -> Block:
    block = Block(os.urandom(32), os.urandom(length))
    lane = client.lane()
    assert lane.put([block]) == [Status.OK]
    return block


@SHORT_STALLS
def test_client_that_stops_reading_loses_its_lane_and_others_go_on(worker: RunningWorker) -> None:
    stalled, other = worker.client(), worker.client()
    block = stored(stalled, LARGE)
    small = stored(other, 1000)
    lanes = [stalled.lane() for _ in range(4)]
    for lane in lanes:
        lane.send(lane.get_frame(block.block_id * 4, deadline_ms=30_000))
    answered = 0
    while worker.server.statistics().events.stalled < len(lanes):
        assert other.lanes[0].get(small.block_id)[0].payload == small.data
        assert other.exists(small.block_id) == [1]
        assert stalled.exists(block.block_id) == [1]  # its control connection is no lane
        answered += 1
    assert answered
    for lane in lanes:
        with pytest.raises((EOFError, ConnectionResetError)):
            lane.receive_items()


def test_deadline_ends_a_send_before_the_stall_limit(worker: RunningWorker) -> None:
    client = worker.client()
    block = stored(client, LARGE)
    lane = client.lane()
    lane.send(lane.get_frame(block.block_id * 4, deadline_ms=500))
    eventually(lambda: worker.server.statistics().events.stalled == 1, "the stall")
    assert client.exists(block.block_id) == [1]


@SHORT_STALLS
def test_put_whose_payload_does_not_come_ends_and_leaves_nothing(worker: RunningWorker) -> None:
    client = worker.client()
    lane = client.lane()
    block = Block(os.urandom(32), os.urandom(300_000))
    [frame] = lane.put_frames([block])
    lane.send(frame[:200_000])
    assert lane.is_closed_by_peer()
    assert client.exists(block.block_id) == [0]


@SHORT_STALLS
def test_client_that_never_reads_its_control_answers_is_cut(worker: RunningWorker) -> None:
    client, other = worker.client(), worker.client()
    ids = bytes(32) * limits.ITEMS_PER_FRAME_MAX
    frame = encode_frame(Opcode.EXISTS, 0, 9, encode_keys(0, ids), count=1024, deadline_ms=30_000)
    with pytest.raises(OSError):
        client.control.send(frame * 5_000)  # with no one reading, more than any socket takes
    assert other.exists(bytes(32)) == [0]
    assert worker.server.statistics().events.stalled == 1


def test_slow_delete_delays_no_exists(worker: RunningWorker, store: MemoryStore) -> None:
    deleters = [worker.client() for _ in range(3)]
    other = worker.client()
    store.delete_gate.clear()
    delete = encode_frame(
        Opcode.DELETE, 0, 9, encode_keys(0, bytes(32)), count=1, deadline_ms=30_000
    )
    for client in deleters:
        client.control.send(delete)
    assert store.in_delete.wait(20)
    assert other.exists(bytes(32)) == [0]
    store.delete_gate.set()
    for client in deleters:
        assert client.control.answer().header.opcode == Opcode.DELETE


def test_one_session_leaves_threads_to_others(worker: RunningWorker, store: MemoryStore) -> None:
    greedy, other = worker.client(), worker.client()
    store.delete_gate.clear()
    express = [greedy.lane(express=True) for _ in range(7)]
    delete = encode_frame(
        Opcode.DELETE, 0, 9, encode_keys(0, bytes(32)), count=1, deadline_ms=30_000
    )
    greedy.control.send(delete)
    blocks = [Block(os.urandom(32), b"x" * 100) for _ in express]
    for lane, block in zip(express, blocks, strict=True):
        lane.send(lane.put_frames([block])[0][:170])  # each holds a thread until its stall limit
    assert other.lane().put([Block(os.urandom(32), b"y")]) == [Status.OK]
    store.delete_gate.set()
    greedy.control.answer()
