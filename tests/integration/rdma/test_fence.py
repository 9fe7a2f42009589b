"""The fence: whatever ends a call, no byte of it arrives in its buffer afterwards."""

import random
import threading
import time
from collections.abc import Callable

import pytest

from memkv.client.events import Completion
from memkv.client.sync import Client
from memkv.limits import FENCE_BUDGET_MS, KIB, MIB
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers
from memkv.testing.registered import Arena, content, lanes_open, sides, wait_for_lanes
from memkv.testing.waiting import eventually, stays

SIZE = 2 * MIB
PIECE = 32 * KIB
DATA = content("k", SIZE)
SLACK_S = 5.0  # of a busy machine, not of the product
REUSED = [bytes([value]) * SIZE for value in (0x5A, 0xA5)]
HELD_MS = 1_000
RESULTS = {SIZE, Status.TIMEOUT, Status.UNAVAILABLE, Status.QUARANTINED}


class Cutter:
    """Gets that are cut, and a buffer that is reused at once."""

    def __init__(self, fabric: FakeFabric, pool: LocalWorkers, strict: bool) -> None:
        self.fabric = fabric
        self.pool = pool
        self.strict = strict
        self.random = random.Random(strict)
        self.late = 0
        fabric.knobs.piece_bytes = PIECE
        self.cut_in_the_middle = 0
        self.client, self.arena = self.connect()
        assert self.client.put("k", DATA) == 0

    def connect(self, deadline_ms: int = 5_000) -> tuple[Client, Arena]:
        client, _ = self.pool.client(
            self.pool.map(), deadline_ms=deadline_ms, strict=self.strict,
            verbs=FakeVerbs(self.fabric, ["client0"]),
        )  # fmt: skip
        arena = Arena(client, SIZE)
        wait_for_lanes(client)
        return client, arena

    def get(self, client: Client, arena: Arena) -> int:
        """Get, reuse the buffer at once, and look whether it stays as it is."""
        before = self.fabric.moved_bytes["write"]
        [result] = client.batch_get_into(["k"], [arena.address], [SIZE])
        reused = self.random.choice(REUSED)
        assert result in RESULTS
        if result == Status.QUARANTINED:  # a busy machine's fence; its buffer comes back
            eventually(lambda: is_given_back(client, arena), "the buffer")
        if result == SIZE:
            assert arena.holds(0, DATA)
        arena.fill(0, reused)
        written = self.fabric.moved_bytes["write"] - before
        self.cut_in_the_middle += 0 < written < SIZE
        self.fabric.release()
        self.fabric.settle()
        self.late += not arena.holds(0, reused)
        return result

    def end_by_deadline(self) -> None:
        """Cut a get in the middle of its WRITE; a busy machine begins none in the shortest time."""
        client, arena = self.client, self.arena
        for deadline_ms in (50, 200, 800):
            wait_for_lanes(client, 4)
            client._deadline_ms = deadline_ms
            self.fabric.hold(self.random.randrange(1, SIZE // PIECE))
            before = self.cut_in_the_middle
            assert self.get(client, arena) != SIZE
            client._deadline_ms = 5_000
            if self.cut_in_the_middle > before:
                return

    def end_by_deadline_under_way(self) -> None:
        """As above; pieces arrive until the fence."""
        wait_for_lanes(self.client)
        self.client._deadline_ms = self.random.randrange(20, 40)
        self.fabric.knobs.delay_s = 0.001
        try:
            self.get(self.client, self.arena)
        finally:
            self.fabric.knobs.delay_s = 0.0
            self.client._deadline_ms = 5_000

    def end_by_connection(self) -> None:
        """The call goes on over TCP."""
        wait_for_lanes(self.client, 4)
        [side] = sides(self.client)
        lanes = list(side._open)

        def cut_all() -> None:
            for one in lanes:
                one.cut()

        assert self.get_while(cut_all, self.client, self.arena) == SIZE
        eventually(lambda: all(one.lane.is_closed for one in lanes), "the end of the lanes")

    def end_by_close(self) -> None:
        client, arena = self.connect()
        self.get_while(client.close, client, arena)

    def get_while(self, do: Callable[[], object], client: Client, arena: Arena) -> int:
        """Do something once a get is in the middle of its WRITE."""
        pieces = self.random.randrange(1, SIZE // PIECE)
        begun = self.fabric.moved_bytes["write"]
        self.fabric.hold(pieces)

        def end() -> None:
            eventually(
                lambda: self.fabric.moved_bytes["write"] >= begun + pieces * PIECE, "a write"
            )
            do()

        thread = threading.Thread(target=end)
        thread.start()
        result = self.get(client, arena)
        thread.join()
        return result


@pytest.mark.usefixtures("impatient")
def test_no_byte_is_late_after_100_cuts(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    cutter = Cutter(fabric, pool, strict)
    for _ in range(35):
        cutter.end_by_deadline()
        cutter.end_by_connection()
    for _ in range(20):
        cutter.end_by_deadline_under_way()
    for _ in range(9):
        cutter.end_by_close()
    cutter.get_while(pool.workers[0].server.stop, cutter.client, cutter.arena)
    assert cutter.late == 0
    assert cutter.cut_in_the_middle >= 60


# --- fences that fail at first -------------------------------------------------------------------
def held_get(fabric: FakeFabric, pool: LocalWorkers, strict: bool) -> tuple[Client, Arena]:
    """Return a client whose gets of "k" end in the middle, by its deadline of HELD_MS."""
    client, _ = pool.client(
        pool.map(), deadline_ms=5_000, strict=strict, verbs=FakeVerbs(fabric, ["client0"])
    )
    arena = Arena(client, SIZE)
    assert client.put("k", DATA) == 0
    wait_for_lanes(client)
    client._deadline_ms = HELD_MS
    fabric.hold(3)
    return client, arena


def is_given_back(client: Client, arena: Arena) -> bool:
    return any(arena.address in one.released for one in client.completions())


def test_a_fence_that_fails_at_first_quarantines_its_buffer(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    client, arena = held_get(fabric, pool, strict)
    fabric.knobs.refuse_closes["client0"] = 1_000_000
    started = time.monotonic()
    assert client.batch_get_into(["k"], [arena.address], [SIZE]) == [Status.QUARANTINED]
    assert time.monotonic() - started < (HELD_MS + FENCE_BUDGET_MS) / 1000 + SLACK_S
    stays(lambda: not is_given_back(client, arena), "the quarantine")
    fabric.knobs.refuse_closes.clear()
    eventually(lambda: is_given_back(client, arena), "the buffer")
    arena.fill(0, REUSED[0])
    fabric.release()
    fabric.settle()
    assert arena.holds(0, REUSED[0])
    client._deadline_ms = 5_000
    assert client.batch_get_into(["k"], [arena.address], [SIZE]) == [SIZE]
    assert arena.holds(0, DATA)


def test_a_fence_that_takes_long_holds_no_call(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    client, arena = held_get(fabric, pool, strict)
    fabric.knobs.close_delay_s = 5.0
    started = time.monotonic()
    assert client.batch_get_into(["k"], [arena.address], [SIZE]) == [Status.QUARANTINED]
    assert time.monotonic() - started < 4.5
    fabric.knobs.close_delay_s = 0.0
    eventually(lambda: is_given_back(client, arena), "the buffer")


def test_events_tell_of_a_fence_that_fails_at_first(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    client, arena = held_get(fabric, pool, strict)
    fabric.knobs.refuse_closes["client0"] = 1_000_000
    job = client.submit_get_into(["k"], [arena.address], [SIZE])
    found: list[Completion] = []

    def has_ended() -> bool:
        found.extend(client.completions())
        return bool(found)

    eventually(has_ended, "the result", 5)
    assert [(one.job_id, one.results) for one in found] == [(job, [Status.QUARANTINED])]
    fabric.knobs.refuse_closes.clear()
    eventually(lambda: is_given_back(client, arena), "the buffer")
    fabric.release()


def test_a_client_closes_though_its_fences_do_not(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    client, arena = held_get(fabric, pool, strict)
    fabric.knobs.refuse_closes["client0"] = 1_000_000
    assert client.batch_get_into(["k"], [arena.address], [SIZE]) == [Status.QUARANTINED]
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < SLACK_S
    eventually(lambda: is_given_back(client, arena), "the buffer")  # its device ended it
    fabric.release()


def test_an_idle_lane_whose_fence_fails_comes_back(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool
) -> None:
    client, _ = pool.client(pool.map(), strict=strict, verbs=FakeVerbs(fabric, ["client0"]))
    arena = Arena(client, SIZE)
    wait_for_lanes(client, 4)
    fabric.knobs.refuse_closes["client0"] = 12
    [side] = sides(client)
    for one in list(side._open):
        one.cut()
    eventually(lambda: side.lost_lanes == 4, "the end of four lanes")
    eventually(lambda: lanes_open(client) == [4], "four new ones")
    assert client.batch_put_from(["k"], [arena.fill(0, DATA)], [SIZE]) == [0]
    assert client.stats().rdma_keys == 1


def test_a_window_that_does_not_close_costs_its_lane(
    fabric: FakeFabric, pool: LocalWorkers
) -> None:
    client, _ = pool.client(pool.map(), strict=True, verbs=FakeVerbs(fabric, ["client0"]))
    arena = Arena(client, SIZE)
    wait_for_lanes(client, 4)
    fabric.knobs.refuse_window_closes = 3
    assert client.batch_put_from(["k"], [arena.fill(0, DATA)], [SIZE]) == [0]
    eventually(lambda: sides(client)[0].lost_lanes == 1, "the end of the lane")
    eventually(lambda: "windows" not in fabric.open_objects(), "the end of the window")
    eventually(lambda: lanes_open(client) == [4], "a new lane")


def test_a_lane_whose_queue_pair_is_broken_is_replaced_in_strict_mode(
    fabric: FakeFabric, pool: LocalWorkers
) -> None:
    client, _ = pool.client(pool.map(), strict=True, verbs=FakeVerbs(fabric, ["client0"]))
    arena = Arena(client, SIZE)
    wait_for_lanes(client, 4)
    [side] = sides(client)
    for one in side._open:
        one.lane._pair.fail()
    for _ in range(4):
        assert client.batch_put_from(["k"], [arena.fill(0, DATA)], [SIZE]) == [0]
    assert client.stats().rdma_fallbacks == 4
    eventually(lambda: side.lost_lanes == 4 and lanes_open(client) == [4], "four new lanes")
    assert client.batch_get_into(["k"], [arena.address], [SIZE]) == [SIZE]
    assert client.stats().rdma_fallbacks == 4
