"""Reasons of misses, by request and in all."""

from collections.abc import Sequence

from memkv.integrations.reasons import RequestReasons, note_results
from memkv.limits import REASON_REQUESTS_MAX
from memkv.reasons import OF_STATUS, MissReason, reason_of
from memkv.status import Status


def test_reasons_are_counted_by_request_and_in_all() -> None:
    reasons = RequestReasons()
    reasons.note("one", MissReason.EVICTED, 2)
    reasons.note("one", MissReason.PRESENT)
    reasons.note("two", MissReason.EVICTED)
    assert reasons.take("one") == {MissReason.EVICTED: 2, MissReason.PRESENT: 1}
    assert reasons.take("one") == {}
    assert reasons.totals == {MissReason.EVICTED: 3, MissReason.PRESENT: 1}


def test_only_the_last_requests_are_kept() -> None:
    reasons = RequestReasons()
    for request in range(REASON_REQUESTS_MAX + 1):
        reasons.note(request, MissReason.TIMEOUT)
    assert reasons.take(0) == {}
    assert reasons.take(1) == {MissReason.TIMEOUT: 1}
    assert reasons.totals == {MissReason.TIMEOUT: REASON_REQUESTS_MAX + 1}


def test_results_have_reasons() -> None:
    assert reason_of(0) is MissReason.PRESENT
    assert reason_of(4096) is MissReason.PRESENT
    assert reason_of(Status.TIMEOUT) is MissReason.TIMEOUT
    assert reason_of(Status.MISS) is MissReason.UNEXPLAINED
    assert reason_of(Status.INTERNAL) is MissReason.OTHER
    assert reason_of(-1000) is MissReason.OTHER
    assert Status.OK not in OF_STATUS


def test_reasons_are_on_the_wire_and_keep_their_numbers() -> None:
    assert {each.label: each.value for each in MissReason} == {
        "present": 0, "never_stored": 1, "not_admitted": 2, "evicted": 3, "expired": 4,
        "deleted": 5, "lost": 6, "corrupt": 7, "timeout": 8, "busy": 9, "unavailable": 10,
        "wrong_namespace": 11, "wrong_format": 12, "denied": 13, "unexplained": 14, "other": 15,
    }


class FakeClient:
    """Whatever is not there was evicted."""

    def __init__(self) -> None:
        self.reasons = RequestReasons()
        self.asked: list[str | bytes] = []

    def why(self, keys: Sequence[str | bytes]) -> list[MissReason]:
        self.asked += keys
        return [MissReason.EVICTED] * len(keys)


def test_results_of_a_request_are_counted_and_the_first_miss_is_explained() -> None:
    client = FakeClient()
    results = [4096, Status.TIMEOUT, Status.MISS, Status.MISS]
    note_results(client, "one", ["a", "b", "c", "d"], results)
    assert client.asked == ["c"]
    assert client.reasons.take("one") == {
        MissReason.PRESENT: 1, MissReason.TIMEOUT: 1, MissReason.EVICTED: 1,
        MissReason.UNEXPLAINED: 1,
    }


def test_answers_of_exists_are_counted_likewise() -> None:
    client = FakeClient()
    note_results(client, "one", ["a", "b"], [1, 0])
    assert client.reasons.take("one") == {MissReason.PRESENT: 1, MissReason.EVICTED: 1}


def test_nobody_is_asked_when_nothing_is_unexplained() -> None:
    client = FakeClient()
    note_results(client, "one", ["a"], [Status.BUSY])
    note_results(client, "one", ["b"], [Status.MISS], explained_max=0)
    assert client.asked == []
