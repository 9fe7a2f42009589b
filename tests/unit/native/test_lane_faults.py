"""Lanes against scripted peers: what a broken, slow, lying or dying node can do to a client.

The promise each time: a typed status by the deadline, and a buffer nobody writes afterwards.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memkv._hotpath import Engine, Job, block_root, chunk_sums, xxh3_64
from memkv.limits import FENCE_BUDGET_MS
from memkv.status import Status
from memkv.testing.lane_jobs import TENANT_TAG as TAG
from memkv.testing.lane_jobs import get_job, group_with, identity, put_job, soon
from memkv.testing.lane_peer import (
    Connection,
    LanePeer,
    Request,
    respond,
    respond_absent,
    respond_hit,
    respond_statuses,
)
from memkv.wire.frame import encode_frame
from memkv.wire.items import (
    encode_get_result,
)
from memkv.wire.messages import encode_keys, pack_statuses
from memkv.wire.opcodes import Flag, Opcode

ID = identity(0)
DATA = bytes(range(256)) * 20
MIB = 1 << 20
Answer = Callable[[Request], bytes]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def fenced(job: Job) -> bool:
    return job.wait(job.deadline_ns + FENCE_BUDGET_MS * 1_000_000 * 20)


# --- bad bytes: the item is CORRUPT, the lane goes on ----------------------------------------
def flipped(request: Request) -> bytes:
    bad = bytes([DATA[0] ^ 1]) + DATA[1:]
    return respond_hit(request, 0, ID, TAG, bad, last=True, claimed=DATA)


def another_block(request: Request) -> bytes:
    return respond_hit(request, 0, identity(1), TAG, DATA, last=True)


def another_tenant(request: Request) -> bytes:
    return respond_hit(request, 0, ID, bytes(16), DATA, last=True)


def another_length(request: Request) -> bytes:
    sums = chunk_sums(DATA)
    body = encode_get_result(0, 0, len(DATA), block_root(ID, TAG, len(DATA) + 1, sums), sums)
    return respond(request, body, count=1, payload_bytes=len(DATA)) + DATA


@pytest.mark.parametrize("answer", [flipped, another_block, another_tenant, another_length])
def test_bytes_that_fail_a_check_are_corrupt_and_the_lane_goes_on(
    engine: Engine, answer: Answer
) -> None:
    def script(connection: Connection) -> None:
        connection.send(answer(connection.request()))
        connection.send(respond_hit(connection.request(), 0, ID, TAG, DATA, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        for expected in (Status.CORRUPT, len(DATA)):
            job = get_job([bytearray(len(DATA))])
            group.run(job)
            assert (job.status, job.statuses) == (0, [expected])
        assert group.lanes_open == 1
        assert group.statistics().items_corrupt == 1
        group.close()


# --- broken protocol: the lane is closed -------------------------------------------------------
def resealed(frame: bytes, offset: int, value: bytes) -> bytes:
    """Change header bytes and make the header sum right again."""
    header = bytearray(frame[:56])
    header[offset : offset + len(value)] = value
    return bytes(header) + struct.pack("<Q", xxh3_64(bytes(header))) + frame[64:]


def hit(request: Request) -> bytes:
    return respond_hit(request, 0, ID, TAG, DATA, last=True)


def result(request: Request, body: bytes, payload: bytes = b"", **more: int) -> bytes:
    flags = more.get("flags", int(Flag.RESPONSE | Flag.LAST))
    return respond(
        request, body, count=more.get("count", 1), flags=flags, payload_bytes=len(payload)
    ) + payload


LIES: dict[str, Answer] = {
    "garbage": lambda r: b"HTTP/1.1 400 Bad Request\r\n" * 10,
    "another version": lambda r: resealed(hit(r), 4, b"\x02"),
    "a changed header": lambda r: b"%b\xff%b" % (hit(r)[:41], hit(r)[42:]),
    "a changed body": lambda r: b"%b\xff%b" % (hit(r)[:70], hit(r)[71:]),
    "another opcode": lambda r: resealed(hit(r), 5, bytes([Opcode.PUT])),
    "another request id": lambda r: resealed(hit(r), 8, b"\x63"),
    "a request": lambda r: resealed(hit(r), 6, struct.pack("<H", Flag.LAST)),
    "unknown flags": lambda r: resealed(hit(r), 6, struct.pack("<H", 0x8003)),
    "no LAST on the last": lambda r: resealed(hit(r), 6, struct.pack("<H", Flag.RESPONSE)),
    "a body over the limit": lambda r: resealed(hit(r), 24, struct.pack("<I", 1 << 20)),
    "no body": lambda r: respond(r, b"", count=1),
    "two items in a frame": lambda r: resealed(hit(r), 20, struct.pack("<I", 2)),
    "an index beyond the request": lambda r: result(r, encode_get_result(1, Status.MISS)),
    "a positive status": lambda r: result(r, encode_get_result(0, 1)),
    "a length over the buffer": lambda r: respond_hit(
        r, 0, ID, TAG, bytes(len(DATA) + 1), last=True
    ),
    "a length of zero": lambda r: result(r, encode_get_result(0, 0, 0)),
    "a payload that is no length": lambda r: result(
        r, encode_get_result(0, 0, 5, sums=bytes(8)), b"1234"
    ),
    "a payload without a hit": lambda r: result(r, encode_get_result(0, Status.MISS), b"1234"),
    "too many sums": lambda r: result(r, encode_get_result(0, 0, 5, sums=bytes(16)), b"12345"),
    "more sums than fit": lambda r: result(
        r, struct.pack("<IiQ16sII", 0, 0, 5, b"", 64, 0), b"12345"
    ),
    "a hint without the flag": lambda r: result(
        r, encode_get_result(0, Status.WRONG_OWNER) + bytes(40)
    ),
    "a cut hint": lambda r: result(
        r, encode_get_result(0, Status.WRONG_OWNER) + bytes(39),
        flags=int(Flag.RESPONSE | Flag.LAST | Flag.HINTS),
    ),
    "a failure that is not the last": lambda r: respond(r, status=-4, flags=int(Flag.RESPONSE)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_broken_protocol_closes_the_lane(engine: Engine, name: str) -> None:
    def script(connection: Connection) -> None:
        connection.send(LIES[name](connection.request()))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        guarded = bytearray(len(DATA) + 64)
        view = memoryview(guarded)[: len(DATA)]
        job = get_job([view])
        group.run(job)
        assert (job.status, job.statuses) == (Status.PROTOCOL, [Status.PROTOCOL])
        assert group.lanes_open == 0
        assert group.statistics().protocol_faults == 1
        assert guarded[len(DATA) :] == bytes(64)
        group.close()


def test_an_item_answered_twice_keeps_its_first_answer(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        request = connection.request()
        first = respond_hit(request, 0, ID, TAG, DATA, last=False)
        connection.send(first, respond_absent(request, 0, Status.MISS, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(len(DATA)), bytearray(len(DATA))])
        group.run(job)
        assert job.statuses == [len(DATA), Status.PROTOCOL]
        group.close()


STATUS_LIES: dict[str, Answer] = {
    "one status too few": lambda r: respond(r, bytes(4), count=1),
    "a body that is too short": lambda r: respond(r, bytes(4), count=2),
    "bytes after the statuses": lambda r: respond(r, bytes(12), count=2),
    "a status of two": lambda r: respond_statuses(r, [0, 2]),
    "a payload": lambda r: respond(r, bytes(8), count=2, payload_bytes=8) + bytes(8),
    "more hints than keys": lambda r: respond(
        r, bytes(8 + 3 * 40), count=2, flags=int(Flag.RESPONSE | Flag.LAST | Flag.HINTS)
    ),
    "no LAST": lambda r: respond(r, bytes(8), count=2, flags=int(Flag.RESPONSE)),
}


@pytest.mark.parametrize("name", STATUS_LIES)
def test_broken_statuses_close_the_lane(engine: Engine, name: str) -> None:
    def script(connection: Connection) -> None:
        connection.send(STATUS_LIES[name](connection.request()))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        frame = encode_frame(Opcode.EXISTS, Flag.NONE, 0, encode_keys(0, ID * 2), count=2)
        job = Job.exchange(frame, 0, soon())
        group.run(job)
        assert job.statuses == [Status.PROTOCOL] * 2
        group.close()


def test_a_reply_over_its_limit_is_not_stored(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        connection.send(respond(connection.request(), bytes(101)))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = Job.exchange(encode_frame(Opcode.STAT, Flag.NONE, 0), 100, soon())
        group.run(job)
        assert (job.status, job.reply) == (Status.PROTOCOL, b"")
        group.close()


def test_more_than_was_asked_for_closes_the_lane_after_the_answer(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        connection.send(hit(connection.request()) + b"more")
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(len(DATA))])
        group.run(job)
        assert job.statuses == [len(DATA)]
        group.reap()  # what came after the answer was taken is found here
        assert group.lanes_open == 0
        group.close()


# --- time ------------------------------------------------------------------------------------
def test_a_silent_peer_costs_the_deadline_and_cannot_write_later(engine: Engine) -> None:
    returned = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        answer = respond_hit(request, 0, ID, TAG, b"x" * len(DATA), last=False)
        connection.send(answer, answer[:64])
        returned.wait(20)
        connection.send(answer[64:] * 100)

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        targets = [bytearray(len(DATA)) for _ in range(3)]
        job = get_job(targets, soon(1))
        group.run(job)
        assert fenced(job)
        assert time.monotonic_ns() >= job.deadline_ns
        assert job.status == Status.TIMEOUT
        assert job.statuses == [len(DATA), Status.TIMEOUT, Status.TIMEOUT]
        assert group.lanes_open == 0
        returned.set()
        peer.join()
        assert targets[1:] == [bytearray(len(DATA))] * 2
        assert group.statistics().jobs_timed_out == 1
        group.close()


def test_a_peer_that_trickles_a_block_costs_no_more_than_the_deadline(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        answer = respond_hit(connection.request(), 0, ID, TAG, bytes(MIB), last=True)
        for position in range(len(answer)):
            connection.send(answer[position : position + 1])

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(MIB)], soon(0.05))
        group.submit(job)
        assert fenced(job)
        assert job.statuses == [Status.TIMEOUT]
        group.close()


def test_a_peer_that_does_not_read_costs_no_more_than_the_deadline(engine: Engine) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        done.wait(20)

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = put_job([bytes(16 * MIB)], soon(0.1))
        group.run(job)
        assert fenced(job)
        assert job.statuses == [Status.TIMEOUT]
        done.set()
        group.close()


def test_a_job_queued_behind_a_long_one_leaves_at_its_deadline(engine: Engine) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        done.wait(20)
        connection.send(hit(request))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        long = get_job([bytearray(len(DATA))])
        late = get_job([bytearray(len(DATA))], soon(0.05))
        group.submit(long)
        group.submit(late, notify=True)
        assert select.select([engine.event_fd], [], [], 20)[0]
        assert engine.completions(10) == [late]
        assert late.statuses == [Status.TIMEOUT]
        assert group.statistics().jobs_expired == 1
        assert group.lanes_open == 1
        done.set()
        assert long.wait(soon())
        assert long.statuses == [len(DATA)]
        group.close()


def test_a_deadline_that_has_passed_spares_the_lane(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        for give in (group.run, group.submit):
            job = get_job([bytearray(10)], time.monotonic_ns() - 1)
            give(job)
            assert job.wait(soon())
            assert job.statuses == [Status.TIMEOUT]
        assert group.lanes_open == 1
        group.close()


def test_a_job_given_up_comes_back_as_a_completion(engine: Engine) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        done.wait(20)
        connection.send(hit(request))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(len(DATA))])
        group.submit(job)
        assert not job.wait(time.monotonic_ns() + 10_000_000)
        with pytest.raises(RuntimeError, match="not done"):
            _ = job.statuses
        done.set()
        assert select.select([engine.event_fd], [], [], 20)[0]
        assert engine.completions(10) == [job]
        assert job.statuses == [len(DATA)]
        group.close()


# --- peers that go ---------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0, 30, 64, 100, 112, 1000], ids=lambda keep: f"{keep} bytes")
def test_a_peer_that_closes_in_the_middle_is_unavailable(engine: Engine, keep: int) -> None:
    with LanePeer(lambda c: c.send(hit(c.request())[:keep])) as peer:
        group = group_with(engine, peer)
        queued = [get_job([bytearray(len(DATA))]) for _ in range(3)]
        for job in queued:
            group.submit(job)
        assert all(job.wait(soon()) for job in queued)
        assert [job.statuses for job in queued] == [[Status.UNAVAILABLE]] * 3
        assert group.lanes_open == 0
        late = get_job([bytearray(10)])
        group.run(late)
        assert late.status == Status.UNAVAILABLE
        group.close()


def test_a_refusal_before_the_put_was_read_is_heard(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        header = connection.receive(64)
        request_id = struct.unpack_from("<Q", header, 8)[0]
        flags = Flag.RESPONSE | Flag.LAST
        connection.send(
            encode_frame(Opcode.PUT, flags, request_id, b"full", status=int(Status.NO_SPACE))
        )
        connection.socket.shutdown(socket.SHUT_WR)
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = put_job([bytes(16 * MIB)])
        group.run(job)
        assert (job.status, job.statuses) == (Status.NO_SPACE, [Status.NO_SPACE])
        assert job.reply == b"full"
        assert group.lanes_open == 0
        group.close()


def test_a_success_before_the_put_was_sent_is_a_lie(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        request_id = struct.unpack_from("<Q", connection.receive(64), 8)[0]
        flags = Flag.RESPONSE | Flag.LAST
        connection.send(
            encode_frame(Opcode.PUT, flags, request_id, pack_statuses([0]), count=1)
        )
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = put_job([bytes(16 * MIB)])
        group.run(job)
        assert job.statuses == [Status.PROTOCOL]
        group.close()


def test_lanes_whose_peer_went_while_idle_cost_no_job(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        if connection.number < 2:
            return
        connection.send(hit(connection.request()))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, lanes=3)
        peer_gone(peer, 2)
        job = get_job([bytearray(len(DATA))])
        group.run(job)
        assert job.wait(soon())
        assert job.statuses == [len(DATA)]
        group.reap()
        assert group.lanes_open == 1
        group.add_lane(peer.connect())
        assert group.lanes_open == 2
        group.close()


def test_lanes_whose_peer_went_while_idle_are_found_without_a_job(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        if connection.number >= 2:
            connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, lanes=3)
        peer_gone(peer, 2)
        assert group.lanes_open == 3, "nobody has looked"
        assert group.reap() == 2
        assert group.lanes_open == 1
        assert group.reap() == 0
        group.close()


def peer_gone(peer: LanePeer, count: int) -> None:
    for thread in peer.threads[:count]:
        thread.join(20)
