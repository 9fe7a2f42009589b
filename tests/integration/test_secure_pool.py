"""A pool of real processes under TLS: who gets in, who does not, and rotations under load."""

import ctypes
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import memkv
from memkv.cli import main as cli
from memkv.cli import settings
from memkv.cli.exits import Exit
from memkv.client import options
from memkv.client.options import PutOptions
from memkv.client.sync import Client
from memkv.errors import RetryLater
from memkv.integrations.hints import hints_of
from memkv.metadata.certificates import ClientTls, client_tls, node_name
from memkv.metadata.endpoint import open_channel
from memkv.metadata.watch import MetadataRefused, fetch_map, fetch_ticket
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.testing.certificates import Authority
from memkv.testing.secure_pool import POOL, SecurePool, serves
from memkv.wire.events import Event
from memkv.wire.ticket import PEER_TENANT, Rights, parse_ticket
from memkv_proto import node_admin_pb2, node_admin_pb2_grpc

READY_MS = 120_000


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePool]:
    with SecurePool(tmp_path_factory.mktemp("secure")) as running:
        yield running


@pytest.fixture(scope="module")
def client(pool: SecurePool) -> Iterator[Client]:
    with pool.client() as made:
        assert made.wait_ready(READY_MS), made.attachment.problems()
        wait_for(made, lambda: serves(made))
        yield made


