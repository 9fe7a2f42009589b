"""REGISTER, UNREGISTER, LOCAL_GET and LOCAL_PUT on a lane of the Unix socket.

Rule: the answer to an item of a LOCAL_GET is the last that happens to its memory, for the client
takes it as free then. And a lane is not closed before every drive is done with the client's memory,
for its end means the same.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing

from memkv._hotpath import chunk_sums, copy_and_sum
from memkv.local.files import Refused
from memkv.local.regions import Region, SessionRegions
from memkv.status import Status
from memkv.store.direct import Target
from memkv.tcp.get import Answer
from memkv.tcp.lane import Lane, Refuse, ServingThread
from memkv.tcp.put import PutService
from memkv.tcp.store_api import ReadResult
from memkv.wire.frame import Frame, encode_error, encode_frame
from memkv.wire.items import PutItem, malformed
from memkv.wire.local import (
    Access,
    Part,
    RegisterRequest,
    decode_local_get,
    decode_local_put,
    decode_unregister,
    encode_registered,
    parts_bytes,
)
from memkv.wire.opcodes import Flag, Opcode

log = logging.getLogger(__name__)

_DONE = int(Flag.RESPONSE | Flag.LAST)
_VERIFY = int(Flag.VERIFY)

Serve = Callable[[Lane, SessionRegions, Frame, int, ServingThread], None]


class LocalService:
    """Serves shared memory for all lanes of a worker. Stateless; called by many threads at once."""

    def __init__(self, refuse: Refuse, puts: PutService) -> None:
        self._refuse = refuse
        self._puts = puts
        self._serve: dict[int, Serve] = {
            Opcode.REGISTER: self._register,
            Opcode.UNREGISTER: self._unregister,
            Opcode.LOCAL_GET: self._get,
            Opcode.LOCAL_PUT: self._put,
        }

    def serve(
        self, lane: Lane, regions: SessionRegions, frame: Frame, deadline_ns: int,
        thread: ServingThread,
    ) -> None:  # fmt: skip
        """Answer one request. Raises as `GetService.get`."""
        self._serve[frame.header.opcode](lane, regions, frame, deadline_ns, thread)

    # --- regions ------------------------------------------------------------------------------
    @staticmethod
    def _register(
        lane: Lane, regions: SessionRegions, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        header = frame.header
        request = RegisterRequest.decode(frame.body)  # what came with a bad one goes with the lane
        try:
            is_mapped = regions.register(request, lane.stream.take_fds())
        except Refused as refusal:
            thread.fail(
                lane.stream, header.opcode, header.request_id, refusal.status, str(refusal)
            )
            return
        thread.tally.item(header.opcode, Status.OK)
        body = encode_registered(is_mapped)
        thread.send_late(lane.stream, encode_frame(header.opcode, _DONE, header.request_id, body))

    @staticmethod
    def _unregister(
        lane: Lane, regions: SessionRegions, frame: Frame, deadline_ns: int, thread: ServingThread
    ) -> None:
        header = frame.header
        status = regions.unregister(decode_unregister(frame.body))
        thread.tally.item(header.opcode, status)
        answer = encode_frame(header.opcode, _DONE, header.request_id)
        if status is not Status.OK:
            text = "the session has no such region; it was unregistered before"
            answer = encode_error(header.opcode, header.request_id, status, text)
        thread.send_late(lane.stream, answer)

    # --- get ----------------------------------------------------------------------------------
    def _get(
        self, lane: Lane, regions: SessionRegions, frame: Frame, deadline_ns: int,
        thread: ServingThread,
    ) -> None:  # fmt: skip
        items = decode_local_get(frame.body, frame.header.item_count)
        answer = Answer(lane, frame, deadline_ns, thread)
        credit = sum([parts_bytes(parts) for _, parts in items])
        if not answer.may_start(credit):
            return
        wanted: list[_Wanted] = []
        try:
            ids = b"".join([item.block_id for item in items])
            refused = self._refuse(ids, False, frame.header.map_epoch)
            for index, (block_id, parts) in enumerate(items):
                if index in refused:
                    answer.elsewhere(index, refused[index])
                    continue
                used = regions.use(parts, Access.WRITE)
                if used is None:
                    answer.status(index, Status.INVALID)
                    continue
                wanted.append(_Wanted(index, block_id, parts, used))
            if wanted:
                self._read(answer, wanted)
        finally:
            lane.owner.give_credit(credit)
            for one in wanted:
                one.target.parts = ()
                regions.release(one.regions)

    @staticmethod
    def _read(answer: Answer, wanted: "Sequence[_Wanted]") -> None:
        lane, thread = answer.lane, answer.thread
        reading = thread.store_reader.read_into(
            lane.owner.tenant,
            b"".join([one.block_id for one in wanted]),
            [one.target for one in wanted],
            answer.deadline_ns,
            bool(answer.frame.header.flags & _VERIFY),
            lane.stream.fd,
        )
        # Closed here and now, not when the last reference goes: it waits for drives.
        with closing(reading) as results:
            for position, result in results:
                one = wanted[position]
                try:
                    status = _place(answer, one, result)
                finally:
                    result.release()
                if status is Status.OK:
                    answer.placed(one.index, result)
                else:
                    answer.status(one.index, status, result.length)

    # --- put ----------------------------------------------------------------------------------
    def _put(
        self, lane: Lane, regions: SessionRegions, frame: Frame, deadline_ns: int,
        thread: ServingThread,
    ) -> None:  # fmt: skip
        def incoming(_: Lane, frame: Frame, __: ServingThread) -> _InRegions:
            return _InRegions(regions, frame)

        self._puts.put(lane, frame, deadline_ns, thread, incoming)


class _Wanted:
    """One item of a LOCAL_GET with its memory."""

    __slots__ = ("block_id", "index", "parts", "regions", "target")

    def __init__(
        self, index: int, block_id: bytes, parts: Sequence[Part], regions: Sequence[Region]
    ) -> None:
        self.index = index
        self.block_id = block_id
        self.parts = parts
        self.regions = regions
        views: list[memoryview] = []
        for part, region in zip(parts, regions, strict=True):
            if region.memory is None:
                views = []
                break
            views.append(region.memory[part.offset : part.offset + part.length])
        self.target = Target(views, parts_bytes(parts))

    def write(self, data: memoryview) -> None:
        """Copy a block into the parts. Raises OSError."""
        for part, region in zip(self.parts, self.regions, strict=True):
            piece = data[: part.length]
            if not piece.nbytes:
                return
            region.write(part.offset, piece)
            data = data[part.length :]


def _place(answer: Answer, wanted: _Wanted, result: ReadResult) -> Status:
    """Bring a block where it belongs, unless it is there already; return the item's status."""
    if result.status is not Status.OK or result.placed:
        return result.status
    if answer.thread.clock.monotonic_ns() >= answer.deadline_ns:
        return Status.TIMEOUT
    try:
        wanted.write(result.payload)
    except OSError as error:
        log.info("a client's file cannot be written: %s", error)
        return Status.INVALID
    return Status.OK


