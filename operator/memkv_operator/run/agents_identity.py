"""The Secret by which agents and the operator know each other.

It is in the operator's own namespace and holds the authority with its key, which only the operator
reads, and what agents' pods mount: ca.crt, tls.crt and tls.key. Nobody can list or guess his way to
a drive without a certificate of this authority.
"""

import base64
from datetime import UTC, datetime

from memkv.clock import Clock
from memkv.errors import RetryLater
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest
from memkv_operator.api.names import (
    AGENTS_IDENTITY,
    COMPONENT_AGENT,
    FIELD_MANAGER,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_PART_OF,
    SECRETS,
)
from memkv_operator.identity.authority import Pair, is_fit, issue, make_authority
from memkv_operator.identity.secrets import AUTHORITY_KEY, CA, CERTIFICATE, KEY, content_of
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls

LOOK_S = 300.0  # Secrets are not watched


class AgentsIdentity:
    """Keeps that Secret, and the operator's own certificate, which is in no Secret."""

    def __init__(self, objects: Objects, namespace: str, clock: Clock) -> None:
        self._objects = objects
        self._namespace = namespace
        self._clock = clock
        self._known: tuple[int, AdminTls] | None = None

    async def ensure(self) -> AdminTls:
        """Make or renew what is missing or old; return how agents are reached. ConfigError when
        the Secret is damaged or forbidden; RetryLater."""
        now_ns = self._clock.monotonic_ns()
        if self._known is not None and now_ns - self._known[0] < LOOK_S * 1e9:
            return self._known[1]
        found = await self._objects.get(SECRETS, self._namespace, AGENTS_IDENTITY)
        content = content_of(found) if found is not None else {}
        authority = _pair(content, CA, AUTHORITY_KEY)
        if authority is None:
            authority = make_authority("MemKV agents", self._now())
        agents = _pair(content, CERTIFICATE, KEY)
        if agents is None or not is_fit(agents, authority, [AGENT_NAME], self._now()):
            agents = issue(authority, [AGENT_NAME], self._now())
            await self._store(found, authority, agents)
        tls = self._own_certificate(authority)
        self._known = now_ns, tls
        return tls

    async def _store(self, found: JsonObject | None, authority: Pair, agents: Pair) -> None:
        manifest = self._manifest(authority, agents)
        if found is not None:
            await self._objects.apply(SECRETS, self._namespace, AGENTS_IDENTITY, manifest)
            return
        try:
            await self._objects.create(SECRETS, self._namespace, manifest)
        except Conflict as error:
            raise RetryLater("another operator made the agents' identity first") from error

    def _own_certificate(self, authority: Pair) -> AdminTls:
        if self._known is not None:
            known = self._known[1]
            pair = Pair(known.certificate, known.key)
            if known.authority == authority.certificate and is_fit(
                pair, authority, [AGENT_OPERATOR_NAME], self._now()
            ):
                return known
        pair = issue(authority, [AGENT_OPERATOR_NAME], self._now())
        return AdminTls(authority.certificate, pair.certificate, pair.key, AGENT_NAME)

    def _manifest(self, authority: Pair, agents: Pair) -> Manifest:
        content = {
            CA: authority.certificate,
            AUTHORITY_KEY: authority.key,
            CERTIFICATE: agents.certificate,
            KEY: agents.key,
        }
        return {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": {
                "name": AGENTS_IDENTITY,
                "namespace": self._namespace,
                "labels": {
                    LABEL_NAME: "memkv",
                    LABEL_COMPONENT: COMPONENT_AGENT,
                    LABEL_MANAGED_BY: FIELD_MANAGER,
                    LABEL_PART_OF: "memkv",
                },
            },
            "type": "Opaque",
            "data": {
                key: base64.b64encode(value).decode("ascii")
                for key, value in sorted(content.items())
            },
        }

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC)


def _pair(content: dict[str, bytes], certificate: str, key: str) -> Pair | None:
    """Return a pair, None where there is none at all: half a pair is damage that `issue` names."""
    if certificate not in content and key not in content:
        return None
    return Pair(content.get(certificate, b""), content.get(key, b""))