@pytest.fixture
def connection_file(
    pool: SecurePool, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A connection file with the client's certificate, where programs look for one."""
    files = pool.files["client"]
    path = tmp_path / "connection.json"
    document = {
        "endpoint": pool.endpoint, "pool": POOL, "ca": files.authority.read_text(),
        "tls_cert": str(files.certificate), "tls_key": str(files.key),
    }  # fmt: skip
    path.write_text(json.dumps(document))
    read = settings.connection_source
    monkeypatch.setattr(settings, "connection_source", lambda: read(path))
    monkeypatch.setattr(options, "CONNECTION_FILE", path)
    monkeypatch.delenv("MEMKV_ENDPOINT", raising=False)
    return path


def problem_of(client: Client, words: str) -> str:
    """Return what a client says of its trouble, once it says something with these words."""
    pause = threading.Event()
    for _ in range(READY_MS // 20):
        found = "\n".join(client.attachment.problems())
        if words in found:
            return found
        pause.wait(0.02)
    raise AssertionError(f"{words!r} is not in what the client says:\n{found}")


@pytest.mark.parametrize("size", [1, 4096, 64 * 1024 + 1, 900 * 1024])
def test_blocks_round_trip_under_tls(client: Client, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert client.put(f"block {size}", data, PutOptions(durability="durable")) == Status.OK
    assert client.get(f"block {size}") == data
    assert client.get(f"block {size}") == data
    assert client.batch_is_exist([f"block {size}", "no such"]) == [1, 0]
    assert client.remove(f"block {size}") == Status.OK
    assert client.get(f"block {size}") is None


@pytest.mark.parametrize("size", [100, 900 * 1024], ids=["short", "of many records"])
def test_hints_reach_nodes_under_tls(client: Client, size: int) -> None:
    chain = [f"hinted {size} {number}".encode() for number in range(4)]
    hints = hints_of(chain, session=b"chat 1")
    watch = client.watch_blocks()
    while watch.poll():  # what is there already
        pass
    data = (ctypes.c_char * size)()
    put = client.batch_put_from(
        chain, [ctypes.addressof(data)] * 4, [size] * 4, PutOptions(hints=hints)
    )
    assert put == [Status.OK] * 4
    events = [event for update in watch.poll() for event in update.events]
    digests = watch.digests(chain)
    assert sorted(events) == sorted(
        Event(digest, hint.prefix_id, hint.depth, 0)
        for digest, hint in zip(digests, hints, strict=True)
    )
    assert [hint.depth for hint in hints] == [0, 1, 2, 3]
    assert client.remove(chain[3]) == Status.OK
    events = [event for update in watch.poll() for event in update.events]
    assert [(event.digest, event.kind) for event in events] == [(digests[3], 1)]
    assert client.why(chain) == [*[MissReason.PRESENT] * 3, MissReason.DELETED]


def test_a_connection_file_is_all_that_commands_and_programs_need(
    connection_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "block").write_bytes(b"by command" * 100)
    assert cli.main(["put", "by-command", str(tmp_path / "block")]) == 0
    assert cli.main(["get", "by-command", "--output", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back").read_bytes() == b"by command" * 100
    assert cli.main(["nodes", "--json"]) == 0
    capfd.readouterr()
    with memkv.connect() as program:
        assert program.wait_ready(READY_MS), program.attachment.problems()
        assert program.get("by-command") == b"by command" * 100


@pytest.mark.usefixtures("connection_file")
def test_commands_tell_a_refusal_from_a_pool_that_is_away(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["get", "by-command", "--tenant", "team-b"]) == Exit.UNREACHABLE
    message = capfd.readouterr().err
    assert "refuses this client" in message
    assert "may not use 'team-b'" in message
    assert "memkv up" not in message


def test_the_ticket_is_signed_and_names_the_certificates_tenant(
    pool: SecurePool, client: Client
) -> None:
    tls = pool.credentials().tls()
    grant = fetch_ticket(pool.endpoint, POOL, "default", tls=tls)
    ticket = parse_ticket(grant.ticket)
    assert (ticket.tenant, ticket.subject) == ("team-a", "system:serviceaccount:team-a:engine")
    assert ticket.signature
    with pytest.raises(MetadataRefused, match="may not use 'team-b'"):
        fetch_ticket(pool.endpoint, POOL, "team-b", tls=tls)
    with pytest.raises(MetadataRefused, match="is no node"):
        fetch_ticket(pool.endpoint, POOL, "", peer=True, tls=tls)


def test_a_node_gets_a_ticket_for_moves(pool: SecurePool, client: Client) -> None:
    tls = client_tls(pool.files["node-0"])
    ticket = parse_ticket(fetch_ticket(pool.endpoint, POOL, "", peer=True, tls=tls).ticket)
    assert (ticket.tenant, ticket.rights) == (PEER_TENANT, Rights.PEER)


def test_the_admin_service_is_for_the_publisher_alone(pool: SecurePool, client: Client) -> None:
    endpoint = f"127.0.0.1:{pool.admin_ports[0]}"
    for role, admitted in (("metadata", True), ("client", False), ("node-1", False)):
        tls = client_tls(pool.files[role], server_name=node_name(POOL))
        with open_channel(endpoint, tls) as channel:
            stub = node_admin_pb2_grpc.NodeAdminStub(channel)
            request = node_admin_pb2.GetFactsRequest()
            if admitted:
                assert stub.GetFacts(request, timeout=60).pool == POOL
                continue
            with pytest.raises(grpc.RpcError, match="only the pool's publisher"):
                stub.GetFacts(request, timeout=60)


def test_strangers_get_no_connection_to_the_metadata_service(
    pool: SecurePool, tmp_path: Path, client: Client
) -> None:
    stranger = Authority("a stranger").files(tmp_path, "stranger", "spiffe://x/ns/team-a/sa/e")
    believed = pool.authority.pem
    for tls in (
        None,
        ClientTls(believed),
        ClientTls(Authority().pem),
        ClientTls(believed, stranger.certificate, stranger.key),
        ClientTls(believed, pool.files["client"].certificate, pool.files["client"].key,
                  server_name="elsewhere.example"),
    ):  # fmt: skip
        with pytest.raises(RetryLater):
            fetch_map(pool.endpoint, POOL, tls=tls, timeout_s=2)


def test_wrong_ca_is_named(pool: SecurePool, client: Client) -> None:
    with pool.client(Authority("another").pem.decode()) as lost:
        assert "CERTIFICATE_VERIFY_FAILED" in problem_of(lost, "certificate").upper()
        assert lost.get("block") is None


def test_client_that_speaks_plainly_to_encrypted_nodes_is_told(
    pool: SecurePool, client: Client
) -> None:
    with Client(pool.options(pool.credentials(payload_encryption=False))) as plain:
        assert "speaks TLS and this client does not" in problem_of(plain, "speaks TLS")
        assert plain.get("block") is None
    assert client.put("after", b"the nodes are well") == Status.OK


def test_client_that_encrypts_to_plain_nodes_is_told(tmp_path: Path) -> None:
    with SecurePool(tmp_path, 1, ("--payload-encryption", "None")) as plain_pool:
        with plain_pool.client() as encrypting:
            assert "it speaks no TLS" in problem_of(encrypting, "speaks no TLS")
        plain = plain_pool.options(plain_pool.credentials(payload_encryption=False))
        with Client(plain) as fitting:
            assert fitting.wait_ready(READY_MS), fitting.attachment.problems()
            wait_for(fitting, lambda: serves(fitting))
            assert fitting.put("k", b"plain, with a signed ticket") == Status.OK
            assert fitting.get("k") == b"plain, with a signed ticket"


class Load:
    """A thread that puts and gets until it is told to stop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self.failures: list[object] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            key, data = f"load {self.rounds % 8}", bytes([self.rounds % 8]) * 200_000
            put = self._client.put(key, data)
            if put != Status.OK:
                self.failures.append(put)
            elif self._client.get(key) != data:
                self.failures.append("a miss")
            self.rounds += 1


def fresh_client_works(pool: SecurePool, ca: str, key: str) -> None:
    with pool.client(ca) as fresh:
        assert fresh.wait_ready(READY_MS), fresh.attachment.problems()
        assert fresh.put(key, b"fresh") == Status.OK
        assert fresh.get(key) == b"fresh"


def incarnations(client: Client) -> int:
    """Return a number that grows when a node that was started again is in the map."""
    shard_map = client.attachment.shard_map
    return sum(worker.incarnation for worker in shard_map.workers) if shard_map else 0


def wait_for(client: Client, holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(READY_MS // 20):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError(f"in vain: {client.attachment.problems()}")


def test_everything_is_rotated_under_load_without_a_failed_request(tmp_path: Path) -> None:
    with SecurePool(tmp_path) as pool, pool.client() as client:
        # A slot that moves, as one does when a node was late for the first map, refuses some puts.
        wait_for(client, lambda: settled(client, 2))
        assert client.wait_ready(READY_MS), client.attachment.problems()
        wait_for(client, lambda: serves(client))
        old, new = pool.authority, Authority("the next one")
        with Load(client) as load:
            fresh_client_works(pool, "", "before")
            pool.believe(old, new)
            fresh_client_works(pool, "", "both believed")
            pool.reissue(new)
            fresh_client_works(pool, new.pem.decode(), "new certificates")
            pool.believe(new)
            fresh_client_works(pool, "", "old authority gone")
            pool.keys.announce()
            fresh_client_works(pool, "", "two ticket keys")
            pool.keys.sign()
            fresh_client_works(pool, "", "signed with the new key")
            pool.keys.retire()
            fresh_client_works(pool, "", "old key gone")
        assert load.failures == []
        assert load.rounds > 0
        before = incarnations(client)
        pool.restart_node(0)
        # The publisher knows it by the new certificate, and it knows the publisher.
        wait_for(client, lambda: incarnations(client) > before)
        wait_for(client, lambda: serves(client))
        fresh_client_works(pool, "", "a node was started again")
        with pytest.raises(RetryLater):
            fetch_map(pool.endpoint, POOL, tls=ClientTls(old.pem), timeout_s=2)


def settled(client: Client, workers: int) -> bool:
    """Whether the map has so many workers, and every move has ended."""
    shard_map = client.attachment.shard_map
    return shard_map is not None and len(shard_map.workers) == workers and not shard_map.moving


def test_blocks_move_to_a_node_that_joins_by_its_certificate_and_ticket(tmp_path: Path) -> None:
    keys = [f"moving {n}" for n in range(60)]
    pool = SecurePool(tmp_path, 2, absent=frozenset({1}))
    with pool, pool.client() as client:
        wait_for(client, lambda: settled(client, 1))
        assert client.wait_ready(READY_MS), client.attachment.problems()
        wait_for(client, lambda: serves(client))
        for key in keys:
            assert client.put(key, key.encode() * 1000, PutOptions(durability="durable")) == 0
        pool.start_node(1)
        # A move ends when the new owner has pulled everything from the one before.
        wait_for(client, lambda: settled(client, 2))
        assert client.wait_ready(READY_MS), client.attachment.problems()
        shard_map = client.attachment.shard_map
        assert shard_map is not None
        assert all(shard_map.slots_of(index) for index in range(2))
        assert [client.get(key) for key in keys] == [key.encode() * 1000 for key in keys]
