"""Lanes against scripted peers: what a healthy pool does."""

import json
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv._hotpath import (
    Engine,
    Job,
    LaneGroup,
    Stream,
    Wave,
    address_of,
    block_root,
    chunk_sums,
    xxh3_64,
)
from memkv.status import Status
from memkv.tenant import tenant_tag
from memkv.testing.lane_jobs import TENANT_TAG as TAG
from memkv.testing.lane_jobs import get_job, group_with, identity, put_job, soon
from memkv.testing.lane_peer import (
    Connection,
    LanePeer,
    respond,
    respond_absent,
    respond_hit,
    respond_statuses,
)
from memkv.wire.frame import encode_frame
from memkv.wire.hints import Hint, decode_hints
from memkv.wire.items import (
    RangesItem,
    decode_put_item,
    encode_get_request,
    encode_get_result,
    encode_get_result_with_hint,
    encode_ranges_request,
)
from memkv.wire.messages import encode_keys, encode_statuses, pack_statuses
from memkv.wire.opcodes import Flag, Opcode

CHUNK = 256 * 1024
GOLDEN = Path(__file__).parents[2] / "golden" / "frames.json"


def pattern(length: int, seed: int = 1) -> bytes:
    unit = bytes((seed + i) % 251 for i in range(1000))
    return (unit * (length // 1000 + 1))[:length]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def test_a_get_by_the_calling_thread(engine: Engine) -> None:
    data = pattern(2 * CHUNK + 77)

    def script(connection: Connection) -> None:
        request = connection.request()
        assert request.header.opcode == Opcode.GET
        assert 0 < request.header.deadline_ms <= 20_000
        connection.send(respond_hit(request, 0, identity(0), TAG, data, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        target = bytearray(3 * CHUNK)
        job = get_job([target])
        assert not job.done
        group.run(job)
        assert job.done
        assert (job.status, job.statuses, job.lengths) == (0, [len(data)], [len(data)])
        assert target[: len(data)] == data
        assert target[len(data) :] == bytes(CHUNK - 77)
        assert group.statistics().bytes_received == len(data)
        group.close()


def test_items_come_in_any_order_with_any_status(engine: Engine) -> None:
    data = pattern(5000)
    hint = Hint(4, 17, 9, 3, bytes(range(16)), "10.0.0.7", 7072)

    def script(connection: Connection) -> None:
        request = connection.request()
        more = Flag.RESPONSE
        connection.send(
            respond_absent(request, 3, Status.BUFFER_TOO_SMALL, last=False, length=99_999),
            respond_hit(request, 2, identity(2), TAG, data, last=False),
            respond(
                request, encode_get_result_with_hint(4, Status.WRONG_OWNER, hint),
                count=1, flags=more | Flag.HINTS,
            ),
            respond_absent(request, 0, Status.MISS, last=False),
            respond_hit(request, 1, identity(1), TAG, data[:100], last=True),
        )
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        targets = [bytearray(6000) for _ in range(5)]
        job = get_job(targets)
        group.run(job)
        assert job.status == 0
        assert job.statuses == [
            Status.MISS, 100, 5000, Status.BUFFER_TOO_SMALL, Status.WRONG_OWNER
        ]
        assert job.lengths == [0, 100, 5000, 99_999, 0]
        assert decode_hints(job.hints) == [hint]
        assert targets[2][:5000] == data
        assert targets[0] == bytes(6000)
        group.close()


@pytest.mark.parametrize("piece", [1000, 8192, CHUNK + 1], ids=["small", "page", "large"])
def test_a_block_is_scattered_over_pieces(engine: Engine, piece: int) -> None:
    data = pattern(4 * CHUNK + 5)

    def script(connection: Connection) -> None:
        request = connection.request()
        frame = respond_hit(request, 0, identity(0), TAG, data, last=True)
        for start in range(0, len(frame), 70_001):
            connection.send(frame[start : start + 70_001])
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        pieces = [bytearray(piece) for _ in range(len(data) // piece + 1)]
        scatter = [(address_of(part), piece) for part in pieces]
        scatter.insert(1, (0, 0))
        body = encode_get_request(identity(0), [len(data)])
        frame = encode_frame(Opcode.GET, Flag.NONE, 0, body, count=1)
        job = Job.get(frame, [scatter], TAG, soon(), owner=pieces)
        group.run(job)
        assert job.statuses == [len(data)]
        assert b"".join(pieces)[: len(data)] == data
        group.close()


def test_ranges_have_a_sum_each(engine: Engine) -> None:
    block = pattern(3 * CHUNK)
    ranges = [[(0, 10), (CHUNK - 5, CHUNK + 10), (7, 1)], [(100, 3000)]]

    def script(connection: Connection) -> None:
        request = connection.request()
        for index, wanted in enumerate(ranges):
            parts = [block[offset : offset + length] for offset, length in wanted]
            sums = b"".join(struct.pack("<Q", xxh3_64(part)) for part in parts)
            data = b"".join(parts)
            if index == 1:
                data = b"!" + data[1:]
            body = encode_get_result(index, 0, len(data), sums=sums, source=1)
            flags = Flag.RESPONSE | (Flag.LAST if index else Flag.NONE)
            connection.send(
                respond(request, body, count=1, flags=flags, payload_bytes=len(data)), data
            )
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        items = [RangesItem(identity(i), tuple(wanted)) for i, wanted in enumerate(ranges)]
        frame = encode_frame(
            Opcode.GET_RANGES, Flag.NONE, 0, encode_ranges_request(items), count=2
        )
        targets = [bytearray(CHUNK + 21), bytearray(3000)]
        halves = memoryview(targets[0])
        scatters = [
            [(address_of(halves[:4]), 4), (address_of(halves[4:]), CHUNK + 17)],
            [(address_of(targets[1]), 3000)],
        ]
        job = Job.get_ranges(frame, scatters, TAG, soon(), owner=targets)
        group.run(job)
        assert job.statuses == [CHUNK + 21, Status.CORRUPT]
        assert job.sources == [1, 1]
        assert targets[0] == block[:10] + block[CHUNK - 5 : 2 * CHUNK + 5] + block[7:8]
        group.close()


def test_a_put_batch_is_summed_and_acknowledged(engine: Engine) -> None:
    blocks = [pattern(1000), pattern(2 * CHUNK + 3, 5), pattern(CHUNK, 9)]

    def script(connection: Connection) -> None:
        requests = [connection.request() for _ in blocks]
        for index, (request, block) in enumerate(zip(requests, blocks, strict=True)):
            item = decode_put_item(request.body, request.header.payload_bytes)
            assert request.payload == block
            assert item.sums == chunk_sums(block)
            assert item.root == block_root(identity(index), TAG, len(block), item.sums)
            assert (item.ttl_s, item.depth) == (60, index)
            assert bool(request.header.flags & Flag.LAST) is (index == len(blocks) - 1)
            assert request.header.request_id == requests[0].header.request_id
        connection.send(respond_statuses(requests[0], [0, Status.BUSY, 0]))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = put_job(blocks)
        group.run(job)
        assert (job.status, job.statuses) == (0, [0, Status.BUSY, 0])
        assert group.statistics().bytes_sent == sum(map(len, blocks))
        group.close()


def test_exchanges_keep_their_reply_statuses_and_hints(engine: Engine) -> None:
    hint = Hint(1, 5, 9, 3, bytes(16), "host", 7070)

    def script(connection: Connection) -> None:
        stat = connection.request()
        connection.send(respond(stat, b'{"blocks": 1}'))
        exists = connection.request()
        statuses = pack_statuses([1, Status.WRONG_OWNER, 0])
        connection.send(
            respond(
                exists, encode_statuses(statuses, [hint]), count=3,
                flags=Flag.RESPONSE | Flag.LAST | Flag.HINTS,
            )
        )
        failing = connection.request()
        connection.send(respond(failing, b"not now", status=Status.BUSY))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        stat = Job.exchange(encode_frame(Opcode.STAT, Flag.NONE, 0), 1000, soon())
        group.run(stat)
        assert (stat.status, stat.reply, stat.statuses) == (0, b'{"blocks": 1}', [])
        ids = b"".join(identity(i) for i in range(3))
        body = encode_keys(0, ids)
        frame = encode_frame(Opcode.EXISTS, Flag.NONE, 0, body, count=3)
        exists = Job.exchange(frame, 0, soon())
        group.run(exists)
        assert exists.statuses == [1, Status.WRONG_OWNER, 0]
        assert decode_hints(exists.hints) == [hint]
        failing = Job.exchange(frame, 0, soon())
        group.run(failing)
        assert (failing.status, failing.reply) == (Status.BUSY, b"not now")
        assert failing.statuses == [Status.BUSY] * 3
        assert group.lanes_open == 1
        group.close()


def test_a_refused_request_gives_its_status_to_what_was_not_answered(engine: Engine) -> None:
    def script(connection: Connection) -> None:
        request = connection.request()
        connection.send(
            respond_hit(request, 1, identity(1), TAG, b"data", last=False),
            respond(request, b"session over", status=Status.DENIED),
        )
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(10), bytearray(10), bytearray(10)])
        group.run(job)
        assert (job.status, job.reply) == (Status.DENIED, b"session over")
        assert job.statuses == [Status.DENIED, 4, Status.DENIED]
        group.close()


def serve_gets(connection: Connection) -> None:
    """Answer every GET with the item's number in each byte."""
    while True:
        request = connection.request()
        for index in range(request.header.item_count):
            block_id = request.body[48 * index : 48 * index + 32]
            data = bytes([block_id[0]]) * struct.unpack_from("<Q", request.body, 48 * index + 32)[0]
            last = index + 1 == request.header.item_count
            connection.send(respond_hit(request, index, block_id, TAG, data, last=last))


def test_many_jobs_over_several_lanes_report_through_the_eventfd(engine: Engine) -> None:
    with LanePeer(serve_gets) as peer:
        group = group_with(engine, peer, lanes=3)
        targets = [[bytearray(9000), bytearray(9000)] for _ in range(60)]
        jobs = [get_job(pair) for pair in targets]
        for number, job in enumerate(jobs):
            job.token = number
            group.submit(job, notify=True)
        finished: list[Job] = []
        while len(finished) < len(jobs):
            assert select.select([engine.event_fd], [], [], 20)[0]
            finished += engine.completions(7)
        assert {job.token for job in finished} == set(range(60))
        assert not select.select([engine.event_fd], [], [], 0)[0]
        assert all(job.statuses == [9000, 9000] for job in jobs)
        assert all(pair[1] == b"\x01" * 9000 for pair in targets)
        assert group.statistics().jobs_run == 60
        group.close()


def test_callers_and_lane_threads_share_lanes(engine: Engine) -> None:
    with LanePeer(serve_gets) as peer:
        group = group_with(engine, peer, lanes=2)
        results: list[list[int]] = []

        def work() -> None:
            for _ in range(30):
                job = get_job([bytearray(3000)])
                group.run(job)
                assert job.wait(soon())
                results.append(job.statuses)

        callers = [threading.Thread(target=work) for _ in range(4)]
        for caller in callers:
            caller.start()
        queued = [get_job([bytearray(2000)]) for _ in range(30)]
        for job in queued:
            group.submit(job)
        for caller in callers:
            caller.join()
        assert all(job.wait(soon()) for job in queued)
        assert results == [[3000]] * 120
        group.close()


def test_a_stream_can_become_a_lane(engine: Engine) -> None:
    with LanePeer(serve_gets) as peer:
        group = LaneGroup(engine, "test", 1)
        stream = Stream(peer.connect())
        group.add_lane(stream)
        assert stream.fd == -1
        job = get_job([bytearray(10)])
        group.run(job)
        assert job.statuses == [10]
        group.close()


def test_a_wave_wakes_the_reader_with_its_last_job(engine: Engine) -> None:
    with LanePeer(serve_gets) as peer:
        group = group_with(engine, peer)
        jobs = [get_job([bytearray(2000)]) for _ in range(3)]
        wave = Wave(len(jobs))
        for job in jobs[:2]:
            group.submit(job, notify=True, wave=wave)
            assert job.wait(soon())
        assert not select.select([engine.event_fd], [], [], 0)[0]
        assert engine.completions(1) == jobs[:1]
        group.submit(jobs[2], notify=True, wave=wave)
        del wave
        assert select.select([engine.event_fd], [], [], 20)[0]
        assert engine.completions(5) == jobs[1:]
        assert not select.select([engine.event_fd], [], [], 0)[0]
        group.close()


def test_a_wave_of_refused_jobs_wakes_the_reader(engine: Engine) -> None:
    group = LaneGroup(engine, "no lane", 1)
    jobs = [get_job([bytearray(10)]) for _ in range(2)]
    wave = Wave(len(jobs))
    for job in jobs:
        group.submit(job, notify=True, wave=wave)
    assert select.select([engine.event_fd], [], [], 20)[0]
    assert engine.completions(5) == jobs
    assert [job.status for job in jobs] == [Status.UNAVAILABLE] * 2
    group.close()


def test_the_engine_can_be_woken_by_hand(engine: Engine) -> None:
    engine.notify()
    assert select.select([engine.event_fd], [], [], 0)[0]
    assert engine.completions(5) == []
    assert not select.select([engine.event_fd], [], [], 0)[0]


def test_golden_frames_are_understood(engine: Engine) -> None:
    frames = {name: bytes.fromhex(text) for name, text in json.loads(GOLDEN.read_text()).items()}
    payload = b"hello world, twice a block"

    def script(connection: Connection) -> None:
        request = connection.request()
        # The lane chose its own request id: put it into the frozen answers.
        for name in ("get_response_hit", "get_response_elsewhere"):
            summed = frames[name][:8] + struct.pack("<Q", request.header.request_id)
            summed += frames[name][16:56]
            connection.send(summed, struct.pack("<Q", xxh3_64(summed)), frames[name][64:])
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        targets = [bytearray(4096), bytearray(8192)]
        scatters = [[(address_of(target), len(target))] for target in targets]
        job = Job.get(frames["get"], scatters, tenant_tag("default"), soon(), owner=targets)
        group.run(job)
        assert job.statuses == [len(payload), Status.WRONG_OWNER]
        assert targets[0][: len(payload)] == payload
        assert job.sources == [1, 0]
        group.close()
