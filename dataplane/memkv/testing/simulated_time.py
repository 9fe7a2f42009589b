"""An event loop on which waiting takes no time: when nobody has anything to do, its clock jumps to
the next timer. For whole systems in one process that wait a lot and talk to nobody outside.

What is handed to a thread is done at once instead, while time stands still.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

Result = TypeVar("Result")

STARTED_S = 1_000.0
WALL_S = 1_700_000_000
TURN_S = 1e-6  # of the loop: without it a deadline missed by less than a nanosecond stays ahead


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait while there is a timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = STARTED_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        self.now_s += timeout + TURN_S
        return super().select(0)


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """Its `time` is simulated."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return seconds since an arbitrary point."""
        return self._jumping.now_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Result], *args: object
    ) -> asyncio.Future[Result]:
        """Do it at once: the time that a thread takes cannot be told."""
        done: asyncio.Future[Result] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class LoopClock:
    """Implements `memkv.clock.Clock` by the time of the running loop."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point."""
        return int(asyncio.get_running_loop().time() * 1e9)

    def wall_s(self) -> int:
        """Seconds since 1970."""
        return WALL_S + int(asyncio.get_running_loop().time())


def run_simulated(main: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end in a loop of its own, as asyncio.run does."""
    with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
        return runner.run(main)
