"""PUT on a lane: one frame a block, received straight into the store's memory.

Where a block's bytes come from is a `Payload`: the lane itself here, a client's memory elsewhere.

Rules: a block becomes visible only after its last byte arrived and its sums and root hold. What is
not taken is read and dropped, so that the rest of the batch can be. A lane that breaks in the
middle leaves nothing of its unfinished block.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from memkv import limits
from memkv._hotpath import StreamClosed
from memkv.checksum import verify_root
from memkv.status import Status
from memkv.store.requests import PutRequest
from memkv.tcp.lane import DRAIN_MS, NS_PER_MS, Lane, PayloadLimits, Refuse, ServingThread
from memkv.tcp.lane import request_deadline_ns as deadline_of
from memkv.tcp.store_api import BlockStore, PendingPut
from memkv.wire.errors import MalformedBody, Oversized
from memkv.wire.frame import Frame, encode_frame
from memkv.wire.hints import Hint
from memkv.wire.items import Durability, PutItem, decode_put_item
from memkv.wire.messages import encode_statuses, pack_statuses
from memkv.wire.opcodes import Flag, Opcode

_LAST = int(Flag.LAST)
_DONE = int(Flag.RESPONSE | Flag.LAST)


class Payload(Protocol):
    """The bytes of one block of a batch, and what was said of them. One of the two is called."""

    item: PutItem

    def receive(self, target: memoryview, deadline_ns: int) -> bytes | Status:
        """Fill `target`; return the chunk sums of what lies there, or why it failed."""

    def drop(self, deadline_ns: int) -> None:
        """The block is not taken."""


Incoming = Callable[[Lane, Frame, ServingThread], Payload]
"""Parses a frame of a batch. Raises a WireError."""


class _OnLane:
    """Payload that follows its frame."""

    def __init__(self, lane: Lane, frame: Frame, thread: ServingThread) -> None:
        self.item = decode_put_item(frame.body, frame.header.payload_bytes)
        self._lane = lane
        self._thread = thread
        lane.reader.payload_taken()

    def receive(self, target: memoryview, deadline_ns: int) -> bytes:
        return self._lane.stream.receive_and_sum(target, self._thread.io_deadline_ns(deadline_ns))

    def drop(self, deadline_ns: int) -> None:
        if self.item.length:
            now_ns = self._thread.clock.monotonic_ns()
            deadline_ns = max(deadline_ns, now_ns + DRAIN_MS * NS_PER_MS)
            self._lane.stream.discard(
                self.item.length, self._thread.io_deadline_ns(deadline_ns)
            )


@dataclass(slots=True)
class _Batch:
    opcode: int
    request_id: int
    deadline_ns: int
    statuses: list[Status] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    durable: list[tuple[int, PendingPut]] = field(default_factory=list)
    credit: int = 0


class PutService:
    """Serves writes for all lanes of a worker. Stateless; called by many threads at once."""

    def __init__(
        self,
        store: BlockStore,
        refuse: Refuse,
        payload_limits: PayloadLimits,
        copies_since: Callable[[bytes, int], int | None] = lambda _id, _epoch: None,
    ) -> None:
        """`copies_since(id, epoch)`: generation after which a delete outweighs a copy of the block
        that was found by the map of that epoch, None where no copy is wanted."""
        self._store = store
        self._refuse = refuse
        self._limits = payload_limits
        self._copies_since = copies_since

    def put(
        self, lane: Lane, frame: Frame, deadline_ns: int, thread: ServingThread,
        incoming: Incoming = _OnLane,
    ) -> None:  # fmt: skip
        """Take a whole batch, from its first frame to its response.

        The thread stays with the batch: its frames follow each other at once, and going through
        the poller for each of them costs more than the wait. Raises as `GetService.get`.
        """
        batch = _Batch(frame.header.opcode, frame.header.request_id, deadline_ns)
        try:
            while True:
                payload = incoming(lane, frame, thread)
                self._take(batch, lane, payload, frame.header.map_epoch, thread)
                if frame.header.flags & _LAST:
                    break
                frame = self._next_frame(batch, lane, thread)
                now_ns = thread.clock.monotonic_ns()
                batch.deadline_ns = deadline_of(now_ns, frame.header.deadline_ms)
            self._answer(batch, lane, thread)
        finally:
            lane.owner.give_credit(batch.credit)

    @staticmethod
    def _next_frame(batch: _Batch, lane: Lane, thread: ServingThread) -> Frame:
        events = lane.reader.feed(b"")
        while not events:
            target = thread.scratch[: lane.reader.bytes_wanted()]
            received = lane.stream.receive_some(target, thread.io_deadline_ns(batch.deadline_ns))
            if not received:
                raise StreamClosed("the peer closed the lane inside a batch")
            events = lane.reader.feed(target[:received])
        frame = events[0]
        assert isinstance(frame, Frame)  # bytes_wanted never runs into a payload
        header = frame.header
        if header.opcode != batch.opcode or header.request_id != batch.request_id:
            raise MalformedBody(
                "PUT: another request inside a batch that had no frame with LAST: the client has "
                "a bug; compare the versions of both sides",
                request_id=header.request_id,
                opcode=header.opcode,
            )
        if len(batch.statuses) == limits.ITEMS_PER_FRAME_MAX:
            raise Oversized(
                f"PUT: a batch of more than {limits.ITEMS_PER_FRAME_MAX} blocks: the client "
                "ignores the limit it was told in HELLO; split the batch",
                request_id=header.request_id,
                opcode=header.opcode,
            )
        return frame

    def _take(
        self, batch: _Batch, lane: Lane, payload: Payload, map_epoch: int, thread: ServingThread
    ) -> None:
        item = payload.item
        thread.tally.bytes_in += item.length
        admitted = self._admit(batch, lane, item, map_epoch, thread)
        if isinstance(admitted, Status):
            payload.drop(batch.deadline_ns)
            batch.statuses.append(admitted)
            return
        committed = False
        try:
            sums = payload.receive(admitted.payload, batch.deadline_ns)
            if isinstance(sums, Status):
                status = sums
            else:
                committed = True
                status = admitted.commit(sums)
        finally:
            if not committed:
                admitted.abort()
        if status is Status.OK and item.durability == Durability.DURABLE:
            batch.durable.append((len(batch.statuses), admitted))
        batch.statuses.append(status)

    def _admit(
        self, batch: _Batch, lane: Lane, item: PutItem, map_epoch: int, thread: ServingThread
    ) -> PendingPut | Status:
        """Return where the block goes, or why it is not taken."""
        owner = lane.owner
        if not owner.allows(Opcode.PUT):
            return Status.DENIED
        if item.length < 1 or (lane.express and item.length > self._limits.small_bytes_max):
            return Status.INVALID
        if item.length > self._limits.block_bytes_max:
            return Status.TOO_LARGE
        refused = self._refuse(item.block_id, True, 0)
        if refused:
            if (hint := refused[0]) is not None:
                batch.hints.append(
                    Hint(
                        len(batch.statuses), hint.slot, hint.map_epoch, hint.map_term,
                        hint.worker_uuid, hint.host, hint.port,
                    )
                )  # fmt: skip
            return Status.WRONG_OWNER
        # Before any memory is spent on it: sums that do not belong to this id and tenant.
        if not verify_root(item.block_id, owner.tenant.tag, item.length, item.sums, item.root):
            return Status.INVALID
        since = None
        if item.durability == Durability.COPY:
            since = self._copies_since(item.block_id, map_epoch)
            if since is None:
                return Status.MISS
        if thread.clock.monotonic_ns() >= batch.deadline_ns:
            return Status.TIMEOUT
        if not owner.take_credit(item.length):
            return Status.BUSY
        batch.credit += item.length
        request = PutRequest(
            item.block_id, item.length, item.root, item.sums, item.ttl_s, item.depth,
            item.prefix_id, item.session_id, item.durability == Durability.DURABLE,
            unless_deleted_since=since,
        )  # fmt: skip
        return self._store.begin_put(owner.tenant, request, batch.deadline_ns)

    def _answer(self, batch: _Batch, lane: Lane, thread: ServingThread) -> None:
        if batch.durable:
            puts = [put for _, put in batch.durable]
            waited = self._store.wait_durable(puts, batch.deadline_ns)
            for (position, _), status in zip(batch.durable, waited, strict=True):
                batch.statuses[position] = status
        for status in batch.statuses:
            thread.tally.item(batch.opcode, status)
        body = encode_statuses(pack_statuses(batch.statuses), batch.hints)
        flags = _DONE | Flag.HINTS if batch.hints else _DONE
        thread.send_late(
            lane.stream,
            encode_frame(batch.opcode, flags, batch.request_id, body, count=len(batch.statuses)),
        )
