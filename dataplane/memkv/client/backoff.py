"""Pauses between tries, doubled after each failure and jittered so that clients do not march in
step after a node comes back."""

from __future__ import annotations

import random

from memkv.clock import Clock
from memkv.limits import RECONNECT_BACKOFF_MS_MAX, RECONNECT_BACKOFF_MS_MIN


class Backoff:
    """When the next try is due. Not thread-safe: one keeper owns it."""

    def __init__(
        self, clock: Clock, jitter: random.Random | None = None,
        pause_ms_max: int = RECONNECT_BACKOFF_MS_MAX,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._pause_ms_max = pause_ms_max
        self._pause_ms = RECONNECT_BACKOFF_MS_MIN
        self._due_ns = 0

    def due(self) -> bool:
        return self._clock.monotonic_ns() >= self._due_ns

    def failed(self) -> None:
        """Wait between half and all of the pause, then double it."""
        pause_ms = self._pause_ms * self._jitter.uniform(0.5, 1.0)
        self._due_ns = self._clock.monotonic_ns() + int(pause_ms * 1_000_000)
        self._pause_ms = min(2 * self._pause_ms, self._pause_ms_max)

    def reset(self) -> None:
        self._pause_ms = RECONNECT_BACKOFF_MS_MIN
        self._due_ns = 0
