"""The operator replaces an authority, or the key of tickets, while real processes work: no request
fails.

A metadata service, two nodes and clients on this machine; Secrets of an API server in memory come
to their folders as kubelet brings them: late, each at another time, all files of one at once.
"""

import asyncio
import base64
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from memkv.client.credentials import Credentials
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.errors import MemKVError
from memkv.localpool.ports import free_ports
from memkv.metadata.certificates import admin_name
from memkv.metadata.kubernetes.api_server import APPLY
from memkv.status import Status
from memkv.testing.api_server import FakeApiServer
from memkv.testing.secure_pool import serves
from memkv.wire.signed import TicketKey, public_keys_from_pem
from memkv_operator.api.names import (
    CONFIG_MAPS,
    REVOKE_TICKET_KEY,
    ROTATE_CA,
    ROTATE_TICKET_KEY,
    SECRETS,
)
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.identity import certificates, leaves
from memkv_operator.identity.authority import make_authority, public_ticket_key
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.ticket_keys import id_of
from memkv_operator.identity.trust import certificates_of
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import GrpcNodeAdmin
from memkv_operator.nodes.facts import facts_of
from memkv_operator.nodes.orders import spec_of
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.orders import Order
from memkv_operator.plan.ticket_keys import KeyPhase, keys_said
from memkv_operator.render.connection import authority_in, connection
from memkv_operator.run.identities import Identities, PoolIdentity, Said, Unavailable
from memkv_operator.testing.cluster import SPEC, pause
from memkv_operator.testing.issuer import Issuer

NAMESPACE, POOL = "inference", "pool-a"
KEY = f"{NAMESPACE}/{POOL}"
IN_TIME_S = 240
LAG_S = 2.0  # kubelet's, at most
GRACE = timedelta(seconds=10)
OVERLAP = timedelta(seconds=10)  # tickets of a test are not shown later than that
FILES_LATE_S = 6.0  # with kubelet's lag less than the grace
DEADLINE_MS = 20_000
SIZE = 200_000


def local_names(role: Role, pool: Pool) -> tuple[str, ...]:
    """Return the names of a certificate on a machine without the cluster's DNS. The metadata
    process publishes here, so it is the admin, too."""
    more = ("localhost", admin_name(pool.key)) if role is Role.METADATA else ()
    return (*names_of(role, pool), *more)


@dataclass
class Kubelet:
    """Brings one Secret, or what clients read, to one folder, some time after it changed."""

    folder: Path
    content: Callable[[], dict[str, bytes]]
    late_s: float = 0
    """More than the others."""
    _due: tuple[float, dict[str, bytes]] | None = None
    _there: dict[str, bytes] = field(default_factory=dict)
    _number: Iterator[int] = field(default_factory=itertools.count)

    def tick(self, now_s: float, lag_s: float) -> None:
        wanted = self.content()
        if wanted == self._there:
            return
        if not self._there or (self._due is not None and now_s >= self._due[0]):
            self._bring(wanted)
        elif self._due is None:
            self._due = now_s + self.late_s + lag_s, wanted

    def _bring(self, content: dict[str, bytes]) -> None:
        """All files change as one: `now` is a link, as kubelet's ..data."""
        version = self.folder / f"v{next(self._number)}"
        version.mkdir(parents=True)
        for name, data in content.items():
            (version / name).write_bytes(data)
        fresh = self.folder / "fresh"
        fresh.symlink_to(version)
        fresh.replace(self.folder / "now")
        self._there, self._due = content, None


