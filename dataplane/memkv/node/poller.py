"""Threads that wait together in one epoll; the one that wakes does the work itself.

Every fd is armed for one event (EPOLLONESHOT), so a connection is with one thread at a time and
there is no hand-off on the way of a request. Work that must not run on the thread that read it can
be given to another poller with `submit`.
"""

import contextlib
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

ARMED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT

Job = Callable[["int"], None]


class Poller:
    """One epoll and its threads. `on_event(fd, thread)` and jobs run on those threads."""

    def __init__(
        self,
        name: str,
        threads: int,
        on_event: Callable[[int, int], None],
        on_idle: Callable[[], None] | None = None,
        idle_interval_s: float | None = None,
    ) -> None:
        """`on_idle` runs on one thread about every `idle_interval_s`, busy or not."""
        self._name = name
        self._on_event = on_event
        self._on_idle = on_idle
        self._interval_s = idle_interval_s
        self._epoll = select.epoll()
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._jobs_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._jobs: deque[Job] = deque()
        self._stopping = False
        self._epoll.register(self._stop_fd, select.EPOLLIN)
        self._epoll.register(self._jobs_fd, select.EPOLLIN)
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"{name}-{index}", daemon=True)
            for index in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every thread finish what it holds, and wait for that. Then free the epoll."""
        self._stopping = True
        os.eventfd_write(self._stop_fd, 1)
        for thread in self._threads:
            thread.join()
        self._epoll.close()
        os.close(self._stop_fd)
        os.close(self._jobs_fd)

    def add(self, fd: int) -> None:
        """Take an fd in, armed."""
        self._epoll.register(fd, ARMED)

    def arm(self, fd: int) -> None:
        """Wait for the next event of an fd that woke a thread."""
        self._epoll.modify(fd, ARMED)

    def remove(self, fd: int) -> None:
        """Let go of an fd, by its holder and before it is closed."""
        self._epoll.unregister(fd)

    def submit(self, job: Job) -> None:
        """Run `job(thread index)` on one of the threads."""
        self._jobs.append(job)
        os.eventfd_write(self._jobs_fd, 1)

    def _run(self, index: int) -> None:
        timeout_s = self._interval_s if self._on_idle is not None and index == 0 else None
        while not self._stopping:
            # One event at a time: with more, the second would wait here while others are idle.
            for fd, _ in self._epoll.poll(timeout_s, 1):
                try:
                    if fd == self._jobs_fd:
                        self._run_job(index)
                    elif fd != self._stop_fd:
                        self._on_event(fd, index)
                except Exception:  # a bug must cost a connection, not the thread
                    log.exception("an event of %s was not handled", self._name)
            if timeout_s is not None and self._on_idle is not None:
                self._on_idle()

    def _run_job(self, index: int) -> None:
        with contextlib.suppress(BlockingIOError):  # another thread was faster
            os.eventfd_read(self._jobs_fd)
            self._jobs.popleft()(index)
