"""Every client of this process over RDMA: for running tests that know nothing of it once more.

Blocks bounce through registered memory: a put is copied into it first, a get out of it before its
results are read. What asks for no memory of its own, and small single gets, go as they always do.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from memkv._hotpath import Wave, address_of
from memkv.client.buffers import Region, Scatter, scatter_bytes
from memkv.client.calls import Call, Request
from memkv.client.core import ClientCore, Routes
from memkv.client.operations import Started
from memkv.client.options import LOCAL_OFF, ConnectOptions, PutOptions
from memkv.client.rdma_settings import RDMA_ON
from memkv.client.requests import Requests
from memkv.client.routing import Keys
from memkv.client.source import MapSource
from memkv.limits import MIB
from memkv.rdma.client_memory import RdmaOptions
from memkv.rdma.verbs import Verbs
from memkv.status import Status
from memkv.testing import local_workers

ARENA_BYTES = 48 * MIB
LANES_WAIT_S = 20.0


class Bounce:
    """Registered memory that is handed out in turns: what is in flight at a time must fit."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, ARENA_BYTES)
        self.address = address_of(self.memory)
        self._next = 0
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> int:
        """Return the address of so much of it."""
        with self._lock:
            if self._next + size_bytes > ARENA_BYTES:
                self._next = 0
            address = self.address + self._next
            self._next += -(-size_bytes // 4096) * 4096
            return address


@dataclass(slots=True)
class BouncedRequest:
    """A get whose blocks are copied to where they belong once it is done."""

    request: Request
    bounced: Sequence[int]
    targets: Sequence[Scatter]

    @property
    def status(self) -> int:
        return self.request.status

    @property
    def statuses(self) -> Sequence[int]:
        return self.request.statuses

    @property
    def lengths(self) -> Sequence[int]:
        return self.request.lengths

    @property
    def hints(self) -> bytes:
        return self.request.hints

    def run(self) -> None:
        self.request.run()

    def submit(self, token: object | None, wave: Wave | None = None) -> None:
        self.request.submit(token, wave)

    def wait(self, deadline_ns: int) -> bool:
        return self.request.wait(deadline_ns)

    def quarantine(self, token: object) -> None:
        self.request.quarantine(token)

    def settled(self) -> None:
        self.request.settled()
        for address, target, status in zip(
            self.bounced, self.targets, self.request.statuses, strict=True
        ):
            if status > 0:
                _scatter(address, target, status)


class BouncedRequests(Requests):
    """Requests from and to registered memory."""

    def __init__(
        self, core: ClientCore, routes: Routes, tenant_tag: bytes, deadline_ns: int, bounce: Bounce
    ) -> None:
        super().__init__(core, routes, tenant_tag, deadline_ns)
        self._bounce = bounce

    def _bounced(self, positions: list[int], scatters: Sequence[Scatter]) -> list[Scatter]:
        found = list(scatters)
        for position in positions:
            size_bytes = scatter_bytes(scatters[position])
            found[position] = ((self._bounce.take(size_bytes), size_bytes),)
        return found

    def start_get(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        verify: bool,
    ) -> Started:
        bounced = self._bounced(positions, scatters)
        started = super().start_get(worker, keys, positions, bounced, verify)
        if isinstance(started, Status):
            return started
        for call in started:
            self._copy_back(call, bounced, scatters)
        return started

    @staticmethod
    def _copy_back(call: Call, bounced: list[Scatter], scatters: Sequence[Scatter]) -> None:
        places = [bounced[position][0][0] for position in call.positions]
        targets = [scatters[position] for position in call.positions]
        call.request = BouncedRequest(call.request, places, targets)

    def start_put(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        options: PutOptions, again: bool = False,
    ) -> Started:
        bounced = self._bounced(positions, scatters)
        for position in positions:
            address = bounced[position][0][0]
            for source, size_bytes in scatters[position]:
                ctypes.memmove(address, source, size_bytes)
                address += size_bytes
        return super().start_put(worker, keys, positions, bounced, options, again)


def _scatter(address: int, target: Scatter, size_bytes: int) -> None:
    for place, room in target:
        some = min(room, size_bytes)
        ctypes.memmove(place, address, some)
        address += some
        size_bytes -= some


def go_over_rdma(
    patch: pytest.MonkeyPatch, node_verbs: Callable[[], Verbs], client_verbs: Callable[[], Verbs],
    client_options: RdmaOptions, count: Callable[[int], None],
) -> None:
    """Have clients and workers of this process use these devices until `patch` is undone. `count`
    is told of keys that went so."""
    bounces: dict[int, Bounce] = {}
    init, requests, close = ClientCore.__init__, ClientCore.requests, ClientCore.close

    def started(
        core: ClientCore, options: ConnectOptions, client_uuid: bytes, source: MapSource
    ) -> None:
        options = replace(
            options, verbs=client_verbs, rdma=RDMA_ON, rdma_options=client_options,
            local_dir=LOCAL_OFF,
        )  # fmt: skip
        init(core, options, client_uuid, source)
        bounce = bounces[id(core)] = Bounce()
        core.register(Region(bounce.address, ARENA_BYTES, None, 0), wait=False)

    def bounced(
        core: ClientCore, deadline_ms: int, routes: Routes | None = None
    ) -> Requests | None:
        _wait_for_lanes(core)
        plain = requests(core, deadline_ms, routes)
        picture, ticket = routes or core.routes(), core.ticket
        if plain is None or picture is None or ticket is None:
            return plain
        return BouncedRequests(
            core, picture, ticket.tenant_tag, plain.deadline_ns, bounces[id(core)]
        )

    def ended(core: ClientCore) -> None:
        count(core.counters.rdma_keys)
        close(core)
        bounces.pop(id(core), None)

    patch.setattr(ClientCore, "__init__", started)
    patch.setattr(ClientCore, "requests", bounced)
    patch.setattr(ClientCore, "close", ended)
    patch.setattr(local_workers, "default_verbs", node_verbs)


def _wait_for_lanes(core: ClientCore) -> None:
    """Background work of the client; the calls of a test would go over TCP before it is done."""
    end = time.monotonic() + LANES_WAIT_S
    sessions = [one.rdma for one in core.sessions() if one.rdma.is_possible]
    while any(one.lanes is None for one in sessions) and time.monotonic() < end:
        with core.changed:
            core.changed.wait(0.05)
