"""The Secrets by which agents and the operator know each other, in the operator's own namespace.

memkv-agents-authority holds the authority with its key, which only the operator reads.
memkv-agents-identity is what agents' pods mount: ca.crt, tls.crt and tls.key. Nobody can list or
guess his way to a drive without a certificate of this authority. It is replaced in the phases of
`identity.trust`, by its age or when somebody annotates memkv-agents-identity with
memkv.io/rotate-ca. Earlier operators kept everything in memkv-agents-identity: an authority that is
found there moves out.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding

from memkv.clock import Clock
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import (
    AGENTS_AUTHORITY,
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
        found = await self._get(AGENTS_IDENTITY)
        rooted = await self._get(AGENTS_AUTHORITY)
        content = content_of(found) if found is not None else {}
        if rooted is None and content and CA_KEY not in content:
            raise ConfigError(
                f"Secret {AGENTS_AUTHORITY} is gone, and with it the key that signs agents' "
                f"certificates: kubectl delete secret -n {self._namespace} {AGENTS_IDENTITY}, and "
                "both are made anew"
            )
        now = utc(self._clock.wall_s())
        before = _trust(content_of(rooted) if rooted is not None else content)
        trust = Trust(make_authority("MemKV agents", now)) if before is None else before
        # What is stored is what pods mount, so whoever reads it there was given it.
        given = before is not None and content.get(CA) == before.bundle
        trust = step(trust, now, _wanted(trust, found, now), given)
        if trust.phase is Phase.ANNOUNCED and before is not None and before.upcoming is None:
            trust = replace(trust, served=_request(found))
        agents = _pair(content, CERTIFICATE, KEY)
        is_new = agents is None or not is_fit(agents, trust.current, [AGENT_NAME], now)
        if agents is None or is_new:
            agents = issue(trust.current, [AGENT_NAME], now)
        # The authority first: what signs certificates must never be lost.
        if rooted is None or trust != before:
            await self._store(AGENTS_AUTHORITY, rooted, _stored(trust))
        mounted = {CA: trust.bundle, CERTIFICATE: agents.certificate, KEY: agents.key}
        if content != mounted:
            await self._store(AGENTS_IDENTITY, found, mounted)
        tls = self._own_certificate(trust, now)
        self._known = now_ns, tls
        return tls

    async def _get(self, name: str) -> JsonObject | None:
        return await self._objects.get(SECRETS, self._namespace, name)

    async def _store(
        self, name: str, found: JsonObject | None, content: Mapping[str, bytes]
    ) -> None:
        """Have a Secret hold this and nothing else."""
        data: dict[str, JsonValue] = {
            key: base64.b64encode(value).decode("ascii") for key, value in sorted(content.items())
        }
        if found is not None:
            # A patch names what is to go: it may have been written in another way than by apply.
            gone = Reader(found).object("data").value.keys() - content.keys()
            patch: Manifest = {
                "metadata": {"resourceVersion": read_meta(Reader(found)).resource_version},
                "data": {**data, **dict.fromkeys(sorted(gone))},
            }
            await self._objects.merge(SECRETS, self._namespace, name, patch)
            return
        try:
            manifest = self._manifest(name, data)
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

    def _manifest(self, name: str, data: Mapping[str, JsonValue]) -> Manifest:
        return {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {
                    LABEL_NAME: "memkv",
                    LABEL_COMPONENT: COMPONENT_AGENT,
                    LABEL_MANAGED_BY: FIELD_MANAGER,
                    LABEL_PART_OF: "memkv",
                },
            },
            "type": "Opaque",
            "data": data,
        }


def _stored(trust: Trust) -> dict[str, bytes]:
    """Return what is stored of the authorities: all that are believed, of whom the first signs."""
    return {**content_of_trust(trust), CA: trust.bundle}


def _trust(content: Mapping[str, bytes]) -> Trust | None:
    """Return the stored authorities, None where there are none."""
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


def _pair(content: dict[str, bytes], certificate: str, key: str) -> Pair | None:
    """Return a pair, None where there is none at all: half a pair is damage that `issue` names."""
    if certificate not in content and key not in content:
        return None
    return Pair(content.get(certificate, b""), content.get(key, b""))