class World:
    """The operator's part, kubelets, and processes."""

    def __init__(
        self, folder: Path, mode: str, grace: timedelta, *, waits_for_nodes: bool = True
    ) -> None:
        self.folder = folder
        self.waits_for_nodes = waits_for_nodes
        self.seen: dict[str, NodeSeen] = {}
        self.mode = mode
        self.annotations: dict[str, str] = {}
        self.api = FakeApiServer()
        self.issuer = Issuer(self.api, NAMESPACE)
        self.identities = Identities(Objects(self.api), SystemClock(), grace, overlap=OVERLAP)
        self.identity: PoolIdentity | None = None
        self.failures: list[str] = []
        self.done = {"asked": 0, "long": 0, "fresh": 0}
        self.phases: list[str] = []
        self.stopping = threading.Event()
        meta, self.metrics_port, *self.admin_ports = free_ports(4)
        self.endpoint = f"localhost:{meta}"
        self.kubelets = [
            Kubelet(folder / name, partial(self.secret, secret))
            for name, secret in (
                ("n0", "node-identity"), ("n1", "node-identity"),
                ("metadata", "metadata-identity"), ("proof", "node-identity"),
            )
        ]  # fmt: skip
        self.kubelets.append(Kubelet(folder / "client", self.connection_file))

    @property
    def pool(self) -> Pool:
        meta: dict[str, Any] = {
            "name": POOL, "namespace": NAMESPACE, "uid": "u", "annotations": self.annotations,
        }  # fmt: skip
        tls = {"mode": self.mode, "issuerRef": {"name": "ca"}}
        spec = {**SPEC, "metadata": {"tls": tls, "auth": {"mode": "None"}}}
        return read_pool({"metadata": meta, "spec": spec})

    def secret(self, name: str) -> dict[str, bytes]:
        found = self.api.objects[SECRETS.path(NAMESPACE, f"{POOL}-{name}")]["data"]
        return {key: base64.b64decode(value) for key, value in found.items()}

    def connection_file(self) -> dict[str, bytes]:
        found = self.api.objects[CONFIG_MAPS.path(NAMESPACE, f"{POOL}-connection")]
        return {"connection.json": json.dumps({"ca": authority_in(found)}).encode()}

    # --- the operator ------------------------------------------------------------------------

    def operate(self) -> None:
        asyncio.run(self._operate())

    async def _operate(self) -> None:
        asking = asyncio.create_task(self._ask_nodes())
        while not self.stopping.is_set():
            if self.mode == "CertManager" and self.identity is not None:
                await self.issuer.tick()
            try:
                self.identity = await self.identities.ensure(self.pool, self.said())
            except Unavailable:
                await self.issuer.tick()
                continue
            body = connection(self.pool, self.identity.view.authority)
            path = CONFIG_MAPS.path(NAMESPACE, f"{POOL}-connection")
            await self.api.request("PATCH", path, None, body, APPLY)
            view = self.identity.view
            phase = view.phase or view.tickets.phase.value.removeprefix(KeyPhase.STEADY.value)
            if self.phases[-1:] != [phase]:
                self.phases.append(phase)
            await pause(0.1)
        await asking

    def said(self) -> Said:
        """Return which keys of tickets both nodes take."""
        nodes = {f"n{n}": frozenset[str]() for n in range(2)} if self.waits_for_nodes else {}
        return {**nodes, **(keys_said(self.seen, None) if nodes else {})}

    async def _ask_nodes(self) -> None:
        """As the operator polls and tells, each time by a new connection."""
        while not self.stopping.is_set():
            await pause(0.3)
            for n, port in enumerate(self.admin_ports if self.done["long"] else ()):
                assert self.identity is not None
                admin = GrpcNodeAdmin(f"127.0.0.1:{port}", self.identity.admin)
                try:
                    await self._tell(f"n{n}", admin, self.identity.view.ticket_keys)
                    self.done["asked"] += 1
                except MemKVError as error:
                    if "DEADLINE_EXCEEDED" not in str(error):  # a busy machine; asked again
                        self.failures.append(f"operator: {error}")
                finally:
                    await admin.close()

    async def _tell(self, name: str, admin: GrpcNodeAdmin, keys: tuple[TicketKey, ...]) -> None:
        facts = facts_of(await admin.facts(), KEY, name)
        self.seen[name] = NodeSeen("uid", facts)
        spec = spec_of(Order(False, (), keys))
        if self.waits_for_nodes and spec.revision != facts.spec_revision:
            spec.generation = facts.spec_generation + 1
            await admin.apply(spec)

    def bring_files(self) -> None:
        chance = random.Random(1)
        while not self.stopping.is_set():
            if self.phases:
                now_s = time.monotonic()
                for kubelet in self.kubelets:
                    kubelet.tick(now_s, chance.uniform(0, LAG_S))
            self.stopping.wait(0.05)

    # --- processes and clients ---------------------------------------------------------------

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "memkv.cli.main", *words]
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def tls_flags(self, name: str) -> tuple[str, ...]:
        files = self.folder / name / "now"
        return tuple(
            f"--tls-{what}={files}/{file}"
            for what, file in (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"))
        )

    def start_all(self) -> Iterator["subprocess.Popen[bytes]"]:
        for n, port in enumerate(self.admin_ports):
            yield self.start(
                "node", f"--pool={KEY}", f"--name=n{n}", f"--dir={self.folder}/data{n}",
                "--capacity=64MiB", "--memory=32MiB", "--slots=64", "--data-port=0",
                f"--admin-port={port}", "--http-port=0", f"--metadata={self.endpoint}",
                f"--ticket-keys={self.folder}/n{n}/now/tickets.pub", *self.tls_flags(f"n{n}"),
            )  # fmt: skip
        nodes = ",".join(f"127.0.0.1:{port}" for port in self.admin_ports)
        secrets = self.folder / "metadata/now"
        listen = self.endpoint.replace("localhost", "127.0.0.1")
        yield self.start(
            "metadata", f"--pool={KEY}", f"--listen={listen}", "--publish",
            f"--nodes={nodes}", f"--state={self.folder}/state", "--slots=64",
            f"--http-port={self.metrics_port}", "--auth=none",
            f"--ticket-key={secrets}/tickets.key", f"--salt-secret={secrets}/salt",
            *self.tls_flags("metadata"),
        )  # fmt: skip

    def client(self) -> Client:
        proof = self.folder / "proof/now"
        credentials = Credentials(
            str(self.folder / "client/now/connection.json"),
            certificate=proof / "tls.crt", key=proof / "tls.key",
        )  # fmt: skip
        options = ConnectOptions(
            self.endpoint, pool=KEY, deadline_ms=DEADLINE_MS, credentials=credentials,
            local_dir="off", bootstrap_timeout_ms=DEADLINE_MS,
        )  # fmt: skip
        return Client(options)

    def work(self, client: Client, who: str) -> None:
        number = self.done[who]
        key, data = f"{who} {number % 8}", bytes([number % 8]) * SIZE
        put = client.put(key, data)
        got = client.get(key) if put == Status.OK else None
        if got != data:
            problems = "; ".join(client.attachment.problems())
            self.failures.append(f"{who} {number}: put {put}, a miss: {problems}")
        self.done[who] += 1

    def work_long(self, client: Client) -> None:
        while not self.stopping.is_set():
            self.work(client, "long")

    def work_fresh(self) -> None:
        """New channels and new lanes each time."""
        while not self.stopping.is_set():
            with self.client() as fresh:
                if not fresh.wait_ready(DEADLINE_MS):
                    self.failures.append(f"fresh: {fresh.attachment.problems()}")
                if any(one.refused_ticket for one in fresh.attachment.core.sessions()):
                    self.failures.append("fresh: a node refused a ticket")
                self.work(fresh, "fresh")


@contextmanager
def running(*loops: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=loop) for loop in loops]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    event = threading.Event()
    for _ in range(IN_TIME_S * 10):
        if holds():
            return
        event.wait(0.1)
    raise AssertionError(f"in vain: {what}")


