"""Clients whose wall clock is wrong: calls work, and nobody is hammered for new tickets."""

import pytest

from memkv.client.options import ConnectOptions, PutOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.localpool.pool import LocalPool
from memkv.status import Status

WAIT_MS = 60_000
NS_PER_S = 1_000_000_000
YEAR_S = 365 * 24 * 3600


class WrongClock(SystemClock):
    """Says another time of day."""

    def __init__(self, off_s: int) -> None:
        self._off_s = off_s

    def wall_s(self) -> int:
        return max(0, super().wall_s() + self._off_s)


@pytest.mark.parametrize("off_s", [YEAR_S, -YEAR_S, -100 * YEAR_S], ids=["next", "last", "1970"])
def test_a_client_in_another_year_is_served(pool: LocalPool, off_s: int) -> None:
    options = ConnectOptions(pool.endpoint, clock=WrongClock(off_s), deadline_ms=10_000)
    with Client(options) as client:
        assert client.wait_ready(WAIT_MS)
        key = f"in another year {off_s}"
        assert client.put(key, b"x" * 1000, PutOptions(ttl_s=3600)) == Status.OK
        assert client.get(key) == b"x" * 1000
        ticket = client.attachment.core.ticket
        assert ticket is not None
        renewal_ns = ticket.renew_at_ns - options.clock.monotonic_ns()
        assert renewal_ns > 30 * NS_PER_S, "every look of the keeper would fetch a ticket"
