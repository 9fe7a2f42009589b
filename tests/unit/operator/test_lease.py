"""Who leads: decided by one candidate alone, and by several over one API server."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.errors import Away
from memkv.testing.api_server import FakeApiServer, Request
from memkv_operator.kube.leadership import Leadership, LeadershipLost
from memkv_operator.kube.lease import Election, LeaseConfig, LeaseView, Step, read_lease
from memkv_operator.kube.objects import Objects
from memkv_operator.testing.cluster import pause

CONFIG = LeaseConfig("ns", "lease", "me", 15_000, 10_000, 2_000)
THEIRS = LeaseView("other", 4, "7", 15_000)
PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/lease"
IN_TIME_S = 120


def test_a_lease_is_made_where_there_is_none() -> None:
    election = Election(CONFIG).observed(None, 0)
    assert election.next_step(0) is Step.CREATE
    assert not election.leads


def test_a_held_lease_is_taken_only_when_it_stood_still_for_its_whole_time() -> None:
    election = Election(CONFIG).observed(THEIRS, 1_000)
    election = election.observed(THEIRS, 9_000)  # read again, unchanged
    assert election.next_step(16_000) is Step.WAIT
    assert election.next_step(16_001) is Step.TAKE
    renewed = election.observed(replace(THEIRS, version="8"), 15_999)
    assert renewed.next_step(30_999) is Step.WAIT


def test_a_lease_with_a_longer_time_than_ours_is_honoured() -> None:
    election = Election(CONFIG).observed(replace(THEIRS, duration_ms=60_000), 0)
    assert election.next_step(59_999) is Step.WAIT
    assert election.next_step(60_001) is Step.TAKE


def test_a_released_lease_is_taken_at_once_and_counts() -> None:
    election = Election(CONFIG).observed(replace(THEIRS, holder=""), 0)
    assert election.next_step(0) is Step.TAKE
    taken = election.manifest(Step.TAKE, "now", "now")
    view = read_lease(taken)
    assert (view.holder, view.transitions, view.version) == ("me", 5, "7")
    mine = election.wrote(replace(view, version="8"), 0)
    assert read_lease(mine.manifest(Step.RENEW, "later", "now")).transitions == 5
    assert read_lease(mine.release("later", "now")).holder == ""


def test_our_own_write_without_an_answer_does_not_count_as_fresh() -> None:
    """It was sent long before it is read; others count from when they saw it."""
    mine = Election(CONFIG).wrote(LeaseView("me", 5, "8", 15_000), 1_000)
    read = mine.observed(LeaseView("me", 5, "9", 15_000), 9_000)
    assert read.leads
    assert read.seen_ms == 1_000


class Candidates:
    """Several operators on one API server."""

    def __init__(self) -> None:
        self.api = FakeApiServer()
        self.leading: set[str] = set()
        self.terms: list[int] = []
        self.together = 0

    def candidate(self, name: str, duration_ms: int = 1000) -> "asyncio.Task[None]":
        config = LeaseConfig(
            "ns", "lease", name, duration_ms, duration_ms * 2 // 3, duration_ms // 10
        )
        leadership = Leadership(config, Objects(self.api), SystemClock())

        async def work(transitions: int) -> None:
            self.terms.append(transitions)
            self.leading.add(name)
            self.together = max(self.together, len(self.leading))
            try:
                await asyncio.Event().wait()
            finally:
                self.leading.discard(name)

        return asyncio.create_task(leadership.lead(work))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(IN_TIME_S):
            while not holds():
                await pause(0.01)


def run(test: Callable[[Candidates], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Candidates())

    asyncio.run(main())


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_one_leads_and_hands_over_at_its_end() -> None:
    async def test(candidates: Candidates) -> None:
        tasks = {name: candidates.candidate(name, 20_000) for name in "abc"}
        for _ in range(3):
            await candidates.until(lambda: len(candidates.leading) == 1)
            (leader,) = candidates.leading
            await end(tasks.pop(leader))
            assert not candidates.leading
        assert candidates.together == 1
        assert candidates.terms == sorted(set(candidates.terms))

    run(test)


def test_writes_without_answers_are_no_lease_of_somebody_else() -> None:
    """The first makes the Lease, the second renews it, and the candidate learns of neither."""

    async def test(candidates: Candidates) -> None:
        lost = ["POST", "PUT"]

        def fault(request: Request, done: bool) -> Exception | None:
            if done and lost and request.method == lost[0]:
                return Away(f"no answer to the {lost.pop(0)}")
            return None

        candidates.api.fault = fault
        only = candidates.candidate("a", 20_000)
        await candidates.until(lambda: "a" in candidates.leading or only.done())
        assert not lost
        await pause(5)  # two looks at the Lease
        assert not only.done()
        await end(only)

    run(test)


def test_a_leader_that_cannot_renew_stops_before_anybody_takes_over() -> None:
    async def test(candidates: Candidates) -> None:
        first = candidates.candidate("a")
        await candidates.until(lambda: "a" in candidates.leading)

        def fault(request: Request, done: bool) -> Exception | None:
            return Away("cut off") if request.method == "PUT" and not done else None

        candidates.api.fault = fault
        with pytest.raises(LeadershipLost, match="renewed in time"):
            await asyncio.wait_for(first, IN_TIME_S)
        assert not candidates.leading
        candidates.api.fault = lambda request, done: None
        second = candidates.candidate("b", 20_000)
        await candidates.until(lambda: "b" in candidates.leading)
        assert candidates.terms == [0, 1]
        await end(second)

    run(test)


def test_a_leader_whose_lease_somebody_took_stops() -> None:
    async def test(candidates: Candidates) -> None:
        task = candidates.candidate("a", 5000)
        await candidates.until(lambda: "a" in candidates.leading)
        lease = candidates.api.objects[PATH]
        stolen = {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}}
        await candidates.api.request("PUT", PATH, None, stolen)
        with pytest.raises(LeadershipLost):
            await asyncio.wait_for(task, IN_TIME_S)

    run(test)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12_000), st.booleans()), max_size=60)
)
def test_no_two_lead_at_once_whatever_the_pauses(
    steps: list[tuple[str, int, bool]],
) -> None:
    """Each step: some time passes, then one candidate looks at the Lease; its write may go
    unanswered. A leader works until its time to renew is over."""
    stored: LeaseView | None = None
    elections = {name: Election(replace(CONFIG, identity=name)) for name in "abc"}
    now_ms = version = 0
    last_term = -1

    def works(name: str) -> bool:
        election = elections[name]
        return election.leads and now_ms - election.seen_ms < CONFIG.renew_within_ms

    for name, pause_ms, answered in steps:
        now_ms += pause_ms
        election = elections[name]
        if election.leads and not works(name):
            elections[name] = Election(replace(CONFIG, identity=f"{name}"))  # the process ended
            if stored is not None and stored.holder == name:
                stored = replace(stored, holder=f"{name} of before")
            election = elections[name]
        election = election.observed(stored, now_ms)
        step = election.next_step(now_ms)
        if step is not Step.WAIT:
            written = read_lease(election.manifest(step, "", ""))
            version += 1
            stored = replace(written, version=str(version), duration_ms=15_000)
            if step is not Step.RENEW:
                assert written.transitions > last_term
                last_term = written.transitions
            if answered:
                election = election.wrote(stored, now_ms)
        elections[name] = election
        assert sum(works(one) for one in elections) <= 1
