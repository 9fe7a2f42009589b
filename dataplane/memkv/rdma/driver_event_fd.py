"""Event descriptors of libibverbs' objects, which pyverbs 44 has no names for."""

import os
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from memkv.rdma.verbs import VerbsError

ATTEMPTS_MAX = 20
_one_at_a_time = threading.Lock()


class Closable(Protocol):
    """What pyverbs makes, as far as this file goes."""

    def close(self) -> None: ...


Made = TypeVar("Made", bound=Closable)


def with_event_fd(make: Callable[[], Made]) -> tuple[Made, int]:
    """Make an object, and tell its event descriptor, set non-blocking.

    It is the one that is there after and was not before. Other threads may open some at the same
    time (an engine's NCCL): then there are several or, one closed at the same time, none, and it is
    tried again.
    """
    for _ in range(ATTEMPTS_MAX):
        with _one_at_a_time:
            before = _event_fds()
            made = make()
            fd = getattr(made, "fd", None)  # pyverbs 59 and later, of channels only
            new = {fd} if isinstance(fd, int) else _event_fds() - before
        if len(new) == 1:
            (found,) = new
            os.set_blocking(found, False)
            return made, found
        made.close()
    raise VerbsError("other threads open RDMA event channels all the time: none was told apart")


def _event_fds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:  # closed meanwhile, as the listing's own is
            continue
    return found
