"""Lanes for shared memory: the peer writes, the lane checks, and waits for it beyond a deadline."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator

import pytest

from memkv._hotpath import Engine, Job, LaneGroup, address_of
from memkv.status import Status
from memkv.testing.lane_jobs import TENANT_TAG as TAG
from memkv.testing.lane_jobs import group_with, identity, local_get_job, soon
from memkv.testing.lane_peer import (
    Connection,
    LanePeer,
    respond,
    respond_absent,
    respond_placed,
    respond_statuses,
)
from memkv.wire.frame import encode_frame
from memkv.wire.items import PutItem, encode_get_result, encode_put_item
from memkv.wire.local import LocalGetItem, Part, decode_local_put, encode_local_get, encode_parts
from memkv.wire.opcodes import Flag, Opcode

SIZE = 300_000
DATA = bytes(range(250)) * (SIZE // 250)
GRACE_MS = 50
WAIT_S = 30


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def completion(engine: Engine) -> Job:
    """Wait for the next report."""
    assert select.select([engine.event_fd], [], [], WAIT_S)[0]
    [job] = engine.completions(1)
    return job


def test_what_was_placed_is_checked_where_it_lies(engine: Engine) -> None:
    targets = [bytearray(SIZE) for _ in range(4)]

    def script(connection: Connection) -> None:
        request = connection.request()
        assert request.header.opcode == Opcode.LOCAL_GET
        targets[2][:] = DATA
        targets[0][:1000] = DATA[:1000]
        targets[3][:] = DATA
        targets[3][-1] ^= 1
        connection.send(
            respond_placed(request, 2, identity(2), TAG, DATA, last=False),
            respond_absent(request, 1, Status.MISS, last=False),
            respond_placed(request, 3, identity(3), TAG, DATA, last=False),  # a lie
            respond_placed(request, 0, identity(0), TAG, DATA[:1000], last=True),
        )
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        job = local_get_job(targets)
        group.run(job)
        assert job.wait(soon())
        assert job.statuses == [1000, Status.MISS, SIZE, Status.CORRUPT]
        assert job.lengths[0] == 1000
        counts = group.statistics()
        assert (counts.items_corrupt, counts.bytes_received) == (1, SIZE + 1000)
        assert group.lanes_open == 1
        assert group.close()


def test_sums_of_another_block_or_tenant_are_corrupt(engine: Engine) -> None:
    target = bytearray(SIZE)

    def script(connection: Connection) -> None:
        for block_id, tag in ((identity(5), TAG), (identity(0), bytes(16))):
            request = connection.request()
            target[:] = DATA
            connection.send(respond_placed(request, 0, block_id, tag, DATA, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        for _ in range(2):
            job = local_get_job([target])
            group.run(job)
            assert job.wait(soon())
            assert job.statuses == [Status.CORRUPT]
        group.close()


def test_an_answer_after_the_deadline_is_a_timeout_and_the_lane_stays(engine: Engine) -> None:
    target = bytearray(SIZE)
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        assert go_on.wait(WAIT_S)
        target[:] = DATA
        connection.send(respond_placed(request, 0, identity(0), TAG, DATA, last=True))
        request = connection.request()
        connection.send(respond_placed(request, 0, identity(0), TAG, DATA, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        late = local_get_job([target], soon(1))
        group.run(late)  # in this thread it would never come back
        assert not late.done
        assert not late.wait(soon(0.05))
        assert engine.completions(10) == []
        go_on.set()
        assert completion(engine) is late
        assert not late.overdue
        assert late.statuses == [Status.TIMEOUT]
        assert group.lanes_open == 1
        again = local_get_job([target])
        group.run(again)
        assert again.wait(soon())
        assert again.statuses == [SIZE]
        group.close()


def test_a_submitted_job_is_reported_late_and_again_when_it_ends(engine: Engine) -> None:
    target = bytearray(SIZE)
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        assert go_on.wait(WAIT_S)
        connection.send(respond_placed(request, 0, identity(0), TAG, DATA, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        job = local_get_job([target], soon(1.5))
        group.submit(job, notify=True)
        queued = local_get_job([bytearray(10)], soon(0.5))
        group.submit(queued, notify=True)
        assert completion(engine) is queued  # never sent, so its memory is free
        assert queued.statuses == [Status.TIMEOUT]
        assert completion(engine) is job
        assert job.overdue
        assert not job.done
        go_on.set()
        assert completion(engine) is job
        assert not job.overdue
        assert job.statuses == [Status.TIMEOUT]
        group.close()


def test_the_end_of_the_peer_frees_the_memory(engine: Engine) -> None:
    targets = [bytearray(SIZE), bytearray(SIZE)]

    def script(connection: Connection) -> None:
        request = connection.request()
        targets[1][:] = DATA
        connection.send(respond_placed(request, 1, identity(1), TAG, DATA, last=False))

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        job = local_get_job(targets)
        group.run(job)
        assert job.wait(soon())
        assert job.statuses == [Status.UNAVAILABLE, SIZE]
        assert group.lanes_open == 0
        group.close()


@pytest.mark.parametrize("fault", ["payload", "length", "index", "garbage"])
def test_a_peer_that_breaks_the_protocol_is_waited_for(engine: Engine, fault: str) -> None:
    target = bytearray(SIZE)
    half_closed = threading.Event()
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        if fault == "payload":
            body = encode_get_result(0, 0, 5, bytes(16), bytes(8))
            connection.send(respond(request, body, count=1, payload_bytes=5), b"12345")
        elif fault == "length":
            body = encode_get_result(0, 0, SIZE + 1, bytes(16), bytes(16))
            connection.send(respond(request, body, count=1))
        elif fault == "index":
            body = encode_get_result(7, int(Status.MISS))
            connection.send(respond(request, body, count=1))
        else:
            connection.send(b"x" * 100)
        assert connection.until_closed() == b""  # its sending side: nothing more is asked
        half_closed.set()
        assert go_on.wait(WAIT_S)
        target[:] = DATA  # still writing; the end of the connection says that this is over

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        job = local_get_job([target])
        group.submit(job)
        assert half_closed.wait(WAIT_S)
        assert not job.done
        go_on.set()
        assert job.wait(soon())
        assert job.statuses == [Status.PROTOCOL]
        assert target == DATA
        group.close()


def test_closing_leaves_a_job_that_awaits_its_peer(engine: Engine) -> None:
    target = bytearray(SIZE)
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        assert go_on.wait(WAIT_S)
        assert connection.until_closed() == b""
        target[:] = DATA
        connection.send(respond_placed(request, 0, identity(0), TAG, DATA, last=True))

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        job = local_get_job([target], soon(1))
        group.run(job)
        assert not job.wait(soon(0.05))
        assert not group.close()
        assert not group.close()  # and does not wait again
        assert not job.done
        refused = local_get_job([target])
        group.submit(refused)
        assert refused.wait(soon())
        assert refused.statuses == [Status.CLOSED]
        go_on.set()
        assert completion(engine) is job
        assert job.statuses == [Status.TIMEOUT]
        end = time.monotonic() + WAIT_S
        while not group.close():
            assert time.monotonic() < end


def test_dropping_everything_with_a_job_under_way_hurts_nobody() -> None:
    """The group, its engine and the job's memory live on until the peer is gone."""
    requested = threading.Event()
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        requested.set()
        assert go_on.wait(WAIT_S)
        connection.send(respond_placed(request, 0, identity(0), TAG, DATA, last=True))

    with LanePeer(script) as peer:
        engine = Engine()
        group: LaneGroup | None = group_with(engine, peer, grace_ms=GRACE_MS)
        assert group is not None
        group.submit(local_get_job([bytearray(SIZE)], soon(1)), notify=True)
        assert requested.wait(WAIT_S)
        engine.close()
        del group, engine
        go_on.set()


