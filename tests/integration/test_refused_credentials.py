"""Wrong certificates and tickets at every door that they are shown at: refused before anything is
looked up. Wrong tokens and callers of the metadata service: test_metadata_access.py."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memkv._hotpath import Stream, StreamClosed, TlsContext
from memkv.client.encrypted import EncryptedSocket
from memkv.clock import SystemClock
from memkv.errors import PeerGone
from memkv.metadata.certificates import admin_name, node_name
from memkv.node.admin import AdminServer, AdminServicer, SpecKeeper
from memkv.node.node_config import DriveConfig, NodeConfig
from memkv.status import Status
from memkv.tcp.tls import ClientContexts
from memkv.testing.certificates import Authority
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import NODE_NAME, POOL, RunningWorker, running_worker
from memkv.testing.wire_client import WireClient
from memkv.testing.wrong_certificates import PAST, WRONG, Door
from memkv.wire.client_session import SessionRefused
from memkv.wire.signed import PoolVerifier, TicketSigner
from memkv.wire.ticket import (
    CLIENT_RIGHTS,
    TICKET_LIFETIME_S,
    Rights,
    Ticket,
    anonymous_ticket,
)
from memkv_proto import node_admin_pb2 as pb
from memkv_proto import node_admin_pb2_grpc as pb_grpc

WAIT_S = 60
ADMIN, NODE = admin_name(POOL), node_name(POOL)
NOW = SystemClock().wall_s()


# --- NodeAdmin -------------------------------------------------------------------------------


class Admin:
    """A node's admin service that notes what gets through."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.calls: list[str] = []
        files = self.authority.files(folder, "node", NODE)
        config = NodeConfig(
            "n", POOL, folder, (DriveConfig(folder / "d"),), admin_port=0, tls=files
        )
        self.specs = SpecKeeper(folder / "spec")
        servicer = AdminServicer(
            self._facts, self.specs, lambda: self.calls.append("Apply"), ADMIN
        )
        self.server = AdminServer(config, servicer)
        others = (admin_name("default/other"), admin_name("other/test"), "memkv-operator")
        self.door = Door(self.server.endpoint, self.authority, NODE, ADMIN, others)

    def _facts(self) -> pb.GetFactsResponse:
        self.calls.append("GetFacts")
        return pb.GetFactsResponse(pool=POOL)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    running = Admin(tmp_path_factory.mktemp("admin"))
    yield running
    running.server.stop()


RPCS: dict[str, Callable[[grpc.Channel], object]] = {
    "GetFacts": lambda channel: pb_grpc.NodeAdminStub(channel).GetFacts(
        pb.GetFactsRequest(), timeout=WAIT_S
    ),
    "Apply": lambda channel: pb_grpc.NodeAdminStub(channel).Apply(
        pb.ApplyRequest(spec=pb.NodeSpec(generation=7)), timeout=WAIT_S
    ),
}


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("case", WRONG)
def test_node_admin_refuses(admin: Admin, tmp_path: Path, rpc: str, case: str) -> None:
    assert admin.door.refusal(admin.door.wrong(tmp_path, case), RPCS[rpc]) is WRONG[case]
    assert admin.calls == []
    assert admin.specs.spec.generation == 0


def test_node_admin_lets_the_operator_in(tmp_path: Path) -> None:
    """So the others are refused for what they show."""
    admin = Admin(tmp_path)
    try:
        for call in RPCS.values():
            assert admin.door.refusal(admin.door.right(tmp_path), call) is None
        assert admin.calls == list(RPCS)
    finally:
        admin.server.stop()


# --- the data port ---------------------------------------------------------------------------