class _InRegions:
    """Payload of a put that lies in a client's memory, which may change while it is copied: so the
    sums are those of the copy."""

    def __init__(self, regions: SessionRegions, frame: Frame) -> None:
        if frame.header.payload_bytes:
            raise malformed("LOCAL_PUT", "a payload follows, which belongs into shared memory")
        self.item: PutItem
        self.item, self._parts = decode_local_put(frame.body)
        self._regions = regions

    def receive(self, target: memoryview, deadline_ns: int) -> bytes | Status:
        used = self._regions.use(self._parts, Access.READ)
        if used is None:
            return Status.INVALID
        try:
            return self._copy(used, target)
        except OSError as error:
            log.info("a client's file cannot be read: %s", error)
            return Status.INVALID
        finally:
            self._regions.release(used)

    def _copy(self, used: Sequence[Region], target: memoryview) -> bytes:
        memory, offset = used[0].memory, self._parts[0].offset
        if len(used) == 1 and memory is not None:
            return copy_and_sum(target, memory[offset : offset + target.nbytes])
        start = 0
        for part, region in zip(self._parts, used, strict=True):
            region.read(part.offset, target[start : start + part.length])
            start += part.length
        return chunk_sums(target)

    def drop(self, deadline_ns: int) -> None:
        """It stays where it is."""