def test_a_put_sends_sums_and_parts_but_no_payload(engine: Engine) -> None:
    blocks = [DATA, DATA[:10]]
    seen: list[tuple[PutItem, tuple[Part, ...]]] = []

    def script(connection: Connection) -> None:
        while True:
            request = connection.request()
            assert request.header.opcode == Opcode.LOCAL_PUT
            assert request.payload == b""
            seen.append(decode_local_put(request.body))
            if request.header.flags & Flag.LAST:
                break
        connection.send(respond_statuses(request, [0, Status.BUSY]))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, grace_ms=GRACE_MS)
        parts = [[Part(1, 0, 1000), Part(2, 7, SIZE - 1000)], [Part(3, 99, 10)]]
        items = [PutItem(identity(n), len(b), bytes(16), b"") for n, b in enumerate(blocks)]
        body = b"".join([encode_put_item(i) for i in items] + [encode_parts(p) for p in parts])
        frame = encode_frame(Opcode.LOCAL_PUT, Flag.NONE, 0, body, count=2)
        first, second = address_of(blocks[0]), address_of(blocks[1])
        scatters = [[(first, 1000), (first + 1000, SIZE - 1000)], [(second, 10)]]
        job = Job.local_put(frame, scatters, TAG, soon(), owner=blocks)
        group.submit(job)
        assert job.wait(soon())
        assert job.statuses == [0, Status.BUSY]
        assert [list(p) for _, p in seen] == parts
        assert [item.length for item, _ in seen] == [SIZE, 10]
        assert len(seen[0][0].sums) == 16
        group.close()


@pytest.mark.parametrize(
    ("parts", "pieces", "why"),
    [
        ([Part(1, 0, 10)], [(1, 10), (1, 10)], "as many"),
        ([Part(1, 0, 10)], [(1, 11)], "length of its part"),
        ([Part(1, 0, 10), Part(1, 0, 5)], [(1, 15)], "as many"),
        ([Part(1, 0, 2**40)], [(1, 2**40)], "16 MiB"),
        ([Part(1, 0, 1)] * 257, [(1, 1)] * 257, "256 parts"),
        ([], [], "256 parts"),
    ],
)
def test_parts_and_memory_must_agree(
    parts: list[Part], pieces: list[tuple[int, int]], why: str
) -> None:
    body = encode_local_get([LocalGetItem(identity(0), tuple(parts))])
    frame = encode_frame(Opcode.LOCAL_GET, Flag.NONE, 0, body, count=1)
    with pytest.raises(ValueError, match=why):
        Job.local_get(frame, [pieces], TAG, soon())
