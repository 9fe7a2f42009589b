"""GET and GET_RANGES on a lane: blocks go out in the order in which the store has them.

Each block leaves by one gather send of its frame and its payload, straight from the store's buffer,
which is pinned from the read to the end of that send.
"""

from collections.abc import Sequence

from memkv import limits
from memkv._hotpath import SingleGet, send_hit, xxh3_64
from memkv.status import Status
from memkv.tcp.lane import (
    Lane,
    PayloadLimits,
    Refuse,
    ServingThread,
    request_deadline_ns,
)
from memkv.tcp.store_api import ReadResult
from memkv.wire.frame import Frame, encode_frame
from memkv.wire.hints import Hint
from memkv.wire.items import (
    ID_BYTES,
    RangesItem,
    Source,
    decode_get_request,
    decode_ranges_request,
    encode_get_result,
    encode_get_result_with_hint,
)
from memkv.wire.opcodes import Flag, Opcode

_MORE = int(Flag.RESPONSE)
_LAST = int(Flag.RESPONSE | Flag.LAST)
_HINTS = int(Flag.HINTS)
_VERIFY = int(Flag.VERIFY)
_DRAM, _FLASH = int(Source.DRAM), int(Source.FLASH)
_GET = int(Opcode.GET)
_OK = Status.OK
_OVER_CREDIT = (
    "over the session's credit: wait for outstanding requests before sending more of them"
)


class GetService:
    """Serves reads for all lanes of a worker. Stateless; called by many threads at once."""

    def __init__(self, refuse: Refuse, payload_limits: PayloadLimits) -> None:
        self._refuse = refuse
        self._limits = payload_limits

    def get(self, lane: Lane, frame: Frame, deadline_ns: int, thread: ServingThread) -> None:
        """Answer a GET. Raises StreamTimeout or StreamClosed, or a WireError for a bad body."""
        header = frame.header
        ids, max_lengths = decode_get_request(frame.body, header.item_count)
        room = self._room(lane)
        max_lengths = [min(length, room) for length in max_lengths]
        answer = Answer(lane, frame, deadline_ns, thread)
        credit = sum(max_lengths)
        if not answer.may_start(credit):
            return
        try:
            ids, max_lengths, positions = self._split(answer, ids, max_lengths)
            if ids:
                self._read(answer, ids, max_lengths, positions)
        finally:
            lane.owner.give_credit(credit)

    def hit(self, lane: Lane, request: SingleGet, thread: ServingThread) -> bool:
        """Answer a GET of one block in DRAM, where every microsecond of Python shows.

        False: something is out of the ordinary, nothing was done or counted, and `get` answers.
        Raises as `get`.
        """
        started_ns = thread.clock.monotonic_ns()
        deadline_ns = request_deadline_ns(started_ns, request.deadline_ms)
        owner, block_id = lane.owner, request.block_id
        credit = min(request.max_length, self._room(lane))
        if not owner.allows(_GET) or started_ns >= deadline_ns or not owner.take_credit(credit):
            return False
        try:
            if self._refuse(block_id, False, request.map_epoch):
                return False
            result = thread.store_reader.hit(owner.tenant, block_id, credit)
            if result is None:
                return False
            try:
                self._send_hit(lane, request, result, deadline_ns, thread)
            finally:
                result.release()
        finally:
            owner.give_credit(credit)
        thread.tally.request(_GET, thread.clock.monotonic_ns() - started_ns)
        return True

    def _room(self, lane: Lane) -> int:
        """Return the longest payload that a lane may carry."""
        return self._limits.small_bytes_max if lane.express else limits.BLOCK_BYTES_MAX

    @staticmethod
    def _send_hit(
        lane: Lane, request: SingleGet, result: ReadResult, deadline_ns: int, thread: ServingThread
    ) -> None:
        header = result.header
        assert header is not None
        thread.tally.item(_GET, _OK)
        send_hit(
            lane.stream, request.request_id, header.root, header.sums, result.payload, _DRAM,
            thread.io_deadline_ns(deadline_ns),
        )  # fmt: skip
        thread.tally.bytes_out += result.length

    def _split(
        self, answer: "Answer", ids: bytes, max_lengths: list[int]
    ) -> tuple[bytes, list[int], Sequence[int] | None]:
        """Answer what is another worker's; return the rest, with its positions if not all."""
        refused = self._refuse(ids, False, answer.frame.header.map_epoch)
        if not refused:
            return ids, max_lengths, None
        for position, hint in refused.items():
            answer.elsewhere(position, hint)
        kept = [position for position in range(len(max_lengths)) if position not in refused]
        kept_ids = b"".join([ids[p * ID_BYTES : (p + 1) * ID_BYTES] for p in kept])
        return kept_ids, [max_lengths[p] for p in kept], kept

    @staticmethod
    def _read(
        answer: "Answer", ids: bytes, max_lengths: list[int], positions: Sequence[int] | None
    ) -> None:
        verify = bool(answer.frame.header.flags & _VERIFY)
        lane, thread = answer.lane, answer.thread
        results = thread.store_reader.read(
            lane.owner.tenant, ids, max_lengths, answer.deadline_ns, verify
        )
        for position, result in results:
            try:
                index = position if positions is None else positions[position]
                answer.block(index, result)
            finally:
                result.release()

    def get_ranges(self, lane: Lane, frame: Frame, deadline_ns: int, thread: ServingThread) -> None:
        """Answer a GET_RANGES. Raises as `get`."""
        items = decode_ranges_request(frame.body, frame.header.item_count)
        answer = Answer(lane, frame, deadline_ns, thread)
        credit = sum(item.length for item in items)
        if not answer.may_start(credit):
            return
        room = self._room(lane)
        whole = [limits.BLOCK_BYTES_MAX] * len(items)
        try:
            ids, whole, positions = self._split(
                answer, b"".join([item.block_id for item in items]), whole
            )
            if not ids:
                return
            # The node answers with sums of its own, so it must know that the bytes are right.
            results = thread.store_reader.read(
                lane.owner.tenant, ids, whole, deadline_ns, verify=True
            )
            for position, result in results:
                try:
                    index = position if positions is None else positions[position]
                    answer.ranges(index, items[index], result, room)
                finally:
                    result.release()
        finally:
            lane.owner.give_credit(credit)


