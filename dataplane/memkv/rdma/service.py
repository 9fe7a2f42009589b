"""RDMA_CONNECT, RDMA_REGISTER, RDMA_UNREGISTER, RDMA_GET and RDMA_PUT on a lane.

The node moves all payload: a get is an RDMA WRITE from the block in DRAM into the client's memory,
a put an RDMA READ from it. Rule: a block stays pinned until the device is done with it, or until
the queue pair is closed; a lane whose queue pair is broken is closed with it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memkv._hotpath import StreamClosed, address_of, chunk_sums
from memkv.rdma.budget import ByteBudget
from memkv.rdma.rails import Opened, Rails, Refused
from memkv.rdma.regions import ClientRegions, Piece
from memkv.rdma.work import Broken, Transfers
from memkv.status import Status
from memkv.tcp.get import Answer
from memkv.tcp.lane import Lane, Refuse, ServingThread
from memkv.tcp.put import PutService
from memkv.tcp.store_api import ReadResult
from memkv.wire.frame import Frame, encode_frame
from memkv.wire.items import PutItem, malformed
from memkv.wire.local import Access, decode_local_get, decode_local_put, parts_bytes
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.rdma import (
    ConnectRequest,
    RdmaRegister,
    decode_rdma_unregister,
    encode_connected,
)

log = logging.getLogger(__name__)

_DONE = int(Flag.RESPONSE | Flag.LAST)
_VERIFY = int(Flag.VERIFY)
_NOT_CONNECTED = "the lane has no queue pair: RDMA_CONNECT comes first"


@dataclass(frozen=True, slots=True, eq=False)
class Placing:
    """A block on its way into a client's memory."""

    index: int
    result: ReadResult
    size_bytes: int
    """Taken of the budget."""


class Seat:
    """What a lane has of RDMA: its session's regions, and a queue pair once it is connected. Owned
    by whoever holds the lane's connection."""

    def __init__(self, regions: ClientRegions, cut: Callable[[], None]) -> None:
        """`cut()` ends the lane, from any thread."""
        self.regions = regions
        self.cut = cut
        self.device = -1
        self.transfers: Transfers[Placing | None] | None = None
        self._opened: Opened | None = None
        self._rails: Rails | None = None

    def take(self, rails: Rails, opened: Opened, device: int, lane: Lane, thread: ServingThread) \
            -> None:  # fmt: skip
        """Own a queue pair from now on."""
        self._rails, self._opened, self.device = rails, opened, device
        try:
            self.transfers = Transfers(opened.pair, opened.local_key, lane.stream.fd, thread.clock)
        except OSError:  # out of file descriptors; the lane ends
            opened.pair.close()
            raise

    def close(self) -> None:
        """The lane is over: close its queue pair."""
        broken = False
        try:
            if self.transfers is not None:
                broken = self.transfers.is_closed
                self.transfers.close()
        finally:
            if self._opened is not None and self._rails is not None:
                self._rails.forget(self._opened.rail, self.cut, broken=broken)
                self._opened = None


Serve = Callable[[Lane, Seat, Frame, int, ServingThread], None]


