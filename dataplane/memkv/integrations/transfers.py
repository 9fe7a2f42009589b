"""What integrations do with a pool: look up, load and store objects, and count why not.

Nothing here blocks: work is queued for one thread (jobs.py), and `on_end` is called there. The
memory of an object is the engine's; it is free again at `on_end`, not before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from memkv.client.options import DEFAULT_PUT, BlockHint, PutOptions
from memkv.clock import Clock, SystemClock
from memkv.errors import CallerError
from memkv.integrations.jobs import JobClient
from memkv.integrations.loads import Load, LoadEnd
from memkv.integrations.parts import Part
from memkv.integrations.reasons import RequestReasons
from memkv.integrations.stores import Store, Stored, StoreEnd
from memkv.integrations.windows import Desk
from memkv.limits import LOAD_DEADLINE_MS_DEFAULT, STORE_BACKLOG_BYTES_DEFAULT
from memkv.reasons import reason_of

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Transfers:
    """Owns the client. Thread-safe; `on_end` runs on the loop's thread and must not wait.

    `load_deadline_ms`: after it a load asks for nothing more; what is under way then still has the
    client's deadline. `store_backlog_bytes`: of stores under way; more are dropped (BUSY).
    """

    def __init__(
        self, client: JobClient, *, load_deadline_ms: int = LOAD_DEADLINE_MS_DEFAULT,
        store_backlog_bytes: int = STORE_BACKLOG_BYTES_DEFAULT, clock: Clock | None = None,
    ) -> None:
        self._load_deadline_ms = load_deadline_ms
        self._store_backlog_bytes = store_backlog_bytes
        self._client = client
        self._desk = Desk(client, clock or SystemClock())

    @property
    def missed(self) -> RequestReasons:
        """Why lookups and loads found nothing; hits count as PRESENT."""
        return self._desk.missed

    @property
    def dropped(self) -> RequestReasons:
        """Why stores were dropped; what was stored, or was there, counts as PRESENT."""
        return self._desk.dropped

    def lookup(
        self, objects: Sequence[Sequence[bytes]], on_end: Callable[[list[bool]], None], *,
        lease_ms: int = 0, request: Hashable = None,
    ) -> None:
        """Say which objects have all of their keys. `lease_ms` > 0 protects what is found from
        eviction that long."""
        flat = [(number, key) for number, keys in enumerate(objects) for key in keys]

        def ended(results: list[int]) -> None:
            found = [True] * len(objects)
            absent: list[bytes] = []
            for (number, key), result in zip(flat, results, strict=True):
                if result != 1 and found[number]:
                    found[number] = False
                    if result == 0:
                        absent.append(key)
                    else:
                        self.missed.note(request, reason_of(result))
            on_end(found)
            self._desk.explain(request, absent)

        loop, keys = self._desk.loop, [key for _, key in flat]
        if not flat or not loop.call(lambda: loop.exists(keys, lease_ms, ended)):
            on_end([False] * len(objects))

    def load(
        self, objects: Sequence[Sequence[Part]], on_end: LoadEnd, *, request: Hashable = None,
        shorter: bool = False,
    ) -> None:
        """Read objects into their memory; for each, what its (first) header says, or None: a miss,
        and the memory's content is undefined.

        `shorter`: an object of one part may be shorter than expected, and of another shape, as
        long as it is of the same namespace.
        """
        work = Load(self._desk, objects, on_end, request, shorter, self._load_deadline_ms)
        if not self._desk.loop.call(work.run):
            on_end([None] * len(objects))

    def store(
        self, objects: Sequence[Sequence[Part]], on_end: StoreEnd, *, request: Hashable = None,
        options: PutOptions = DEFAULT_PUT, hints: Sequence[BlockHint] = (),
    ) -> None:
        """Store objects that are not there yet. `hints`: one an object, or none."""
        work = Store(
            self._desk, objects, on_end, request, options, hints, self._store_backlog_bytes
        )
        if not self._desk.loop.call(work.begin):
            on_end([Stored.DROPPED] * len(objects))

    def register(self, address: int, size_bytes: int) -> None:
        """Announce the engine's arena, for NICs. Where they do not take it blocks go over TCP."""
        try:
            self._client.register_buffer(address, size_bytes)
        except (CallerError, OSError) as error:
            log.warning("%d bytes at %#x were not registered, so blocks there go over TCP: %s",
                        size_bytes, address, error)

    def remove(self, keys: Sequence[bytes]) -> list[int]:
        """Delete blocks; waits for it, at most a deadline. Statuses of `Client.batch_remove`."""
        return self._client.batch_remove(keys)

    def close(self) -> None:
        """Close the client: what is under way is missed or dropped."""
        self._desk.loop.close()


class Waited(Generic[ResultT]):
    """An `on_end` that a thread can wait for."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._results: list[ResultT] = []

    def __call__(self, result: ResultT) -> None:
        self._results.append(result)
        self._done.set()

    def result(self) -> ResultT:
        """Wait for the end; every lookup, load and store has one."""
        self._done.wait()
        return self._results[0]
