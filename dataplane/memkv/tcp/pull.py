"""PULL on a lane: whole blocks of any tenant, for the worker that owns their slot now.

As a GET, but of one tenant named by its tag, without a trace in recency or DRAM, and with all that
is stored beside the bytes, so that a block that moves loses neither its expiry nor its hints.
"""

from collections.abc import Callable

from memkv import limits
from memkv.status import Status
from memkv.tcp.lane import Lane, ServingThread
from memkv.tcp.store_api import ReadResult
from memkv.tenant import TaggedTenant
from memkv.wire.frame import Frame, encode_frame
from memkv.wire.items import decode_pull_request, encode_get_result, encode_pull_result
from memkv.wire.opcodes import Flag, Opcode

NO_TAIL = (0, 0, bytes(8), bytes(8))
BEHIND = "this worker has an older shard map than the one asking; try again in a moment"


class PullService:
    """Serves pulls for all lanes of a worker. Stateless; called by many threads at once."""

    def __init__(self, is_behind: Callable[[int], bool]) -> None:
        """`is_behind(epoch)`: whether this worker goes by an older map than that."""
        self._is_behind = is_behind

    def pull(self, lane: Lane, frame: Frame, deadline_ns: int, thread: ServingThread) -> None:
        """Answer a PULL. Raises StreamTimeout or StreamClosed, or a WireError for a bad body."""
        header = frame.header
        request = decode_pull_request(frame.body, header.item_count)
        credit = header.item_count * limits.BLOCK_BYTES_MAX
        if not lane.owner.allows(Opcode.PULL) or lane.express:
            status, why = Status.DENIED, "pulls need the peer right and a bulk lane"
        elif self._is_behind(header.map_epoch):
            # Deletes accepted by this worker's older map may still be on their way to the asker.
            status, why = Status.BUSY, BEHIND
        elif thread.clock.monotonic_ns() >= deadline_ns:
            status, why = Status.TIMEOUT, "the deadline had passed when the request arrived"
        elif not lane.owner.take_credit(credit):
            status, why = Status.BUSY, "over the session's credit: pull fewer blocks at a time"
        else:
            try:
                self._send_all(lane, frame, request.tenant_tag, request.block_ids, deadline_ns,
                               thread)  # fmt: skip
            finally:
                lane.owner.give_credit(credit)
            return
        thread.fail(lane.stream, header.opcode, header.request_id, status, why)

    @staticmethod
    def _send_all(
        lane: Lane, frame: Frame, tag: bytes, ids: bytes, deadline_ns: int, thread: ServingThread
    ) -> None:
        left = frame.header.item_count
        whole = [limits.BLOCK_BYTES_MAX] * left
        results = thread.store_reader.read(
            TaggedTenant(tag), ids, whole, deadline_ns, background=True
        )
        for index, result in results:
            left -= 1
            try:
                _send(lane, frame, index, result, not left, deadline_ns, thread)
            finally:
                result.release()


def _send(
    lane: Lane, frame: Frame, index: int, result: ReadResult, is_last: bool, deadline_ns: int,
    thread: ServingThread,
) -> None:  # fmt: skip
    stored = result.header
    if result.status is Status.OK and stored is not None:
        length, payload = result.length, [result.payload]
        body = encode_get_result(index, 0, length, stored.root, stored.sums)
        tail = (stored.expiry_s, stored.depth, stored.prefix_id, stored.session_id)
    else:
        length, payload, tail = 0, [], NO_TAIL
        body = encode_get_result(index, result.status)
    flags = Flag.RESPONSE | Flag.LAST if is_last else Flag.RESPONSE
    data = encode_frame(
        Opcode.PULL, flags, frame.header.request_id, encode_pull_result(body, tail), count=1,
        payload_bytes=length,
    )  # fmt: skip
    thread.tally.item(Opcode.PULL, result.status)
    thread.send(lane.stream, [data, *payload], deadline_ns)
    thread.tally.bytes_out += length
