"""Lane groups: how jobs, queues and groups end, and what is refused."""

import threading
from collections.abc import Iterator

import pytest

from memkv._hotpath import Engine, Job, LaneGroup
from memkv.clock import SystemClock
from memkv.status import Status
from memkv.testing.lane_jobs import TENANT_TAG as TAG
from memkv.testing.lane_jobs import get_job, group_with, identity, put_job, soon
from memkv.testing.lane_peer import Connection, LanePeer, respond_absent
from memkv.wire.frame import encode_frame
from memkv.wire.items import RangesItem, encode_get_request, encode_ranges_request
from memkv.wire.opcodes import Flag, Opcode

ID = identity(0)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def test_cancel_takes_a_job_off_the_queue_or_closes_its_lane(engine: Engine) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        asked.set()
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        running, queued = get_job([bytearray(10)]), get_job([bytearray(10)])
        running.cancel()  # not given yet: nothing happens
        group.submit(running)
        assert asked.wait(20)
        group.submit(queued)
        queued.cancel()
        assert queued.wait(soon())
        assert queued.statuses == [Status.CLOSED]
        assert group.lanes_open == 1
        running.cancel()
        assert running.wait(soon())
        assert running.statuses == [Status.CLOSED]
        assert group.lanes_open == 0
        running.cancel()
        group.close()


def wait_for_idle(group: LaneGroup, count: int) -> None:
    """A lane that was woken for a job that another took is not idle for a moment."""
    clock, deadline_ns = SystemClock(), soon()
    while group.lanes_idle != count:
        assert clock.monotonic_ns() < deadline_ns, f"{group.lanes_idle} lanes are idle, not {count}"


def test_a_lane_is_idle_while_it_has_no_job(engine: Engine) -> None:
    asked, answer = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        request = connection.request()
        asked.set()
        assert answer.wait(20)
        connection.send(respond_absent(request, 0, Status.MISS, last=True))
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, lanes=2)
        assert (group.lanes_open, group.lanes_idle) == (2, 2)
        job = get_job([bytearray(10)])
        group.submit(job)
        assert asked.wait(20)
        wait_for_idle(group, 1)
        assert group.lanes_open == 2
        answer.set()
        assert job.wait(soon())
        assert job.statuses == [Status.MISS]
        wait_for_idle(group, 2)
        group.close()
        assert (group.lanes_open, group.lanes_idle) == (0, 0)


def test_close_ends_jobs_on_lanes_in_the_queue_and_in_callers(engine: Engine) -> None:
    asked = threading.Semaphore(0)

    def script(connection: Connection) -> None:
        connection.request()
        asked.release()
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, lanes=2)
        jobs = [get_job([bytearray(10)]) for _ in range(4)]
        caller = threading.Thread(target=group.run, args=(jobs[0],))
        caller.start()
        asked.acquire(timeout=20)
        for job in jobs[1:]:
            group.submit(job)
        asked.acquire(timeout=20)
        group.close()
        group.close()
        caller.join(20)
        assert [job.statuses for job in jobs] == [[Status.CLOSED]] * 4
        assert group.lanes_open == 0
        late = get_job([bytearray(10)])
        group.submit(late)
        assert late.statuses == [Status.CLOSED]
        with pytest.raises(ValueError, match="is closed"):
            group.add_lane(peer.connect())


def test_a_dropped_group_closes_and_its_job_ends(engine: Engine) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        asked.set()
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer)
        job = get_job([bytearray(10)])
        group.submit(job, notify=True)
        asked.wait(20)
        del group, job
        engine.close()
        assert [job.status for job in engine.completions(10)] == [Status.CLOSED]


def test_the_queue_and_the_lanes_are_bounded(engine: Engine) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        asked.set()
        connection.until_closed()

    with LanePeer(script) as peer:
        group = group_with(engine, peer, queue_max=2)
        jobs = [get_job([bytearray(10)]) for _ in range(4)]
        group.submit(jobs[0])
        assert asked.wait(20)
        for job in jobs[1:]:
            group.submit(job)
        assert group.jobs_queued == 2
        assert jobs[3].statuses == [Status.BUSY]
        with pytest.raises(ValueError, match="its 1 lanes already"):
            group.add_lane(peer.connect())
        group.close()
        assert group.statistics().jobs_refused == 1


def test_jobs_that_cannot_be_are_the_callers_bug() -> None:
    def get(body: bytes, count: int, scatters: list[list[tuple[int, int]]]) -> None:
        frame = encode_frame(Opcode.GET, Flag.NONE, 0, body, count=count)
        Job.get(frame, scatters, TAG, soon())

    one = encode_get_request(ID, [10])
    for match, body, count, scatters in (
        ("48 bytes an item", one[:-1], 1, [[(1, 10)]]),
        ("48 bytes an item", one, 2, [[(1, 10)]]),
        ("at least one item", b"", 0, []),
        ("at most 1024", b"", 1025, []),
        ("2 scatter lists for 1", one, 1, [[(1, 10)], []]),
        ("do not have the length", one, 1, [[(1, 9)]]),
        ("item 0: an address is null", one, 1, [[(0, 10)]]),
    ):
        with pytest.raises(ValueError, match=match):
            get(body, count, scatters)
    with pytest.raises(ValueError, match="64 bytes of header"):
        Job.exchange(b"short", 0, soon())
    with pytest.raises(ValueError, match="another operation"):
        Job.put(encode_frame(Opcode.GET, Flag.NONE, 0, one, count=1), [[(1, 10)]], TAG, soon())
    with pytest.raises(ValueError, match="16 bytes"):
        Job.get(encode_frame(Opcode.GET, Flag.NONE, 0, one, count=1), [[(1, 10)]], b"", soon())
    with pytest.raises(ValueError, match="1 byte to 16 MiB"):
        put_job([b""])
    ranges = encode_ranges_request([RangesItem(ID, ((0, 5),))])
    with pytest.raises(ValueError, match="longer than its items"):
        Job.get_ranges(
            encode_frame(Opcode.GET_RANGES, Flag.NONE, 0, ranges + b"x", count=1),
            [[(1, 5)]], TAG, soon(),
        )
    with pytest.raises(TypeError, match="make a job with"):
        Job()


def test_a_job_runs_once(engine: Engine) -> None:
    group = LaneGroup(engine, "test", 1)
    job = get_job([bytearray(10)])
    with pytest.raises(ValueError, match="not given"):
        job.wait(soon())
    group.run(job)
    assert job.status == Status.UNAVAILABLE
    with pytest.raises(ValueError, match="runs once"):
        group.submit(job)
