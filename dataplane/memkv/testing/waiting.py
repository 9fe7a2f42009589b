"""Waiting, in tests, for what background work does: it has no other signal than its effect.

The pauses leave the processor to that work; only deadlines end the waiting.
"""

import time
from collections.abc import Callable

WAIT_S = 30


def eventually(holds: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
    """Poll a condition; background work has no other signal."""
    end = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen in {wait_s} s"
        time.sleep(0.002)


def stays(holds: Callable[[], bool], what: str, for_s: float = 0.1) -> None:
    """Look again and again whether something goes on to hold."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        assert holds(), f"{what} did not hold for {for_s} s"
        time.sleep(0.002)


def at_rest(measure: Callable[[], int]) -> int:
    """Return a figure once it has not changed for a while."""
    seen = [measure()]
    while len(seen) < 30 or len(set(seen[-30:])) > 1:
        time.sleep(0.005)
        seen.append(measure())
    return seen[-1]
