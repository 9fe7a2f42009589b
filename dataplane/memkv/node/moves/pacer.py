"""How fast blocks are pulled: never over a limit, and slower while clients are served. Pure."""

from collections.abc import Callable

from memkv import limits

NS_PER_S = 1_000_000_000


class Pacer:
    """Says how long to wait before more is pulled. For one thread."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        served_bytes: Callable[[], int],
        bytes_per_s_max: int = limits.PULL_BYTES_PER_S_MAX,
        bytes_per_s_busy: int = limits.PULL_BYTES_PER_S_BUSY,
    ) -> None:
        """`served_bytes`: payload moved for clients since some start; only grows."""
        self._now_ns = now_ns
        self._served_bytes = served_bytes
        self._max = bytes_per_s_max
        self._busy = bytes_per_s_busy
        self._free_at_ns = self._looked_at_ns = now_ns()
        self._served_then = served_bytes()

    def took(self, size_bytes: int) -> float:
        """Account for what was pulled; return the seconds to wait before the next piece."""
        now_ns = self._now_ns()
        start_ns = max(self._free_at_ns, now_ns)
        self._free_at_ns = start_ns + size_bytes * NS_PER_S // self._rate(now_ns)
        return max(0, self._free_at_ns - now_ns) / NS_PER_S

    def _rate(self, now_ns: int) -> int:
        served, elapsed_ns = self._served_bytes(), now_ns - self._looked_at_ns
        served_bytes = served - self._served_then
        self._served_then, self._looked_at_ns = served, now_ns
        busy = served_bytes * NS_PER_S > limits.PULL_YIELDS_AT_BYTES_PER_S * max(1, elapsed_ns)
        return self._busy if busy else self._max
