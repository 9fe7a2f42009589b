"""Whose blocks a ServiceAccount sees: its own tenant's and nobody else's, from token to flash."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memkv.clock import SystemClock
from memkv.metadata.bearer import ServiceAccount, TokenCallers
from memkv.metadata.callers import Presented
from memkv.metadata.tenants import TenantMap
from memkv.metadata.tickets import SignedIssuer, secret_salts
from memkv.node.facts import Phase
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.node.supervisor import Supervisor
from memkv.status import Status
from memkv.testing.tokens import FakeReviewer, make_token
from memkv.testing.wire_client import Block, WireClient
from memkv.wire.items import Durability
from memkv.wire.signed import TicketSigner
from memkv.wire.ticket import Ticket, TicketRefused

POOL = "default/test"
MIB = 1 << 20
KEY = b"the same key".ljust(32, b"\0")
NAMED = {("search", "vllm"): "shared", ("batch", "job"): "shared"}


class Pool:
    """A node, and a metadata service's way from a token to a ticket."""

    def __init__(self, folder: Path) -> None:
        signing = Ed25519PrivateKey.generate()
        keys = folder / "tickets.pub"
        public = signing.public_key()
        keys.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        clock = SystemClock()
        self._reviewer = FakeReviewer()
        self._callers = TokenCallers(self._reviewer, lambda: TenantMap(NAMED), clock)
        signer = TicketSigner(signing)
        self._issuer = SignedIssuer(lambda: signer, secret_salts(b"s" * 32), clock)
        drive = DriveConfig(folder / "drive", 64 * MIB)
        self.node = Supervisor(
            NodeConfig(
                "n1", POOL, folder / "state", (drive,), memory_bytes=32 * MIB, data_port=0,
                admin_port=0, http_port=None, ticket_keys=keys,
            )
        )  # fmt: skip
        self.node.start()

    def ticket(self, account: ServiceAccount, tenant: str = "") -> Ticket:
        """Return what the ServiceAccount's token is exchanged for."""
        token = make_token(account.user, expires_s=SystemClock().wall_s() + 3600)
        self._reviewer.accounts[token] = account
        caller = asyncio.run(self._callers.caller(Presented(bearer=token)))
        return self._issuer.issue(POOL, tenant, caller, peer=False)

    def session(self, account: ServiceAccount) -> WireClient:
        """Open a session of the ServiceAccount."""
        ticket = self.ticket(account)
        report = self.node.view().workers[0].report
        assert report is not None
        return WireClient(("127.0.0.1", report.port), POOL, ticket.tenant, ticket=ticket.encode())

    def put(self, account: ServiceAccount, data: bytes) -> Status:
        with self.session(account) as client, client.lane() as lane:
            [status] = lane.put([Block(KEY, data, Durability.DURABLE)])
            return status

    def get(self, account: ServiceAccount) -> bytes | None:
        with self.session(account) as client, client.lane() as lane:
            got = lane.get(KEY)[0]
            return got.payload if got.status is Status.OK else None


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    made = Pool(tmp_path_factory.mktemp("isolation"))
    pause = asyncio.Event()

    async def ready() -> None:
        while made.node.view().workers[0].phase is not Phase.READY:
            try:
                await asyncio.wait_for(pause.wait(), 0.02)
            except TimeoutError:
                continue

    asyncio.run(asyncio.wait_for(ready(), 60))
    yield made
    made.node.stop()


def test_accounts_see_what_their_tenant_stored_under_a_key_that_all_use(pool: Pool) -> None:
    vllm, job = ServiceAccount("search", "vllm"), ServiceAccount("batch", "job")
    other, stranger = ServiceAccount("search", "other"), ServiceAccount("team-a", "vllm")
    assert pool.put(vllm, b"of the shared tenant") == Status.OK
    assert pool.get(job) == b"of the shared tenant"
    for outsider in (other, stranger):
        assert pool.get(outsider) is None
    assert pool.put(other, b"of namespace search") == Status.OK
    assert pool.put(stranger, b"of namespace team-a") == Status.OK
    assert pool.get(vllm) == pool.get(job) == b"of the shared tenant"
    assert pool.get(other) == b"of namespace search"
    assert pool.get(stranger) == b"of namespace team-a"
    with pool.session(stranger) as client:
        assert client.delete(KEY) == [Status.OK]
    assert pool.get(stranger) is None
    assert pool.get(other) == b"of namespace search"


def test_tenants_have_salts_of_their_own_and_sharers_one(pool: Pool) -> None:
    accounts = [ServiceAccount("search", "vllm"), ServiceAccount("batch", "job")]
    first, second = (pool.ticket(account) for account in accounts)
    assert (first.tenant, first.salt) == (second.tenant, second.salt)
    third = pool.ticket(ServiceAccount("search", "other"))
    assert (third.tenant, third.salt != first.salt) == ("search", True)


def test_nobody_gets_a_ticket_of_a_tenant_that_is_not_theirs(pool: Pool) -> None:
    for account, tenant in (("search", "other"), "shared"), (("search", "vllm"), "search"):
        with pytest.raises(TicketRefused, match="may not use"):
            pool.ticket(ServiceAccount(*account), tenant)
