"""The Secret by which agents and the operator know each other.

It is in the operator's own namespace and holds the authority with its key, which only the operator
reads, and what agents' pods mount: ca.crt, tls.crt and tls.key. Nobody can list or guess his way to
a drive without a certificate of this authority. It is replaced in the phases of `identity.trust`,
by its age or when somebody annotates the Secret with memkv.io/rotate-ca.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding

from memkv.clock import Clock
from memkv.errors import RetryLater
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import (
    AGENTS_IDENTITY,
    COMPONENT_AGENT,
    FIELD_MANAGER,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_PART_OF,
    ROTATE_CA,
    SECRETS,
)
from memkv_operator.api.times import utc
from memkv_operator.identity.authority import Pair, is_fit, issue, make_authority
from memkv_operator.identity.secrets import CERTIFICATE, KEY, content_of
from memkv_operator.identity.trust import (
    CA,
    CA_KEY,
    Phase,
    Trust,
    certificates_of,
    content_of_trust,
    is_due,
    read_trust,
    step,
)
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
        now = utc(self._clock.wall_s())
        before = _trust(content)
        trust = Trust(make_authority("MemKV agents", now)) if before is None else before
        # What is stored is what pods mount, so whoever reads it there was given it.
        trust = step(trust, now, _wanted(trust, found, now), before is not None)
        if trust.phase is Phase.ANNOUNCED and before is not None and before.upcoming is None:
            trust = replace(trust, served=_request(found))
        agents = _pair(content, CERTIFICATE, KEY)
        is_new = agents is None or not is_fit(agents, trust.current, [AGENT_NAME], now)
        if agents is None or is_new:
            agents = issue(trust.current, [AGENT_NAME], now)
        if is_new or trust != before:
            await self._store(found, trust, agents)
        tls = self._own_certificate(trust, now)
        self._known = now_ns, tls
        return tls

    async def _store(self, found: JsonObject | None, trust: Trust, agents: Pair) -> None:
        manifest = self._manifest(trust, agents)
        if found is not None:
            version = read_meta(Reader(found)).resource_version
            meta = {**_object(manifest["metadata"]), "resourceVersion": version}
            await self._objects.apply(
                SECRETS, self._namespace, AGENTS_IDENTITY, {**manifest, "metadata": meta}
            )
            return
        try:
            await self._objects.create(SECRETS, self._namespace, manifest)
        except Conflict as error:
            raise RetryLater("another operator made the agents' identity first") from error

    def _own_certificate(self, trust: Trust, now: datetime) -> AdminTls:
        if self._known is not None:
            known = self._known[1]
            pair = Pair(known.certificate, known.key)
            if known.authority == trust.bundle and is_fit(
                pair, trust.current, [AGENT_OPERATOR_NAME], now
            ):
                return known
        pair = issue(trust.current, [AGENT_OPERATOR_NAME], now)
        return AdminTls(trust.bundle, pair.certificate, pair.key, AGENT_NAME)

    def _manifest(self, trust: Trust, agents: Pair) -> Manifest:
        content = {
            **content_of_trust(trust),
            CA: trust.bundle,
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


def _trust(content: Mapping[str, bytes]) -> Trust | None:
    """Return the stored authorities, None where there are none. Agents mount ca.crt, so it holds
    everyone who is believed; the first of them signs."""
    if CA not in content and CA_KEY not in content:
        return None
    first = certificates_of(content.get(CA, b""))[0].public_bytes(Encoding.PEM)
    return read_trust({**content, CA: first})


def _wanted(trust: Trust, found: JsonObject | None, now: datetime) -> Pair | None:
    """Return a new authority when it is time for one, or somebody asks by an annotation."""
    is_asked = _request(found) not in ("", trust.served)
    if trust.phase is Phase.STEADY and (is_asked or is_due(trust.current, now)):
        return make_authority("MemKV agents", now)
    return None


def _request(found: JsonObject | None) -> str:
    return read_meta(Reader(found)).annotations.get(ROTATE_CA, "") if found is not None else ""


def _object(value: JsonValue) -> JsonObject:
    assert isinstance(value, Mapping)
    return value


def _pair(content: dict[str, bytes], certificate: str, key: str) -> Pair | None:
    """Return a pair, None where there is none at all: half a pair is damage that `issue` names."""
    if certificate not in content and key not in content:
        return None
    return Pair(content.get(certificate, b""), content.get(key, b""))
