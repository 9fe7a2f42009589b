"""Circuit breaker of one worker: after repeated failures calls miss at once instead of waiting.

Pure: time comes in as an argument. The states and what moves them:

    state       allow()                     success      failure
    CLOSED      yes                         CLOSED       OPEN after BREAKER_FAILURES in a row
    OPEN        no, until the pause ends;   CLOSED       OPEN, pause doubled up to the maximum
                then one probe (PROBING)
    PROBING     no                          CLOSED       OPEN, pause doubled up to the maximum
"""

from __future__ import annotations

from enum import Enum

from memkv.limits import BREAKER_FAILURES, RECONNECT_BACKOFF_MS_MAX, RECONNECT_BACKOFF_MS_MIN


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Breaker:
    """Decides whether a worker is worth asking. Not thread-safe; its session holds the lock."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.opened_count = 0
        self._failures_in_row = 0
        self._pause_ms = RECONNECT_BACKOFF_MS_MIN
        self._retry_at_ns = 0

    def allow(self, now_ns: int) -> bool:
        """Return whether a request may go out now; an open breaker lets one probe through."""
        if self.state is BreakerState.CLOSED:
            return True
        if now_ns < self._retry_at_ns:
            return False
        # A probe that never reports back must not hold the breaker shut: it gets one pause.
        self.state = BreakerState.PROBING
        self._retry_at_ns = now_ns + self._pause_ms * 1_000_000
        return True

    def success(self) -> None:
        """A request came back, whatever its statuses."""
        self.state = BreakerState.CLOSED
        self._failures_in_row = 0
        self._pause_ms = RECONNECT_BACKOFF_MS_MIN

    def failure(self, now_ns: int) -> None:
        """A request timed out or its connection broke."""
        self._failures_in_row += 1
        if self.state is BreakerState.CLOSED:
            if self._failures_in_row < BREAKER_FAILURES:
                return
            self.opened_count += 1
        else:
            self._pause_ms = min(2 * self._pause_ms, RECONNECT_BACKOFF_MS_MAX)
        self.state = BreakerState.OPEN
        self._retry_at_ns = now_ns + self._pause_ms * 1_000_000
