"""Who may call the metadata service: every RPC, every kind of wrong token and certificate."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memkv.clock import SystemClock
from memkv.errors import ConfigError, PeerGone, RetryLater
from memkv.metadata.access import AccessConfig, CertificateCallers, Mode
from memkv.metadata.bearer import ServiceAccount, TokenCallers
from memkv.metadata.callers import Authenticator
from memkv.metadata.certificates import ClientTls, admin_name, node_name
from memkv.metadata.endpoint import call_metadata, open_channel
from memkv.metadata.server import MetadataServer, ServerConfig
from memkv.metadata.tenants import TenantMap
from memkv.metadata.tickets import AnonymousIssuer
from memkv.metadata.watch import MetadataRefused, drop_tenant, fetch_map, fetch_ticket
from memkv.shardmap import MapVersion, ShardMap, Worker, pack_owners
from memkv.testing.certificates import Authority
from memkv.testing.tokens import FakeReviewer, make_token
from memkv_proto import metadata_pb2 as pb
from memkv_proto import metadata_pb2_grpc as pb_grpc

POOL = "default/test"
WAIT_S = 60.0
NOW = SystemClock().wall_s()
LATER = NOW + 3600
NODE = ServiceAccount("default", "test-node")
T = TypeVar("T")


class Service:
    """A metadata service with a map, on its own loop in a thread."""

    def __init__(self, folder: Path, authenticator: Authenticator, *, asks: bool) -> None:
        self.authority = Authority()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        files = self.authority.files(folder, "server", "127.0.0.1")
        config = ServerConfig(POOL, port=0, tls=files, asks_certificate=asks)
        self._server = self._call(self._start(config, authenticator))
        self.endpoint = self._server.endpoint

    async def _start(self, config: ServerConfig, authenticator: Authenticator) -> MetadataServer:
        clock = SystemClock()
        server = MetadataServer(config, AnonymousIssuer(clock), clock, authenticator=authenticator)
        await server.start()
        worker = Worker(bytes(16), 1, "n", "127.0.0.1", 7070)
        await server.publish(
            ShardMap(MapVersion(b"L" * 16, 1, 1), 2, (worker,), pack_owners((0, 0)))
        )
        return server

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def stop(self) -> None:
        self._call(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def refused(self) -> int:
        return self._server.statistics().refused

    @property
    def nothing_was_asked(self) -> bool:
        counts = self._server.statistics()
        return counts.refused == counts.snapshots == counts.tickets == counts.watchers == 0


REVIEWER = FakeReviewer()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    callers = TokenCallers(REVIEWER, TenantMap, SystemClock(), frozenset({NODE}))
    running = Service(tmp_path_factory.mktemp("token"), callers, asks=False)
    yield running
    running.stop()


def proof(service: Service, folder: Path, token: str) -> ClientTls:
    (folder / "token").write_text(token)
    return ClientTls(service.authority.pem, token_file=folder / "token")


def watch(endpoint: str, pool: str, *, tls: ClientTls | None) -> object:
    with open_channel(endpoint, tls) as channel:
        stub = pb_grpc.MetadataServiceStub(channel)
        request = pb.WatchShardMapRequest(pool=pool)
        try:
            for event in stub.WatchShardMap(
                request, timeout=WAIT_S, metadata=call_metadata(tls)
            ):
                return event.snapshot.version.epoch
        except grpc.RpcError as error:
            raise MetadataRefused(f"{error.code().name}: {error.details()}") from error
    return None


RPCS: dict[str, Callable[[str, ClientTls | None], object]] = {
    "GetShardMap": lambda endpoint, tls: fetch_map(endpoint, POOL, tls=tls, timeout_s=WAIT_S),
    "WatchShardMap": lambda endpoint, tls: watch(endpoint, POOL, tls=tls),
    "GetTicket": lambda endpoint, tls: fetch_ticket(
        endpoint, POOL, "", tls=tls, timeout_s=WAIT_S
    ),
    "GetTicket for moves": lambda endpoint, tls: fetch_ticket(
        endpoint, POOL, "", peer=True, tls=tls, timeout_s=WAIT_S
    ),
    "DropTenant": lambda endpoint, tls: drop_tenant(endpoint, POOL, "team-a", tls=tls),
    "GetShardMap of no pool": lambda endpoint, tls: fetch_map(
        endpoint, "no/pool", tls=tls, timeout_s=WAIT_S
    ),
}
FORBIDDEN = REVIEWER.trust(make_token("a/forbidden", expires_s=LATER), "a", "forbidden")
REVIEWER.forbidden.add(FORBIDDEN)
WRONG = {
    "garbage": ("garbage", "UNAUTHENTICATED"),
    "of another audience": (make_token(expires_s=LATER, audience="vault"), "UNAUTHENTICATED"),
    "ended": (make_token(expires_s=NOW - 1), "UNAUTHENTICATED"),
    "of another cluster": (make_token(expires_s=LATER), "UNAUTHENTICATED"),
    "with a changed signature": (
        make_token("a/forbidden", expires_s=LATER, signature="Zm9yZ2Vk"), "UNAUTHENTICATED",
    ),
    "without the right": (make_token("a/forbidden", expires_s=LATER), "PERMISSION_DENIED"),
}  # fmt: skip


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_token_is_refused_by_every_call(
    service: Service, tmp_path: Path, rpc: str, case: str
) -> None:
    token, code = WRONG[case]
    before = service.refused
    with pytest.raises(MetadataRefused, match=code):
        RPCS[rpc](service.endpoint, proof(service, tmp_path, token))
    assert service.refused == before + 1


@pytest.mark.parametrize("rpc", RPCS)
def test_call_without_a_token_is_refused_and_told_what_is_missing(
    service: Service, rpc: str
) -> None:
    with pytest.raises(MetadataRefused, match="token_file"):
        RPCS[rpc](service.endpoint, ClientTls(service.authority.pem))


def test_good_token_gets_its_map_and_its_ticket(service: Service, tmp_path: Path) -> None:
    token = make_token("team-a/good", expires_s=LATER)
    REVIEWER.trust(token)
    tls = proof(service, tmp_path, token)
    assert fetch_map(service.endpoint, POOL, tls=tls).version.epoch == 1
    assert watch(service.endpoint, POOL, tls=tls) == 1
    assert fetch_ticket(service.endpoint, POOL, "", tls=tls).tenant == "team-a"
    with pytest.raises(MetadataRefused, match="is no node"):
        fetch_ticket(service.endpoint, POOL, "", peer=True, tls=tls)


def test_token_is_read_anew_for_each_call(service: Service, tmp_path: Path) -> None:
    first, second = (make_token(f"team-a/{n}", expires_s=LATER + n) for n in range(2))
    REVIEWER.trust(first)
    tls = proof(service, tmp_path, first)
    fetch_map(service.endpoint, POOL, tls=tls)
    (tmp_path / "token").write_text(second)
    with pytest.raises(MetadataRefused, match="UNAUTHENTICATED"):
        fetch_map(service.endpoint, POOL, tls=tls)
    (tmp_path / "token").write_text(first + "\n")
    fetch_map(service.endpoint, POOL, tls=tls)


def test_node_by_token_gets_a_ticket_for_moves_only(service: Service, tmp_path: Path) -> None:
    token = make_token("default/test-node", expires_s=LATER)
    REVIEWER.trust(token, NODE.namespace, NODE.name)
    tls = proof(service, tmp_path, token)
    fetch_map(service.endpoint, POOL, tls=tls)
    fetch_ticket(service.endpoint, POOL, "", peer=True, tls=tls)
    with pytest.raises(MetadataRefused, match="no client"):
        fetch_ticket(service.endpoint, POOL, "", tls=tls)


@pytest.mark.parametrize(
    ("tenant", "words"), [("team-b", "its own tenant 'team-a' only"), ("team-a", "only follows")]
)
def test_caller_drops_its_own_tenant_only(
    service: Service, tmp_path: Path, tenant: str, words: str
) -> None:
    token = make_token("team-a/dropper", expires_s=LATER)
    REVIEWER.trust(token, "team-a", "dropper")
    with pytest.raises(MetadataRefused, match=words):
        drop_tenant(service.endpoint, POOL, tenant, tls=proof(service, tmp_path, token))


def test_health_is_asked_by_anyone(service: Service) -> None:
    with open_channel(service.endpoint, ClientTls(service.authority.pem)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=WAIT_S
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read the token"), ("", "holds no token"), ("two words", "holds no token"),
     ("x" * 20_000, "holds no token"), ("line\nline", "holds no token")],
    ids=["missing", "empty", "two words", "too long", "two lines"],
)  # fmt: skip
def test_unfit_token_file_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError, match=words):
        ClientTls(b"", token_file=tmp_path / "token").call_metadata()


# --- certificates ----------------------------------------------------------------------------

CERTIFICATES = {
    "a serviceaccount": ("spiffe://cluster.local/ns/team-b/sa/engine", "team-b"),
    "of another namespace": ("spiffe://other/ns/team-c/sa/engine", "team-c"),
    "the publisher": (admin_name(POOL), "default"),
    "no URI": ("engine.team-a.svc", None),
    "another form": ("spiffe://cluster.local/ns/team-b/engine", None),
    "a longer form": ("spiffe://cluster.local/ns/team-b/sa/engine/more", None),
    "another pool's node": (node_name("default/other"), None),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_callers_by_certificate(tmp_path: Path, case: str) -> None:
    name, tenant = CERTIFICATES[case]
    running = Service(tmp_path, CertificateCallers(POOL, TenantMap), asks=True)
    files = running.authority.files(tmp_path, "caller", name)
    tls = ClientTls(files.authority, files.certificate, files.key)
    try:
        if tenant is not None:
            assert fetch_ticket(running.endpoint, POOL, "", tls=tls).tenant == tenant
            return
        for rpc in RPCS.values():
            with pytest.raises(MetadataRefused, match="names nobody"):
                rpc(running.endpoint, tls)
    finally:
        running.stop()


@pytest.mark.parametrize("mode", [Mode.CERTIFICATE, Mode.SERVICE_ACCOUNT])
def test_proof_without_tls_is_refused_at_the_start(mode: Mode) -> None:
    with pytest.raises(ConfigError, match="--tls-cert"):
        AccessConfig(mode).check(has_tls=False)


STRANGERS = ("no TLS", "no certificate", "another authority", "expired", "expecting another host")


@pytest.mark.parametrize("case", STRANGERS)
def test_strangers_get_no_connection_for_any_call(tmp_path: Path, case: str) -> None:
    running = Service(tmp_path, CertificateCallers(POOL, TenantMap), asks=True)
    good = "spiffe://cluster.local/ns/team-b/sa/engine"
    signer = Authority() if case == "another authority" else running.authority
    pair = signer.issue(good, until=datetime(2021 if case == "expired" else 2100, 1, 1, tzinfo=UTC))
    certificate, key = tmp_path / "crt", tmp_path / "key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    tls: ClientTls | None = ClientTls(running.authority.pem, certificate, key)
    if case == "no TLS":
        tls = None
    elif case == "no certificate":
        tls = ClientTls(running.authority.pem)
    elif case == "expecting another host":
        tls = ClientTls(running.authority.pem, certificate, key, server_name="else.example")
    try:
        for rpc in RPCS.values():
            # The service is there: that it is not reached is the handshake's doing.
            with pytest.raises((RetryLater, PeerGone, MetadataRefused), match="UNAVAILABLE"):
                rpc(running.endpoint, tls)
        assert running.nothing_was_asked
    finally:
        running.stop()
