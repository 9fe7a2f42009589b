"""Keys wait once, are never worked on twice at a time, and come back later after failures."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from memkv.clock import SystemClock
from memkv_operator.run.work_queue import BACKOFF_S_MAX, Schedule, WorkQueue


def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    schedule = Schedule()
    for at_s in (3.0, 1.0, 2.0):
        schedule.add("a", at_s)
    assert schedule.take(0.9) is None
    assert schedule.take(1.0) == "a"
    assert schedule.take(9.0) is None


def test_a_key_that_is_added_while_it_is_worked_on_waits() -> None:
    schedule = Schedule()
    schedule.add("a", 0)
    assert schedule.take(0) == "a"
    schedule.add("a", 0)
    assert schedule.take(1) is None
    assert schedule.next_s() is None
    schedule.succeeded("a")
    assert schedule.take(1) == "a"


def test_failures_wait_longer_each_time_up_to_a_limit_and_success_forgets_them() -> None:
    schedule, pauses = Schedule(), []
    for _ in range(12):
        schedule.add("a", 0)
        assert schedule.take(0) == "a"
        schedule.failed("a", 0, 1.0)
        pauses.append(schedule.next_s() or 0)
    assert pauses == sorted(pauses)
    assert pauses[0] < 1
    assert pauses[-1] == BACKOFF_S_MAX
    assert schedule.take(BACKOFF_S_MAX) == "a"
    schedule.succeeded("a")
    schedule.add("a", 0)
    schedule.take(0)
    schedule.failed("a", 0, 1.0)
    assert schedule.next_s() == pauses[0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "take", "end", "fail"]))))
def test_no_key_is_lost_or_doubled(steps: list[tuple[str, str]]) -> None:
    schedule, wanted, working = Schedule(), set[str](), set[str]()
    for now_s, (key, step) in enumerate(steps):
        if step == "add":
            schedule.add(key, now_s)
            wanted.add(key)
        elif step == "take":
            taken = schedule.take(now_s + 1000)
            if taken is not None:
                assert taken not in working
                working.add(taken)
                wanted.discard(taken)
        elif key in working:
            working.discard(key)
            if step == "fail":
                schedule.failed(key, now_s, 0.5)
                wanted.add(key)
            else:
                schedule.succeeded(key)
        assert set(schedule.due_s) == wanted
        assert schedule.working == working


def test_a_waiting_worker_is_woken_by_what_is_due() -> None:
    async def main() -> None:
        queue = WorkQueue(SystemClock())
        waiting = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.add("later", 3600)
        queue.add("now")
        assert await asyncio.wait_for(waiting, 60) == "now"
        assert queue.depth == 1

    asyncio.run(main())


def test_a_key_that_rests_waits_until_it_has_rested() -> None:
    schedule = Schedule()
    schedule.add("a", 0)
    assert schedule.take(0) == "a"
    schedule.add("a", 1)
    schedule.succeeded("a", 5)
    assert schedule.take(4.9) is None
    assert schedule.next_s() == 5
    assert schedule.take(5) == "a"
    assert not schedule.rests_until_s
