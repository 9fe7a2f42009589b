"""A lock whose holders come in the order in which they asked for it.

`threading.Lock` promises no order: whoever gives it back and asks again at once, as an agent that
wipes does, mostly gets it before all that wait.
"""

import threading
from collections import deque
from types import TracebackType


class Turn:
    """As `threading.Lock` in a `with`; not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            called = threading.Event()
            self._waiting.append(called)
        called.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # handed on: nobody else can take it between
            else:
                self._taken = False
