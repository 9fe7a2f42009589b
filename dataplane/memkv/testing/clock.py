"""A clock that moves only when told, so that tests with deadlines and expiry take no time."""


class ManualClock:
    """Implements `memkv.clock.Clock`."""

    def __init__(self, wall_s: int = 1_700_000_000) -> None:
        self._monotonic_ns = 1_000_000_000
        self._wall_s = wall_s

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point."""
        return self._monotonic_ns

    def wall_s(self) -> int:
        """Seconds since 1970."""
        return self._wall_s

    def advance_ms(self, milliseconds: int) -> None:
        """Let monotonic time pass; wall time follows in whole seconds."""
        before = self._monotonic_ns // 1_000_000_000
        self._monotonic_ns += milliseconds * 1_000_000
        self._wall_s += self._monotonic_ns // 1_000_000_000 - before

    def jump_wall(self, seconds: int) -> None:
        """Set the wall clock forward or back, as an operator or NTP does."""
        self._wall_s += seconds
