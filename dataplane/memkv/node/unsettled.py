"""Connections that owe something: a HELLO, the rest of a frame, or their end after an error.

A peer that sends a byte now and then (or none) costs no thread, but it costs a descriptor and at
most one body of memory. So there is a limit on how many may, on their memory together, and on how
long.
"""

import threading

from memkv import limits
from memkv.clock import Clock
from memkv.node.connection import Connection
from memkv.node.statistics import ConnectionCounters
from memkv.tcp.lane import DRAIN_MS, NS_PER_MS
from memkv.wire.session import ConnectionState

_SWEEPS_PER_TIMEOUT = 4


class Unsettled:
    """The set of them, with its limits. Thread-safe."""

    def __init__(
        self, clock: Clock, timeout_ms: int, count_max: int, counters: ConnectionCounters
    ) -> None:
        self._clock = clock
        self._timeout_ns = timeout_ms * NS_PER_MS
        self._closing_ns = min(timeout_ms, DRAIN_MS) * NS_PER_MS
        self._count_max = count_max
        self._counters = counters
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._partial_bytes = 0
        self.interval_s = timeout_ms / 1000 / _SWEEPS_PER_TIMEOUT
        """How often `sweep` wants to be called."""

    def review(self, connection: Connection) -> bool:
        """Note what a connection owes after it was served; False: over a limit, close it.

        Called by its holder.
        """
        if (
            connection.session is not None
            and connection.reader.is_between_frames
            and connection.protocol.state is not ConnectionState.CLOSING
        ):
            self.forget(connection)
            return True
        buffered = connection.reader.buffered_bytes
        with self._lock:
            self._partial_bytes += buffered - connection.partial_bytes
            connection.partial_bytes = buffered
            if connection.unsettled_since_ns is None:
                connection.unsettled_since_ns = self._clock.monotonic_ns()
                self._connections.add(connection)
            return (
                len(self._connections) <= self._count_max
                and self._partial_bytes <= limits.PARTIAL_FRAMES_BYTES_MAX
            )

    def forget(self, connection: Connection) -> None:
        """The connection owes nothing any more, or is gone. Called by its holder."""
        if connection.unsettled_since_ns is None:
            return
        with self._lock:
            self._connections.discard(connection)
            self._partial_bytes -= connection.partial_bytes
            connection.partial_bytes = 0
            connection.unsettled_since_ns = None

    def sweep(self) -> None:
        """Shut down what owes for too long; whoever it wakes closes it."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            for connection in list(self._connections):
                closing = connection.protocol.state is ConnectionState.CLOSING
                allowed_ns = self._closing_ns if closing else self._timeout_ns
                since_ns = connection.unsettled_since_ns
                if since_ns is not None and now_ns - since_ns > allowed_ns:
                    if not closing:
                        self._counters.add("timed_out")
                    self._connections.discard(connection)  # once is enough
                    connection.cut()
