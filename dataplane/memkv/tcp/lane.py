"""What one request on one lane has to do with: the stream, the tenant, limits, time, counters.

Rule: a send or receive on a lane ends at the request's deadline or after the thread's stall limit,
whichever is first. When it ends so, the stream's position is unknown and the lane is closed:
`StreamTimeout` and `StreamClosed` pass through everything here to whoever owns the connection.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memkv import limits
from memkv._hotpath import Stream
from memkv.clock import Clock
from memkv.status import Status
from memkv.tcp.store_api import StoreReader
from memkv.tenant import Tenant
from memkv.wire.frame import FrameReader, encode_error
from memkv.wire.hints import Hint

if TYPE_CHECKING:
    from typing_extensions import Buffer

NS_PER_MS = 1_000_000
DRAIN_MS = 1_000  # for payload of a put whose own time is over: the lane is worth a moment
_LATE_ANSWER_NS = limits.FENCE_BUDGET_MS * NS_PER_MS

Refuse = Callable[[bytes, bool, int], dict[int, Hint | None]]
"""(ids, is a put, epoch that the answer needs or 0) -> the positions another worker owns, with
where to go when that is known."""


class Tally(Protocol):
    """Counts what one thread did."""

    bytes_in: int
    bytes_out: int

    def item(self, opcode: int, status: int) -> None:
        """Count one block or key, or a request that was refused as a whole."""

    def items_of(self, opcode: int, statuses: Iterable[int]) -> None:
        """Count the keys of a batch."""

    def request(self, opcode: int, duration_ns: int) -> None:
        """Count a request that was served."""


@dataclass(slots=True)
class PayloadLimits:
    """What the node was configured to take."""

    block_bytes_max: int = limits.BLOCK_BYTES_MAX
    small_bytes_max: int = limits.SMALL_PAYLOAD_BYTES_MAX


class LaneOwner(Protocol):
    """The session behind a lane, as far as payload operations need it. Thread-safe."""

    tenant: Tenant

    def allows(self, opcode: int) -> bool: ...
    def take_credit(self, size_bytes: int) -> bool: ...
    def give_credit(self, size_bytes: int) -> None: ...


@dataclass(slots=True)
class Lane:
    """One lane while one thread serves it."""

    stream: Stream
    reader: FrameReader
    owner: LaneOwner
    express: bool


@dataclass(slots=True)
class ServingThread:
    """What belongs to one serving thread."""

    store_reader: StoreReader
    tally: Tally
    clock: Clock
    stall_ns: int
    scratch: memoryview
    """For frames on their way in; payload never lands here."""
    serves_bulk: bool
    """Whether it may be held for as long as a bulk transfer takes."""

    def io_deadline_ns(self, deadline_ns: int) -> int:
        """Return when a send or receive that starts now must end."""
        return min(deadline_ns, self.clock.monotonic_ns() + self.stall_ns)

    def send(self, stream: Stream, buffers: "Sequence[Buffer]", deadline_ns: int) -> None:
        """Send within the request's deadline and the stall limit."""
        stream.send(buffers, self.io_deadline_ns(deadline_ns))

    def send_late(self, stream: Stream, frame: bytes) -> None:
        """Send a small answer although the request's time may be over."""
        stream.send([frame], self.clock.monotonic_ns() + min(_LATE_ANSWER_NS, self.stall_ns))

    def fail(self, stream: Stream, opcode: int, request_id: int, status: Status, why: str) -> None:
        """Answer a whole request with one negative status."""
        self.tally.item(opcode, status)
        self.send_late(stream, encode_error(opcode, request_id, status, why))


def request_deadline_ns(now_ns: int, deadline_ms: int) -> int:
    """Return the monotonic deadline of a request that arrived now with `deadline_ms` left."""
    return now_ns + min(deadline_ms, limits.REQUEST_DEADLINE_MS_MAX) * NS_PER_MS
