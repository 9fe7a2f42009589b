"""A pool, an API server in memory, and an operator that makes its certificates, for tests."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from memkv.metadata.kubernetes.api_server import APPLY
from memkv.testing.api_server import FakeApiServer
from memkv.testing.clock import ManualClock
from memkv.wire.signed import TicketKey, key_name
from memkv_operator.api.names import CONFIG_MAPS, SECRETS
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.identity.authority import (
    issue,
    make_authority,
)
from memkv_operator.identity.checks import faults_of_pair
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.secrets import content_of, leaf_of
from memkv_operator.kube.objects import Objects
from memkv_operator.render.connection import authority_in, connection
from memkv_operator.run.identities import Identities, PoolIdentity
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.issuer import Issuer

NAMESPACE = "inference"
Test = Callable[["World"], Awaitable[None]]


class World:
    """A pool, its API server, and an operator that looks at it."""

    def __init__(self) -> None:
        self.api = FakeApiServer()
        self.clock = ManualClock(wall_s=int(datetime.now(UTC).timestamp()))
        self.issuer = Issuer(self.api, NAMESPACE)
        self.ends: dict[str, float] = {}
        self.annotations: dict[str, str] = {}
        self.tls: dict[str, Any] = {"mode": "SelfSigned"}
        self.publishes = True
        """Whether the rest of the operator writes the ConfigMap of clients."""
        self.nodes: dict[str, tuple[TicketKey, ...]] = {}
        """What each node was told of keys of tickets."""
        self.silent: set[str] = set()
        """Nodes that cannot be told anything now, and that the map needs."""
        self.new_leader()

    def new_leader(self) -> None:
        """Another process leads from now on: it knows what is stored and nothing else."""
        self.identities = Identities(
            Objects(self.api), self.clock, show=lambda pool, ends: self._show(ends)
        )

    def _show(self, ends: Any) -> None:
        self.ends = dict(ends)

    def advance(self, seconds: float) -> None:
        self.clock.advance_ms(int(seconds * 1000))

    def use(self, mode: str) -> None:
        """Have the certificates made in another way."""
        more: dict[str, dict[str, Any]] = {
            "CertManager": {"issuerRef": {"name": "ca"}}, "Secret": {"secretName": "mine"},
        }  # fmt: skip
        self.tls = {"mode": mode, **more.get(mode, {})}

    @property
    def pool(self) -> Pool:
        meta: dict[str, Any] = {
            "name": "pool-a", "namespace": NAMESPACE, "uid": "u", "annotations": self.annotations,
        }  # fmt: skip
        return read_pool({"metadata": meta, "spec": {**SPEC, "metadata": {"tls": self.tls}}})

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.wall_s(), UTC)

    async def look(self) -> PoolIdentity:
        """As a reconcile: certificates first, and then what clients read."""
        identity = await self.identities.ensure(self.pool, self.said())
        for name in self.nodes.keys() - self.silent:
            self.nodes[name] = identity.view.ticket_keys
        if self.publishes:
            body = connection(self.pool, identity.view.authority)
            path = CONFIG_MAPS.path(NAMESPACE, "pool-a-connection")
            await self.api.request("PATCH", path, None, body, APPLY)
        self.check()
        return identity

    def said(self) -> dict[str, frozenset[str]]:
        """Return the ids of the keys that each node takes."""
        return {
            name: frozenset(key_name(key.key_id) for key in keys if key.not_after_s is None)
            for name, keys in self.nodes.items()
        }

    async def look_for(self, time: timedelta) -> PoolIdentity:
        """Look once a minute for some time."""
        for _ in range(int(time.total_seconds()) // 60):
            identity = await self.look()
            self.advance(60)
        return identity

    def secret(self, name: str) -> dict[str, bytes]:
        return content_of(self.api.objects[SECRETS.path(NAMESPACE, f"pool-a-{name}")])

    @property
    def bundle(self) -> bytes:
        return self.secret("node-identity")["ca.crt"]

    def check(self) -> None:
        """Everyone's certificate is believed by everyone, clients included."""
        texts = [self.secret(n)["ca.crt"] for n in ("node-identity", "metadata-identity")]
        found = self.api.objects.get(CONFIG_MAPS.path(NAMESPACE, "pool-a-connection"))
        texts += [authority_in(found).encode()] if found is not None else []
        for role in (Role.NODE, Role.METADATA):
            path = SECRETS.path(NAMESPACE, f"pool-a-{role.value}-identity")
            pair = leaf_of(self.api.objects[path])
            assert pair is not None
            for text in texts:
                assert faults_of_pair(pair, text, [], self.now, role.value) == []

    async def put_secret(self, content: dict[str, bytes]) -> None:
        data = {name: base64.b64encode(value).decode() for name, value in content.items()}
        body: dict[str, Any] = {"metadata": {"name": "mine"}, "data": data}
        path = SECRETS.path(NAMESPACE, "mine")
        await self.api.request("PATCH", path, None, body, APPLY)

    def own_content(self, signer: Any = None) -> dict[str, bytes]:
        """Return a whole Secret as a person makes it."""
        signer = signer or make_authority("company", self.now)
        names = [name for role in Role for name in names_of(role, self.pool)]
        pair = issue(signer, names, self.now)
        return {"ca.crt": signer.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}


def run(test: Test) -> None:
    """Run a test in an event loop, in a world of its own."""

    async def main() -> None:
        await test(World())

    asyncio.run(main())
