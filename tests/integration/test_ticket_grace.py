"""Tickets that end: who may go on, who may come in, and for how long."""

import os
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memkv.clock import SystemClock
from memkv.status import Status
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import POOL, RunningWorker, running_worker
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.client_session import SessionRefused
from memkv.wire.signed import PoolVerifier, TicketSigner
from memkv.wire.ticket import (
    CLIENT_RIGHTS,
    TICKET_GRACE_S,
    TICKET_LIFETIME_S,
    Ticket,
)

SIGNER = TicketSigner(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
HOUR_S = 3600


class LateClock(SystemClock):
    """The machine's clock, with a wall clock that is ahead."""

    ahead_s = 0

    def wall_s(self) -> int:
        return super().wall_s() + self.ahead_s


class Node:
    """A worker that accepts tickets of one key, and its clock."""

    def __init__(self, worker: RunningWorker, clock: LateClock, verifier: PoolVerifier) -> None:
        self.worker, self.clock, self.verifier = worker, clock, verifier
        now_s = clock.wall_s()
        self.ticket = SIGNER.sign(
            Ticket(
                POOL, "team-a", "system:serviceaccount:team-a:engine", CLIENT_RIGHTS, now_s,
                now_s + TICKET_LIFETIME_S, salt=b"s" * 32,
            )
        ).encode()  # fmt: skip

    def open(self) -> WireClient:
        client = WireClient(self.worker.address, POOL, "team-a", ticket=self.ticket)
        self.worker.clients.append(client)
        return client

    def is_refused(self) -> bool:
        with pytest.raises(SessionRefused) as caught:
            self.open()
        return caught.value.status is Status.DENIED


@pytest.fixture
def node() -> Iterator[Node]:
    clock, verifier = LateClock(), PoolVerifier(trusting=False)
    verifier.take_keys([SIGNER.key])
    verifier.take_grace(has_metadata=True)
    with running_worker(MemoryStore(), verifier=verifier, clock=clock) as worker:
        yield Node(worker, clock, verifier)


@pytest.mark.parametrize("end", ["ticket", "grace", "key"])
def test_a_live_session_outlives_its_ticket(node: Node, end: str) -> None:
    """Neither its connection is cut, nor its lanes, and it may open others."""
    client = node.open()
    lane = client.lane()
    block = Block(os.urandom(32), os.urandom(5000))
    if end == "key":
        node.verifier.take_keys([])
    else:
        node.clock.ahead_s = TICKET_LIFETIME_S + (TICKET_GRACE_S + 1 if end == "grace" else 1)
    assert node.is_refused()
    assert lane.put([block]) == [Status.OK]
    assert client.exists(block.block_id) == [1]
    assert client.lane().get(block.block_id)[0].payload == block.data
    assert node.is_refused()


def test_without_a_metadata_stream_an_ended_ticket_opens_sessions_for_twelve_hours(
    node: Node,
) -> None:
    assert TICKET_GRACE_S == 12 * HOUR_S
    node.verifier.take_grace(has_metadata=False)
    node.clock.ahead_s = TICKET_LIFETIME_S + TICKET_GRACE_S - 60
    client = node.open()
    node.clock.ahead_s += 61
    assert node.is_refused()
    assert client.exists(os.urandom(32)) == [0]


def test_with_the_stream_the_grace_ends_and_sessions_stay(node: Node) -> None:
    node.verifier.take_grace(has_metadata=False)
    node.clock.ahead_s = TICKET_LIFETIME_S + 1
    client = node.open()
    node.verifier.take_grace(has_metadata=True)
    assert node.is_refused()
    assert client.exists(os.urandom(32)) == [0]
