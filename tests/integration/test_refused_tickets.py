"""A client whose ticket a node does not take any more gets another one, and goes on."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memkv.client.attach import Attachment
from memkv.client.backoff import Backoff
from memkv.client.options import LOCAL_OFF, ConnectOptions
from memkv.client.source import TicketGrant
from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.limits import (
    RECONNECT_BACKOFF_MS_MAX,
    RECONNECT_BACKOFF_MS_MIN,
    TICKET_REFUSED_BACKOFF_MS_MAX,
)
from memkv.shardmap import MapVersion, ShardMap, Worker, pack_owners
from memkv.status import Status
from memkv.tenant import tenant_tag
from memkv.testing.clock import ManualClock
from memkv.testing.local_workers import FOREVER_NS, StaticSource
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import POOL, WORKER_UUID, RunningWorker, running_worker
from memkv.wire.signed import PoolVerifier, TicketSigner
from memkv.wire.ticket import CLIENT_RIGHTS, TICKET_LIFETIME_S, Ticket

OLD, NEW = (
    TicketSigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)) for seed in (1, 2)
)
IN_TIME_S = 120
SLOTS = 4


class SigningSource(StaticSource):
    """Gives tickets signed with the key that a test says, good for longer than the test runs."""

    def __init__(self) -> None:
        super().__init__()
        self.signer = OLD
        self.fetches = 0

    def fetch_ticket(self, timeout_ms: int) -> TicketGrant:
        self.fetches += 1
        now_s = SystemClock().wall_s()
        ticket = Ticket(
            POOL, "default", "tests", CLIENT_RIGHTS, now_s, now_s + TICKET_LIFETIME_S
        )
        signed = self.signer.sign(ticket).encode()
        return TicketGrant(signed, b"", tenant_tag("default"), FOREVER_NS, FOREVER_NS)


class Pool:
    """One worker, what it takes, and one client."""

    def __init__(self, worker: RunningWorker, verifier: PoolVerifier) -> None:
        self.worker, self.verifier, self.source = worker, verifier, SigningSource()
        member = Worker(WORKER_UUID, 1, "n", *worker.address)
        version = MapVersion(bytes(16), 1, 1)
        shard_map = ShardMap(version, SLOTS, (member,), pack_owners([0] * SLOTS))
        worker.server.set_map(shard_map)
        self.source.publish(shard_map)
        options = ConnectOptions(
            "127.0.0.1:1", POOL, deadline_ms=20_000, bootstrap_timeout_ms=100,
            local_dir=LOCAL_OFF,
        )  # fmt: skip
        self.client = Client(options, Attachment(options, self.source))

    def cut(self, *, control: bool) -> None:
        """End its lanes, or all connections."""
        for connection in list(self.worker.server._connections.values()):
            if control or connection.lane is not None:
                connection.cut()


@contextmanager
def pool(taken: TicketSigner = OLD) -> Iterator[Pool]:
    verifier = PoolVerifier(trusting=False)
    verifier.take_keys([taken.key])
    with running_worker(MemoryStore(), verifier=verifier) as worker:
        made = Pool(worker, verifier)
        try:
            yield made
        finally:
            made.client.close()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(IN_TIME_S * 50):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError(f"in vain: {what}")


def test_a_new_client_with_a_refused_ticket_asks_for_another() -> None:
    """As while the metadata service signs with a key that nodes were told to refuse."""
    with pool(taken=NEW) as made:
        wait_until(lambda: made.source.fetches > 2, "other tickets")
        made.source.signer = NEW
        assert made.client.wait_ready(IN_TIME_S * 1000), made.client.attachment.problems()
        assert made.client.put("k", b"data") == Status.OK


def test_a_revoked_key_costs_an_open_session_nothing_and_a_new_one_a_ticket() -> None:
    with pool() as made:
        client = made.client
        assert client.wait_ready(IN_TIME_S * 1000), client.attachment.problems()
        made.verifier.take_keys([NEW.key])
        made.source.signer = NEW
        for number in range(100):
            assert client.put(f"k{number % 3}", b"data") == Status.OK
        assert made.source.fetches == 1
        session = client.attachment.core.sessions()[0]
        for control in (False, True):
            made.cut(control=control)
            wait_until(
                lambda: client.put("k", b"data") == Status.OK and session.last_error == "",
                f"a connection: {session.last_error}",
            )
            assert client.get("k") == b"data"
        assert made.source.fetches == 2


def test_refused_clients_ask_for_tickets_ever_more_seldom() -> None:
    """A node that never learns the key must not have its clients ask as fast as they can."""
    clock = ManualClock()
    backoff = Backoff(clock, random.Random(1), TICKET_REFUSED_BACKOFF_MS_MAX)
    asked = 0
    for _ in range(600):  # a minute
        if backoff.due():
            asked += 1
            backoff.failed()
        clock.advance_ms(RECONNECT_BACKOFF_MS_MIN)
    assert TICKET_REFUSED_BACKOFF_MS_MAX > RECONNECT_BACKOFF_MS_MAX
    assert 5 < asked < 20
