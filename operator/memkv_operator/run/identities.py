"""Keeps the Secrets of pools with an authority of their own, and what the operator shows nodes."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from memkv.clock import Clock
from memkv.errors import RetryLater
from memkv.metadata.certificates import admin_name, node_name
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import (
    SECRETS,
    identity_name,
    metadata_secret_name,
    node_secret_name,
)
from memkv_operator.api.pool import Pool
from memkv_operator.identity.authority import (
    Pair,
    is_fit,
    issue,
    make_authority,
    make_ticket_key,
)
from memkv_operator.identity.secrets import (
    CERTIFICATE,
    KEY,
    SALT_BYTES,
    Root,
    content_of,
    metadata_dns_names,
    metadata_manifest,
    node_dns_names,
    node_manifest,
    read_root,
    root_manifest,
)
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls

LOOK_S = 300.0  # Secrets are not watched: that would need the right to list all of them


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What is needed of a pool's identity beside its Secrets."""

    authority: str
    """Its CA, in PEM."""
    admin: AdminTls
    looked_ns: int


class Identities:
    """Of all pools of a leading operator."""

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._known: dict[str, PoolIdentity] = {}

    async def ensure(self, pool: Pool) -> PoolIdentity:
        """Make or renew what is missing or old. ConfigError when the root is damaged or Secrets
        are forbidden; RetryLater."""
        known = self._known.get(pool.meta.uid)
        now_ns = self._clock.monotonic_ns()
        if known is not None and now_ns - known.looked_ns < LOOK_S * 1e9:
            return known
        root = await self._root(pool)
        await self._ensure_leaves(pool, root)
        admin = self._admin_of(pool, root, known)
        identity = PoolIdentity(root.authority.certificate.decode("ascii"), admin, now_ns)
        self._known[pool.meta.uid] = identity
        return identity

    def known(self, pool: Pool) -> PoolIdentity | None:
        """Return what was found last, None where nothing was."""
        return self._known.get(pool.meta.uid)

    async def _root(self, pool: Pool) -> Root:
        found = await self._get(pool, identity_name(pool.meta.name))
        if found is None:
            authority = make_authority(f"MemKV pool {pool.key}", self._now())
            root = Root(authority, make_ticket_key(), secrets.token_bytes(SALT_BYTES))
            try:
                await self._objects.create(SECRETS, pool.meta.namespace, root_manifest(pool, root))
            except Conflict as error:
                raise RetryLater("another operator made the pool's identity first") from error
            return root
        if pool.meta.uid not in read_meta(Reader(found)).owners:
            raise RetryLater(f"the identity of an earlier pool {pool.key} is still there")
        return read_root(found)

    async def _ensure_leaves(self, pool: Pool, root: Root) -> None:
        for name, names, make in (
            (node_secret_name(pool.meta.name), node_dns_names(pool), node_manifest),
            (metadata_secret_name(pool.meta.name), metadata_dns_names(pool), metadata_manifest),
        ):
            found = await self._get(pool, name)
            leaf = _leaf_of(found)
            if leaf is None or not is_fit(leaf, root.authority, names, self._now()):
                leaf = issue(root.authority, names, self._now())
            manifest = make(pool, root, leaf)
            if not _holds(found, manifest):
                await self._objects.apply(SECRETS, pool.meta.namespace, name, manifest)

    def _admin_of(self, pool: Pool, root: Root, known: PoolIdentity | None) -> AdminTls:
        names = [admin_name(pool.key)]
        if known is not None:
            pair = Pair(known.admin.certificate, known.admin.key)
            if is_fit(pair, root.authority, names, self._now()):
                return known.admin
        pair = issue(root.authority, names, self._now())
        authority = root.authority.certificate
        return AdminTls(authority, pair.certificate, pair.key, node_name(pool.key))

    async def _get(self, pool: Pool, name: str) -> JsonObject | None:
        return await self._objects.get(SECRETS, pool.meta.namespace, name)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC)


def _leaf_of(secret: JsonObject | None) -> Pair | None:
    if secret is None:
        return None
    content = content_of(secret)
    return Pair(content.get(CERTIFICATE, b""), content.get(KEY, b""))


def _holds(secret: JsonObject | None, manifest: Manifest) -> bool:
    return secret is not None and secret.get("data") == manifest["data"]
