"""A reliable connection over pyverbs, with its completion queue and channel."""

import errno
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.mr import MWBindInfo
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from memkv.rdma import driver_constants as constants
from memkv.rdma.driver_errors import closed, refusal, refusals
from memkv.rdma.driver_event_fd import with_event_fd
from memkv.rdma.driver_memory import Domain, PyVerbsRegion, PyVerbsWindow
from memkv.rdma.verbs import Access, Completion, MemoryRegion, Peer, VerbsError, Window

READS_MAX = 16
"""READs that both sides let be on their way at a time; devices have 16 at least."""
RETRY_TIME = 14  # 4.096 us << 14 = 67 ms until a packet is sent again
RETRIES = 7
RECEIVER_DELAY = 12  # receivers are always ready here: nothing is received by SEND
HOPS_MAX = 64
GID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a queue pair is opened."""

    port: int
    gid_index: int
    mtu_bytes: int
    reads_max: int
    depth: int
    access: Access
    traffic_class: int


class PyVerbsQueuePair:
    """Implements `QueuePair`."""

    def __init__(self, domain: Domain, context: Any, place: Place) -> None:
        self._domain = domain
        self._place = place
        self._windows: set[PyVerbsWindow] = set()
        self.sequence = secrets.randbits(24)
        self._opened: list[Any] = []  # in the order of opening
        try:
            with refusals("queue pair", f"cannot open a queue pair of depth {place.depth}"):
                self._open(context)
        except VerbsError:
            self._close_opened()
            raise
        self.number = int(self._pair.qp_num)
        self._is_open = True
        with domain.lock:
            domain.pairs.add(self)

    def _open(self, context: Any) -> None:
        place = self._place
        self._channel, self.event_fd = with_event_fd(lambda: CompChannel(context))
        self._opened.append(self._channel)
        # One more than can be in flight, so that a full queue never overruns.
        self._queue = CQ(context, place.depth + 1, None, self._channel, 0)
        self._opened.append(self._queue)
        room = QPCap(max_send_wr=place.depth, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        wanted = QPInitAttr(
            qp_type=constants.QP_RELIABLE, scq=self._queue, rcq=self._queue, cap=room, sq_sig_all=0
        )
        self._pair = QP(self._domain.protection, wanted)
        self._opened.append(self._pair)
        self._pair.to_init(self._attributes())

    def _attributes(self) -> Any:
        attributes = QPAttr(port_num=self._place.port)
        attributes.qp_access_flags = constants.access_bits(self._place.access)
        return attributes

    def connect(self, peer: Peer) -> None:
        self._check()
        if len(peer.gid) != GID_BYTES:
            raise VerbsError(f"a GID has {GID_BYTES} bytes, not {len(peer.gid)}", errno.EINVAL)
        place = self._place
        with refusals("connect", f"cannot connect to queue pair {peer.queue_pair}"):
            route = GlobalRoute(
                dgid=GID(":".join(peer.gid[at : at + 2].hex() for at in range(0, GID_BYTES, 2))),
                sgid_index=place.gid_index, hop_limit=HOPS_MAX, traffic_class=place.traffic_class,
            )  # fmt: skip
            attributes = self._attributes()
            attributes.ah_attr = AHAttr(dlid=peer.lid, gr=route, is_global=1, port_num=place.port)
            attributes.path_mtu = constants.mtu_code(min(place.mtu_bytes, peer.mtu_bytes))
            attributes.dest_qp_num = peer.queue_pair
            attributes.rq_psn = peer.sequence
            attributes.max_dest_rd_atomic = place.reads_max
            attributes.min_rnr_timer = RECEIVER_DELAY
            self._pair.to_rtr(attributes)
            attributes.sq_psn = self.sequence
            attributes.timeout = RETRY_TIME
            attributes.retry_cnt = RETRIES
            attributes.rnr_retry = RETRIES
            attributes.max_rd_atomic = place.reads_max
            self._pair.to_rts(attributes)

    def write(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:  # fmt: skip
        self._post_transfer(
            constants.WORK_WRITE, work, local, length, local_key, remote, remote_key
        )

    def read(
        self, work: int, local: int, length: int, local_key: int, remote: int, remote_key: int,
    ) -> None:  # fmt: skip
        self._post_transfer(constants.WORK_READ, work, local, length, local_key, remote, remote_key)

    def _post_transfer(
        self, kind: int, work: int, local: int, length: int, local_key: int, remote: int,
        remote_key: int,
    ) -> None:  # fmt: skip
        self._check()
        try:
            request = SendWR(
                wr_id=work, opcode=kind, num_sge=1, sg=[SGE(local, length, local_key)],
                send_flags=constants.SEND_SIGNALED,
            )  # fmt: skip
            request.set_wr_rdma(remote_key, remote)
            self._pair.post_send(request)
        except PyverbsError as error:
            raise refusal("post", f"cannot post a request of {length} bytes", error) from error
        except OverflowError as error:
            text = f"cannot post a request of {length} bytes: {error}"
            raise VerbsError(text, errno.EINVAL) from error

    def bind(
        self, work: int, window: Window, region: MemoryRegion, address: int, length: int,
        access: Access,
    ) -> None:  # fmt: skip
        self._check()
        if not isinstance(window, PyVerbsWindow) or not isinstance(region, PyVerbsRegion):
            raise TypeError("window and region must be of the device of the queue pair")
        with refusals("post", "cannot post the binding of a window"):
            info = MWBindInfo(region.opened(), address, length, constants.access_bits(access))
            request = SendWR(
                wr_id=work, opcode=constants.WORK_BIND, send_flags=constants.SEND_SIGNALED
            )
            request.set_bind_wr(window.fresh(self._windows), info)
            self._pair.post_send(request)
        window.remote_key = int(request.rkey)

    def invalidate(self, work: int, window: Window) -> None:
        self._check()
        with refusals("post", "cannot post the end of a window"):
            request = SendWR(
                wr_id=work, opcode=constants.WORK_INVALIDATE, send_flags=constants.SEND_SIGNALED
            )
            request.imm_data = window.remote_key  # a union with the key, in host order
            self._pair.post_send(request)

    def arm(self) -> None:
        self._check()
        try:
            self._take_events()
            self._queue.req_notify()
        except PyverbsError as error:
            raise refusal("arm", "cannot ask for completion events", error) from error

    def _take_events(self) -> None:
        """An event that is not acknowledged would keep the queue from being destroyed."""
        while True:
            try:
                self._channel.get_cq_event(self._queue)
            except PyverbsError as error:
                if getattr(error, "error_code", -1) == errno.EAGAIN:
                    return
                raise
            self._queue.ack_events(1)

    def poll(self) -> Sequence[Completion]:
        self._check()
        try:
            _, found = self._queue.poll(self._place.depth)
        except PyverbsError as error:
            raise refusal("poll", "cannot take completions", error) from error
        return [
            Completion(
                done.wr_id,
                constants.status_text(done.status),
                done.status == constants.STATUS_FLUSHED,
            )
            for done in found
        ]

    def fail(self) -> None:
        self._check()
        with refusals("fail", "cannot end a queue pair's work"):
            self._pair.modify(QPAttr(qp_state=constants.QP_STATE_ERROR), constants.QP_MASK_STATE)

    def close(self) -> None:
        with self._domain.lock:
            self._is_open = False
            for window in list(self._windows):
                window.revoke()
            with refusals("close", f"cannot destroy queue pair {self.number}"):
                self._close_opened()
            self._domain.pairs.discard(self)

    def _close_opened(self) -> None:
        while self._opened:
            self._opened[-1].close()
            self._opened.pop()

    def _check(self) -> None:
        if not self._is_open:
            raise closed("the queue pair")
