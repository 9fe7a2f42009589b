"""The keeper: one background thread that keeps a client attached.

It renews the ticket, connects workers and replaces lost lanes after a backoff, and sends the copy
queue. A stopped node can hold a handshake for its whole timeout, so handshakes run in a few
threads of their own and the keeper itself never blocks on a peer.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from memkv import _hotpath
from memkv.client.backoff import Backoff
from memkv.client.copies import copy_operation
from memkv.client.core import ClientCore
from memkv.client.drive import run_to_end
from memkv.client.options import LOCAL_OFF
from memkv.client.routing import Keys
from memkv.client.session import WorkerSession
from memkv.client.source import MapSource, TicketGrant
from memkv.errors import MemKVError
from memkv.limits import TICKET_REFUSED_BACKOFF_MS_MAX
from memkv.wire.messages import HelloRequest
from memkv.wire.opcodes import Transport

CONNECT_THREADS = 4  # as many stopped nodes may be probed at once without delaying the others
IDLE_TICK_S = 0.2  # how late a due backoff may be noticed
TICKET_TIMEOUT_MS = 2_000


class Keeper:
    """Owns the background threads of one client."""

    def __init__(self, core: ClientCore, source: MapSource) -> None:
        self._core = core
        self._source = source
        self._stop = threading.Event()
        self._ticket_backoff = Backoff(core.options.clock)
        self._refusals = Backoff(
            core.options.clock, pause_ms_max=TICKET_REFUSED_BACKOFF_MS_MAX
        )
        self._copying = False
        self._busy: set[WorkerSession] = set()
        self._pool = ThreadPoolExecutor(CONNECT_THREADS, thread_name_prefix="memkv-connect")
        self._thread = threading.Thread(target=self._run, name="memkv-keeper", daemon=True)
        self.last_error = ""

    def start(self) -> None:
        self._source.start(self._core.route_changed)
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop; the core closes sessions, which ends handshakes, then `join`."""
        self._stop.set()
        self._core.wake_keeper()

    def join(self) -> None:
        """Wait for every background thread."""
        self._source.stop()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        core = self._core
        while not self._stop.is_set():
            self._renew_ticket()
            self._tend_sessions()
            if len(core.copies) and not self._copying:
                self._copying = True
                self._pool.submit(self._send_copies)
            with core.changed:
                core.changed.wait(IDLE_TICK_S)

    def _renew_ticket(self) -> None:
        core = self._core
        ticket = core.ticket
        now_ns = core.options.clock.monotonic_ns()
        is_old = ticket is None or now_ns >= ticket.renew_at_ns
        if not (is_old or self._is_refused(ticket)) or not self._ticket_backoff.due():
            return
        try:
            # Sessions that live keep going whatever becomes of the ticket; only new ones show it.
            core.ticket = self._source.fetch_ticket(TICKET_TIMEOUT_MS)
            self._ticket_backoff.reset()
            # The next one may be refused as well, by a node that learns its key later.
            if is_old:
                self._refusals.reset()
            else:
                self._refusals.failed()
            self.last_error = ""
        except MemKVError as error:
            self.last_error = str(error)
            self._ticket_backoff.failed()
            return
        with core.changed:
            core.changed.notify_all()

    def _is_refused(self, ticket: TicketGrant | None) -> bool:
        """Return whether a worker refused the ticket, so that another one is worth a try now."""
        return (
            ticket is not None
            and self._refusals.due()
            and any(one.refused_ticket == ticket.ticket for one in self._core.sessions())
        )

    def _tend_sessions(self) -> None:
        ticket = self._core.ticket
        if ticket is None:
            return
        for session in self._core.sessions():
            if session not in self._busy and session.wants_keeper():
                self._busy.add(session)
                self._pool.submit(self._keep, session, ticket.ticket)

    def _keep(self, session: WorkerSession, ticket: bytes) -> None:
        core = self._core
        try:
            if not self._stop.is_set():
                transports = Transport.TCP
                if core.options.local_dir != LOCAL_OFF:
                    transports |= Transport.LOCAL
                if core.memory is not None:
                    transports |= Transport.RDMA
                session.keep(
                    HelloRequest(
                        core.client_uuid, core.options.pool, ticket, transports=transports
                    )
                )
        finally:
            self._busy.discard(session)
            with core.changed:
                core.changed.notify_all()

    def _send_copies(self) -> None:
        """Put blocks found at a previous owner to the new one; one sender, one block at a time."""
        core = self._core
        try:
            while not self._stop.is_set() and (copy := core.copies.take()) is not None:
                requests = core.requests(core.options.deadline_ms, copy.routes)
                if requests is None:
                    return
                scatter = ((_hotpath.address_of(copy.data), len(copy.data)),)
                keys = Keys(1, copy.block_id, copy.slot)
                result = run_to_end(
                    copy_operation(requests, keys, scatter, copy.previous), requests.deadline_ns
                )
                if result == 0:
                    core.counters.copies_to_new_owner += 1
                else:
                    core.counters.copies_dropped += 1
        finally:
            self._copying = False