class Watched(MemoryStore):
    """A store that notes who looks something up."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("exists", "begin_put", "delete", "pin", "lease", "list_page"):
            self.touched.append(name)
        return super().__getattribute__(name)


def signer(seed: int = 1) -> TicketSigner:
    return TicketSigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


UNSIGNED = Ticket(
    POOL, "team-a", "system:serviceaccount:team-a:engine", CLIENT_RIGHTS, NOW - 10,
    NOW + TICKET_LIFETIME_S, salt=b"s" * 32,
)  # fmt: skip
GOOD = signer().sign(UNSIGNED)
ENDED = replace(
    UNSIGNED, issued_s=NOW - 2 * TICKET_LIFETIME_S, expires_s=NOW - TICKET_LIFETIME_S
)


def flipped(position: int) -> bytes:
    data = bytearray(GOOD.encode())
    data[position] ^= 1
    return bytes(data)


TICKETS = {
    "garbage": os.urandom(200),
    "cut": GOOD.encode()[:-1],
    "unsigned": UNSIGNED.encode(),
    "anonymous": anonymous_ticket(POOL, "team-a", NOW).encode(),
    "of another key": signer(9).sign(UNSIGNED).encode(),
    "of another key under this one's id": replace(
        signer(9).sign(UNSIGNED), key_id=GOOD.key_id
    ).encode(),
    "expired": signer().sign(ENDED).encode(),
    "made younger": replace(signer().sign(ENDED), expires_s=NOW + 100).encode(),
    "of another pool": signer().sign(replace(UNSIGNED, pool="default/other")).encode(),
    "with another pool written over": replace(
        signer().sign(replace(UNSIGNED, pool="default/other")), pool=POOL
    ).encode(),
    "with another tenant": replace(GOOD, tenant="team-b").encode(),
    "with more rights": replace(GOOD, rights=CLIENT_RIGHTS | Rights.PEER).encode(),
    "without its signature": GOOD.signed_part(),
    "with a signature of zeros": replace(GOOD, signature=bytes(64)).encode(),
    "with a flipped bit in its tenant": flipped(GOOD.encode().index(b"team-a")),
    "with a flipped bit in its signature": flipped(-1),
}


@pytest.fixture(scope="module")
def store() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def worker(store: Watched) -> Iterator[RunningWorker]:
    verifier = PoolVerifier(trusting=False)
    verifier.take_keys([signer().key])
    verifier.take_grace(has_metadata=True)
    with running_worker(store, encrypted=True, verifier=verifier) as running:
        yield running


@pytest.mark.parametrize("case", TICKETS)
def test_data_port_refuses_a_ticket(worker: RunningWorker, store: Watched, case: str) -> None:
    store.touched.clear()
    with pytest.raises(SessionRefused) as caught:
        WireClient(worker.address, POOL, "team-a", ticket=TICKETS[case])
    assert caught.value.status is Status.DENIED
    assert store.touched == []


def test_data_port_takes_the_pools_own_ticket(worker: RunningWorker, store: Watched) -> None:
    """So the others are refused for what they show."""
    with WireClient(worker.address, POOL, "team-a", ticket=GOOD.encode()) as client:
        assert client.exists(os.urandom(32)) == [0]
    assert "exists" in store.touched


CLIENTS = {
    "another pool's name": ("own", "node.other.default.memkv", "is no node of this pool"),
    "a part of its name": ("own", "test.default.memkv", "is no node of this pool"),
    "another authority": ("other", NODE_NAME, "is not believed"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_clients_refuse_another_node(worker: RunningWorker, store: Watched, case: str) -> None:
    believed, name, words = CLIENTS[case]
    assert worker.authority is not None
    own = worker.authority.pem
    store.touched.clear()
    with pytest.raises(PeerGone, match=words):
        shake_hands(worker.address, own if believed == "own" else Authority().pem, name)
    shake_hands(worker.address, own, NODE_NAME)
    assert store.touched == []


def shake_hands(address: tuple[str, int], authority: bytes, name: str) -> None:
    """As a client does before it says anything."""
    connected = socket.create_connection(address, WAIT_S)
    context = ClientContexts(lambda: authority, name)()
    encrypted = EncryptedSocket(connected, context, SystemClock())
    try:
        encrypted.handshake()
    finally:
        encrypted.close()


def test_clients_refuse_a_node_whose_certificate_has_expired() -> None:
    authority = Authority()
    pair = authority.issue(NODE_NAME, until=PAST)
    context = TlsContext.server(pair.certificate, pair.key)
    heard: list[str] = []

    def serve(listener: socket.socket) -> None:
        connected, _ = listener.accept()
        stream = Stream(connected.detach(), tls=context)
        try:
            stream.handshake(SystemClock().monotonic_ns() + WAIT_S * 10**9)
            stream.receive_some(bytearray(1), SystemClock().monotonic_ns() + WAIT_S * 10**9)
        except StreamClosed as error:
            heard.append(str(error))
        finally:
            stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(PeerGone, match="certificate has expired"):
            shake_hands(listener.getsockname(), authority.pem, NODE_NAME)
        thread.join()
    assert heard, "the client went on"