class Answer:
    """The response to one request: one frame an item, LAST on the final one.

    Other transports use it too: `placed` answers for payload that went another way.
    """

    __slots__ = ("_left", "deadline_ns", "frame", "lane", "thread")

    def __init__(self, lane: Lane, frame: Frame, deadline_ns: int, thread: ServingThread) -> None:
        self.lane = lane
        self.frame = frame
        self.deadline_ns = deadline_ns
        self.thread = thread
        self._left = frame.header.item_count

    def may_start(self, credit: int) -> bool:
        """Take the credit, or answer the whole request with why not and return False."""
        lane, thread, header = self.lane, self.thread, self.frame.header
        if not lane.owner.allows(header.opcode):
            status, why = Status.DENIED, "the ticket does not allow reading; ask for the right get"
        elif thread.clock.monotonic_ns() >= self.deadline_ns:
            status, why = Status.TIMEOUT, "the deadline had passed when the request arrived"
        elif not lane.owner.take_credit(credit):
            status, why = Status.BUSY, _OVER_CREDIT
        else:
            return True
        thread.fail(lane.stream, header.opcode, header.request_id, status, why)
        return False

    def block(self, index: int, result: ReadResult) -> None:
        """Send one block of a GET, or its status."""
        header = result.header
        if result.status is not _OK or header is None:
            self.status(index, result.status, result.length)
            return
        body = encode_get_result(index, 0, result.length, header.root, header.sums, _source(result))
        self._send(body, Status.OK, [result.payload], result.length)

    def placed(self, index: int, result: ReadResult) -> None:
        """Say that a block lies in the client's memory."""
        header = result.header
        assert header is not None
        body = encode_get_result(index, 0, result.length, header.root, header.sums, _source(result))
        self._send(body, Status.OK)
        self.thread.tally.bytes_out += result.length

    def ranges(self, index: int, item: RangesItem, result: ReadResult, room: int) -> None:
        """Send the ranges of one block, or its status."""
        if result.status is not _OK or result.header is None:
            self.status(index, result.status)
            return
        length = item.length
        if any(offset + size > result.length for offset, size in item.ranges):
            self.status(index, Status.INVALID, result.length)
            return
        if length > room:
            self.status(index, Status.BUFFER_TOO_SMALL, length)
            return
        parts = [result.payload[offset : offset + size] for offset, size in item.ranges]
        sums = b"".join([xxh3_64(part).to_bytes(8, "little") for part in parts])
        body = encode_get_result(index, 0, length, sums=sums, source=_source(result))
        self._send(body, Status.OK, parts, length)

    def status(self, index: int, status: Status, length: int = 0) -> None:
        """Send an item without payload."""
        self._send(encode_get_result(index, status, length), status)

    def elsewhere(self, index: int, hint: Hint | None) -> None:
        """Send WRONG_OWNER, with where to go when that is known."""
        if hint is None:
            self.status(index, Status.WRONG_OWNER)
            return
        body = encode_get_result_with_hint(index, Status.WRONG_OWNER, hint)
        self._send(body, Status.WRONG_OWNER, flags=_HINTS)

    def _send(
        self,
        body: bytes,
        status: Status,
        payload: Sequence[memoryview] = (),
        payload_bytes: int = 0,
        flags: int = 0,
    ) -> None:
        self._left -= 1
        header = self.frame.header
        flags |= _MORE if self._left else _LAST
        data = encode_frame(
            header.opcode, flags, header.request_id, body, count=1, payload_bytes=payload_bytes
        )
        tally = self.thread.tally
        tally.item(header.opcode, status)
        if payload_bytes:
            self.thread.send(self.lane.stream, [data, *payload], self.deadline_ns)
            tally.bytes_out += payload_bytes
        else:
            self.thread.send_late(self.lane.stream, data)


def _source(result: ReadResult) -> int:
    return _DRAM if result.source == "dram" else _FLASH