def shown_end(port: int, certificate: str) -> float:
    """Return when a process says that its certificate ends."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=IN_TIME_S) as answer:
        page = answer.read().decode()
    name = f'memkv_tls_cert_expiry_timestamp_seconds{{certificate="{certificate}"}} '
    return float(page.partition(name)[2].partition("\n")[0])


def is_settled(client: Client) -> bool:
    found = client.attachment.shard_map
    return found is not None and len(found.workers) == 2 and not found.moving


def rotate_ticket_key(world: World, annotation: str) -> None:
    """As `rotate`; the files of nodes are later than those of metadata pods."""
    for kubelet in world.kubelets[:2]:
        kubelet.late_s = FILES_LATE_S
    with ExitStack() as stack:
        rotate(world, stack, annotation)


def rotate(world: World, stack: ExitStack, what: str = ROTATE_CA) -> None:
    """Run everything, replace the authority or what else the annotation says, and go on until
    nobody believes the old one."""
    stack.enter_context(running(world.operate, world.bring_files))
    stack.callback(world.stopping.set)
    wait_until(lambda: (world.folder / "client/now").exists(), "files")
    for process in world.start_all():
        stack.callback(process.wait)
        stack.callback(process.terminate)
    client = stack.enter_context(world.client())
    # A slot that moves, as one does when a node was late for the first map, refuses some puts.
    wait_until(lambda: is_settled(client), "a map of both nodes")
    assert client.wait_ready(IN_TIME_S * 1000), client.attachment.problems()
    wait_until(lambda: serves(client), "both nodes open their slots")
    old = world.secret("node-identity")
    with running(lambda: world.work_long(client), world.work_fresh):
        try:
            wait_until(lambda: world.done["fresh"] > 2, "a first round")
            before = len(world.failures)
            assert before == 0, world.failures
            if world.mode == "SelfSigned":
                world.annotations[what] = "now"
            else:
                world.issuer.authority = make_authority("test issuer", datetime.now(UTC))
                world.annotations[ROTATE_CA] = "look now"
            wait_until(lambda: len(world.phases) > 1 and not world.phases[-1], f"{world.phases}")
            # Files come last to whoever is the last to believe; then everything once more.
            begun = dict(world.done)
            files = [kubelet.folder / "now" for kubelet in world.kubelets[:4]]
            name = "ca.crt" if what == ROTATE_CA else "tickets.pub"
            files = files if what == ROTATE_CA else files[:2]  # the nodes'
            new = world.secret("node-identity")[name]
            wait_until(lambda: all((f / name).read_bytes() == new for f in files), "kubelets")
            wait_until(lambda: all(len(ids) == 1 for ids in world.said().values()), "one key")
            wait_until(lambda: all(world.done[k] > begun[k] + 2 for k in begun), "a last round")
            for role, port in (
                ("node", json.loads((world.folder / "data0/node.json").read_text())["http_port"]),
                ("metadata", world.metrics_port),
            ):
                leaf = certificates_of(world.secret(f"{role}-identity")["tls.crt"])[0]
                assert shown_end(port, role) == leaf.not_valid_after_utc.timestamp()
        finally:
            world.stopping.set()
    if what == ROTATE_CA:
        check_authority(world, old)
    else:
        check_ticket_key(world, old)


def check_authority(world: World, old: dict[str, bytes]) -> None:
    assert world.phases == ["", "AuthorityAnnounced", "AuthorityRetiring", ""]
    now = world.secret("node-identity")
    assert len(certificates_of(now["ca.crt"])) == 1
    assert now["ca.crt"] not in old["ca.crt"]
    assert now["tls.crt"] != old["tls.crt"]


def check_ticket_key(world: World, old: dict[str, bytes]) -> None:
    """Nodes take one key, another than before, and metadata pods sign with it."""
    now = world.secret("node-identity")
    assert now["tickets.pub"] != old["tickets.pub"]
    assert public_ticket_key(world.secret("metadata-identity")["tickets.key"]) == now["tickets.pub"]
    assert now["ca.crt"] == old["ca.crt"]
    if world.waits_for_nodes:
        assert world.said() == {f"n{n}": {key_id(now["tickets.pub"])} for n in range(2)}


def key_id(pem: bytes) -> str:
    return id_of(public_keys_from_pem(pem.decode())[0].public_key)


@pytest.fixture(autouse=True)
def names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "names_of", local_names)
    monkeypatch.setattr(certificates, "names_of", local_names)


@pytest.mark.parametrize("mode", ["SelfSigned", "CertManager"])
def test_no_request_fails_while_an_authority_is_replaced(tmp_path: Path, mode: str) -> None:
    world = World(tmp_path, mode, GRACE)
    with ExitStack() as stack:
        rotate(world, stack)
    assert world.failures == []
    assert all(count > 2 for count in world.done.values()), world.done


def test_without_the_grace_requests_fail(tmp_path: Path) -> None:
    """So the other test would see it."""
    world = World(tmp_path, "SelfSigned", timedelta(0))
    world.kubelets[0].late_s = FILES_LATE_S  # so that some connection meets files that differ
    with ExitStack() as stack:
        rotate(world, stack)
    assert any("CERTIFICATE" in one.upper() for one in world.failures), world.failures


def test_no_request_fails_while_the_key_of_tickets_is_replaced(tmp_path: Path) -> None:
    """Nodes are told by their specs, files come late; metadata processes sign with the new key
    without a restart, and nobody is refused a ticket."""
    world = World(tmp_path, "SelfSigned", GRACE)
    rotate_ticket_key(world, ROTATE_TICKET_KEY)
    assert world.failures == []
    assert world.phases == ["", "TicketKeyAnnounced", "TicketKeyRetiring", ""]
    assert all(count > 2 for count in world.done.values()), world.done


def test_without_waiting_for_nodes_tickets_are_refused(tmp_path: Path) -> None:
    """So the test before this one would see it."""
    world = World(tmp_path, "SelfSigned", timedelta(0), waits_for_nodes=False)
    rotate_ticket_key(world, ROTATE_TICKET_KEY)
    assert "fresh: a node refused a ticket" in world.failures, world.failures


def test_a_revoked_key_is_refused_and_standing_sessions_go_on(tmp_path: Path) -> None:
    """What it costs: clients that connect are refused until metadata pods have the new key."""
    world = World(tmp_path, "SelfSigned", GRACE)
    rotate_ticket_key(world, REVOKE_TICKET_KEY)
    assert world.phases == ["", "TicketKeyRevoked", ""]
    assert [one for one in world.failures if one.startswith("long")] == []
    assert set(world.failures) <= {"fresh: a node refused a ticket"}