class RdmaService:
    """Serves RDMA for all lanes of a worker; called by many threads at once."""

    def __init__(
        self, rails: Rails, refuse: Refuse, puts: PutService, in_flight_bytes_max: int
    ) -> None:
        self._rails = rails
        self._refuse = refuse
        self._puts = puts
        self._budget = ByteBudget(in_flight_bytes_max)
        self._serve: dict[int, Serve] = {
            Opcode.RDMA_CONNECT: self._connect,
            Opcode.RDMA_REGISTER: self._register,
            Opcode.RDMA_UNREGISTER: self._unregister,
            Opcode.RDMA_GET: self._get,
            Opcode.RDMA_PUT: self._put,
        }

    def serve(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        """Answer one request. Raises as `GetService.get`."""
        self._serve[frame.header.opcode](lane, seat, frame, deadline_ns, thread)

    # --- lanes and regions --------------------------------------------------------------------
    def _connect(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        request = ConnectRequest.decode(frame.body)
        try:
            if seat.transfers is not None:
                raise Refused(Status.INVALID, "the lane is connected already; open another")
            opened = self._rails.connect(request, seat.cut)
        except Refused as refusal:
            self._answer(lane, frame, refusal.status, thread, why=str(refusal))
            return
        seat.take(self._rails, opened, request.device, lane, thread)
        self._answer(lane, frame, Status.OK, thread, encode_connected(opened.end))

    def _register(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        status = seat.regions.register(RdmaRegister.decode(frame.body))
        why = f"the session has {len(seat.regions)} regions, or this one already"
        self._answer(lane, frame, status, thread, why=why)

    def _unregister(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        status = seat.regions.unregister(*decode_rdma_unregister(frame.body))
        why = "the session has no such region; it was unregistered before"
        self._answer(lane, frame, status, thread, why=why)

    @staticmethod
    def _answer(
        lane: Lane, frame: Frame, status: Status, thread: ServingThread, body: bytes = b"",
        why: str = "",
    ) -> None:  # fmt: skip
        header = frame.header
        if status is not Status.OK:
            thread.fail(lane.stream, header.opcode, header.request_id, status, why)
            return
        thread.tally.item(header.opcode, status)
        thread.send_late(lane.stream, encode_frame(header.opcode, _DONE, header.request_id, body))

    # --- get ----------------------------------------------------------------------------------
    def _get(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        items = decode_local_get(frame.body, frame.header.item_count, "RDMA_GET")
        if seat.transfers is None:
            self._answer(lane, frame, Status.INVALID, thread, why=_NOT_CONNECTED)
            return
        answer = Answer(lane, frame, deadline_ns, thread)
        credit = sum([parts_bytes(parts) for _, parts in items])
        if not answer.may_start(credit):
            return
        try:
            wanted: list[tuple[int, bytes, list[Piece]]] = []
            ids = b"".join([item.block_id for item in items])
            refused = self._refuse(ids, False, frame.header.map_epoch)
            for index, (block_id, parts) in enumerate(items):
                if index in refused:
                    answer.elsewhere(index, refused[index])
                    continue
                pieces = seat.regions.locate(parts, seat.device, Access.WRITE)
                if pieces is None:
                    answer.status(index, Status.INVALID)
                    continue
                wanted.append((index, block_id, pieces))
            if wanted:
                self._move(answer, seat.transfers, wanted)
        finally:
            lane.owner.give_credit(credit)

    def _move(
        self, answer: Answer, transfers: "Transfers[Placing | None]",
        wanted: Sequence[tuple[int, bytes, list[Piece]]],
    ) -> None:
        """Write blocks as the store has them, and answer as they have arrived."""
        lane, thread = answer.lane, answer.thread
        results = thread.store_reader.read(
            lane.owner.tenant,
            b"".join([block_id for _, block_id, _ in wanted]),
            [sum([piece.length for piece in pieces]) for _, _, pieces in wanted],
            answer.deadline_ns,
            bool(answer.frame.header.flags & _VERIFY),
        )
        move = _Move(answer, transfers, self._budget)
        try:
            for position, result in results:
                index, _, pieces = wanted[position]
                move.begin(index, result, pieces)
            move.finish()
        except Broken as error:
            raise StreamClosed(str(error)) from error
        finally:
            move.abandon()

    # --- put ----------------------------------------------------------------------------------
    def _put(
        self, lane: Lane, seat: Seat, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        transfers = seat.transfers
        if transfers is None:
            raise malformed("RDMA_PUT", _NOT_CONNECTED)

        def incoming(_: Lane, frame: Frame, __: ServingThread) -> _InClientMemory:
            return _InClientMemory(transfers, seat, frame)

        self._puts.put(lane, frame, deadline_ns, thread, incoming)


class _Move:
    """The blocks of one get on their way into the client's memory."""

    def __init__(
        self, answer: Answer, transfers: "Transfers[Placing | None]", budget: ByteBudget
    ) -> None:
        self._answer = answer
        self._transfers = transfers
        self._budget = budget
        self._moving: set[Placing] = set()

    def begin(self, index: int, result: ReadResult, pieces: Sequence[Piece]) -> None:
        """Take over a result of the store, and answer as blocks have arrived. Raises Broken."""
        if result.status is not Status.OK:
            result.release()
            self._answer.status(index, result.status, result.length)
            return
        try:
            size_bytes = self._reserve(result.length)
        except BaseException:
            result.release()
            raise
        placing = Placing(index, result, size_bytes)
        self._moving.add(placing)
        self._transfers.write(
            placing, address_of(result.payload), _first(pieces, result.length),
            self._answer.deadline_ns,
        )  # fmt: skip
        # The next block may need the room of one that no budget counts: lanes that wait in the
        # store with one each would wait for each other.
        self._settle(wait=not size_bytes)

    def finish(self) -> None:
        """Wait until all have arrived. Raises Broken."""
        while self._moving:
            self._settle(wait=True)

    def abandon(self) -> None:
        """Let go of what is still under way, if anything is: then its queue pair closes first."""
        if self._moving:
            self._transfers.close()
            for placing in self._moving:
                self._let_go(placing)

    def _reserve(self, size_bytes: int) -> int:
        """Take a block's size of the budget, when blocks under way have to arrive first; 0: there
        is none to wait for, and one block each may always be under way."""
        while not self._budget.take(size_bytes):
            if not self._moving:
                return 0
            self._settle(wait=True)
        return size_bytes

    def _settle(self, *, wait: bool) -> None:
        for placed in self._transfers.completed(self._answer.deadline_ns, wait=wait):
            assert placed is not None
            self._moving.discard(placed)
            try:
                self._answer.placed(placed.index, placed.result)
            finally:
                self._let_go(placed)

    def _let_go(self, placing: Placing) -> None:
        placing.result.release()
        if placing.size_bytes:
            self._budget.give_back(placing.size_bytes)


class _InClientMemory:
    """Payload of a put that the device reads from the client's memory, which may change meanwhile:
    so the sums are those of what arrived."""

    def __init__(
        self, transfers: Transfers[Placing | None], seat: Seat, frame: Frame
    ) -> None:
        if frame.header.payload_bytes:
            raise malformed("RDMA_PUT", "a payload follows, which belongs into shared memory")
        self.item: PutItem
        self.item, self._parts = decode_local_put(frame.body, "RDMA_PUT")
        self._transfers = transfers
        self._seat = seat

    def receive(self, target: memoryview, deadline_ns: int) -> bytes | Status:
        pieces = self._seat.regions.locate(self._parts, self._seat.device, Access.READ)
        if pieces is None:
            return Status.INVALID
        try:
            self._transfers.read(None, address_of(target), pieces, deadline_ns)
            self._transfers.completed(deadline_ns, wait=True)
        except Broken as error:
            raise StreamClosed(str(error)) from error
        return chunk_sums(target)

    def drop(self, deadline_ns: int) -> None:
        """It stays where it is."""


def _first(pieces: Sequence[Piece], size_bytes: int) -> list[Piece]:
    """Return the pieces of the first `size_bytes`, which is all that a block fills."""
    found: list[Piece] = []
    for piece in pieces:
        if size_bytes <= 0:
            break
        found.append(Piece(piece.address, piece.key, min(piece.length, size_bytes)))
        size_bytes -= piece.length
    return found
