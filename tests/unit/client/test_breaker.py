"""The breaker misses at once after repeated failures, and lets one probe through a pause."""

from memkv.client.breaker import Breaker, BreakerState
from memkv.limits import BREAKER_FAILURES, RECONNECT_BACKOFF_MS_MAX, RECONNECT_BACKOFF_MS_MIN

MS = 1_000_000


def opened(now_ns: int = 0) -> Breaker:
    breaker = Breaker()
    for _ in range(BREAKER_FAILURES):
        breaker.failure(now_ns)
    return breaker


def test_stays_closed_below_the_limit() -> None:
    breaker = Breaker()
    for _ in range(BREAKER_FAILURES - 1):
        breaker.failure(0)
    assert breaker.allow(0)
    breaker.success()
    for _ in range(BREAKER_FAILURES - 1):
        breaker.failure(0)
    assert breaker.state is BreakerState.CLOSED


def test_opens_and_lets_one_probe_through() -> None:
    breaker = opened()
    assert not breaker.allow(0)
    assert not breaker.allow((RECONNECT_BACKOFF_MS_MIN - 1) * MS)
    assert breaker.allow(RECONNECT_BACKOFF_MS_MIN * MS)
    assert not breaker.allow(RECONNECT_BACKOFF_MS_MIN * MS + 1)


def test_a_lost_probe_does_not_hold_it_shut() -> None:
    breaker = opened()
    assert breaker.allow(RECONNECT_BACKOFF_MS_MIN * MS)
    assert breaker.allow(2 * RECONNECT_BACKOFF_MS_MIN * MS)


def test_failed_probes_double_the_pause_up_to_the_maximum() -> None:
    breaker = opened()
    now_ns = RECONNECT_BACKOFF_MS_MIN * MS
    for _ in range(20):
        assert breaker.allow(now_ns)
        breaker.failure(now_ns)
        assert not breaker.allow(now_ns)
        now_ns += RECONNECT_BACKOFF_MS_MAX * MS
    assert breaker.allow(now_ns)


def test_success_closes_it_and_forgets_the_pause() -> None:
    breaker = opened()
    assert breaker.allow(RECONNECT_BACKOFF_MS_MIN * MS)
    breaker.success()
    assert breaker.allow(RECONNECT_BACKOFF_MS_MIN * MS)
    assert breaker.opened_count == 1
