"""Time is an argument. Deadlines use monotonic time; only expiry, which must outlive a restart,
uses the wall clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of time for everything that waits or expires."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point; never goes back."""

    def wall_s(self) -> int:
        """Seconds since 1970-01-01; may jump. Only for expiry of stored blocks."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_s(self) -> int:
        return int(time.time())


def deadline_after_ms(clock: Clock, timeout_ms: int) -> int:
    """Return the monotonic deadline in ns that lies `timeout_ms` from now."""
    return clock.monotonic_ns() + timeout_ms * 1_000_000


def remaining_ms(clock: Clock, deadline_ns: int) -> int:
    """Return whole milliseconds until `deadline_ns`, 0 when it has passed."""
    return max(0, (deadline_ns - clock.monotonic_ns()) // 1_000_000)
