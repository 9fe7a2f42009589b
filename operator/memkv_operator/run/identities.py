"""Keeps the Secrets of pools with TLS, and what the operator shows nodes.

Whoever makes the certificates, the operator hands them to pods in Secrets of its own: so it decides
when everyone believes a new authority, and only then has its certificates used.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from memkv.clock import Clock
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.certificates import node_name
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import (
    CONFIG_MAPS,
    REVOKE_TICKET_KEY,
    ROTATE_CA,
    ROTATE_TICKET_KEY,
    SECRETS,
    connection_name,
    identity_name,
    metadata_secret_name,
    node_secret_name,
)
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import rfc3339, utc
from memkv_operator.identity.authority import Pair, issue, make_authority, make_ticket_key
from memkv_operator.identity.leaves import Held, is_given_to_pods, leaves_of, next_trust
from memkv_operator.identity.offers import Offer
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.secrets import (
    SALT_BYTES,
    SELF_SIGNED,
    Root,
    has_ticket_keys,
    leaf_of,
    metadata_manifest,
    node_manifest,
    read_root,
    root_manifest,
    root_patch,
)
from memkv_operator.identity.ticket_keys import (
    OVERLAP,
    Asked,
    TicketKeys,
    ends_at,
    step,
    waiting_for,
)
from memkv_operator.identity.trust import GRACE, Phase, Trust, certificates_of
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls
from memkv_operator.plan.identity import Fault, IdentityView
from memkv_operator.plan.ticket_keys import KeyPhase, TicketsView
from memkv_operator.render.connection import authority_in
from memkv_operator.run.offers import CERT_MANAGER, Offers

LOOK_S = 300.0  # Secrets are not watched: that would need the right to list all of them
LOOK_AGAIN_S = 5.0  # while something is missing
PARTS_OF_GRACE = 8  # so often everyone's files are looked at while an authority is replaced

Show = Callable[[str, Mapping[str, float]], None]
"""Given a pool's key, and when each of its certificates ends, in seconds since 1970."""
Said = Mapping[str, frozenset[str]]
"""Ids of the keys of tickets that each node in service takes, by name of the node."""


class Unavailable(ConfigError):
    """There are no certificates yet. `faults` say why."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What is needed of a pool's identity beside its Secrets."""

    view: IdentityView
    admin: AdminTls
    asked: tuple[object, ...]
    """What was wanted of it when it was looked at."""
    look_again_ns: int


class Identities:
    """Of all pools of a leading operator."""

    def __init__(
        self,
        objects: Objects,
        clock: Clock,
        grace: timedelta = GRACE,
        show: Show = lambda pool, ends: None,
        overlap: timedelta = OVERLAP,
    ) -> None:
        """`grace`: between the phases of a change. `overlap`: for how long tickets of a key are
        taken that signs no more."""
        self._objects = objects
        self._offers = Offers(objects, clock)
        self._clock = clock
        self._grace = grace
        self._overlap = overlap
        self._show = show
        self._known: dict[str, PoolIdentity] = {}

    async def ensure(self, pool: Pool, said: Said | None = None) -> PoolIdentity:
        """Make, take over or renew what is missing or old. `said`: None while nodes were not asked
        yet. Unavailable when there is nothing to go by; ConfigError when the root is damaged or
        Secrets are forbidden; RetryLater."""
        known = self._known.get(pool.meta.uid)
        now_ns = self._clock.monotonic_ns()
        if known is not None and known.asked == _asked(pool) and now_ns < known.look_again_ns:
            return known
        identity = await self._look(pool, known, said)
        self._known[pool.meta.uid] = identity
        return identity

    async def read(self, pool: Pool) -> PoolIdentity | None:
        """Return what is in force without a change of anything, for a pool that is paused; None
        where there is nothing. Errors as `ensure`."""
        secret = await self._get(pool, identity_name(pool.meta.name))
        if secret is None or pool.meta.uid not in read_meta(Reader(secret)).owners:
            return None
        root = read_root(secret)
        names = names_of(Role.ADMIN, pool)
        admin = root.admin or issue(root.trust.current, names, utc(self._clock.wall_s()))
        self._known[pool.meta.uid] = found = self._found(pool, root, Offer(), admin, None)
        return found

    def known(self, pool: Pool) -> PoolIdentity | None:
        """Return what was found last, None where nothing was."""
        return self._known.get(pool.meta.uid)

    def forget(self, pool: Pool) -> None:
        """Drop what is known of a pool that goes."""
        self._known.pop(pool.meta.uid, None)
        self._show(pool.key, {})

    # --- one look ----------------------------------------------------------------------------

    async def _look(
        self, pool: Pool, known: PoolIdentity | None, said: Said | None
    ) -> PoolIdentity:
        now = utc(self._clock.wall_s())
        offer = await self._offers.find(pool)
        secret, root = await self._root(pool, offer, now)
        node = await self._own(pool, node_secret_name(pool.meta.name))
        metadata = await self._own(pool, metadata_secret_name(pool.meta.name))
        admin = root.admin
        if admin is None and known is not None:
            admin = Pair(known.admin.certificate, known.admin.key)
        held: Held = {Role.NODE: leaf_of(node), Role.METADATA: leaf_of(metadata), Role.ADMIN: admin}
        given = await self._is_given(pool, root.trust, (node, metadata), held, now)
        trust = next_trust(pool, root.trust, offer, held, given, now, self._grace)
        leaves = leaves_of(pool, trust, offer, held, now)
        signs_itself = pool.spec.tls_mode == SELF_SIGNED and bool(trust.current.key)
        after = replace(
            root,
            trust=trust,
            tickets=self._next_tickets(pool, root.tickets, (node, metadata), said, now),
            mode=pool.spec.tls_mode,
            admin=None if signs_itself else leaves[Role.ADMIN],
        )
        await self._write(pool, secret, root, after, leaves, (node, metadata))
        if root.mode == CERT_MANAGER != after.mode:
            await self._offers.withdraw(pool)
        self._show(pool.key, _ends(trust, leaves))
        return self._found(pool, after, offer, leaves[Role.ADMIN], said)

    def _next_tickets(
        self,
        pool: Pool,
        keys: TicketKeys,
        written: tuple[JsonObject | None, JsonObject | None],
        said: Said | None,
        now: datetime,
    ) -> TicketKeys:
        given = (
            said is not None
            and has_ticket_keys(*written, keys)
            and not waiting_for(keys, said)
        )
        asked = _asked_of_tickets(pool)
        return step(keys, now, asked, make_ticket_key, given, self._grace, self._overlap)

    def _found(
        self, pool: Pool, root: Root, offer: Offer, admin: Pair, said: Said | None
    ) -> PoolIdentity:
        trust, tickets = root.trust, root.tickets
        soon_s = min(LOOK_AGAIN_S, self._grace.total_seconds() / PARTS_OF_GRACE)
        pause_s = LOOK_AGAIN_S if offer.faults else LOOK_S
        if trust.phase is not Phase.STEADY:
            pause_s = soon_s
        phase = "" if trust.phase is Phase.STEADY else trust.phase.value
        ends = ""
        if tickets.given_at is not None:
            end = ends_at(tickets, tickets.given_at, self._grace, self._overlap).timestamp()
            ends, left_s = rfc3339(int(end)), end - self._clock.wall_s()
            pause_s = min(pause_s, max(soon_s, left_s))
        elif tickets.phase is not KeyPhase.STEADY:
            pause_s = min(pause_s, soon_s)
        waiting = waiting_for(tickets, said or {})
        return PoolIdentity(
            IdentityView(
                trust.bundle.decode("ascii"),
                offer.faults,
                phase,
                tickets.told,
                TicketsView(tickets.phase, waiting, said is not None, ends),
            ),
            AdminTls(trust.bundle, admin.certificate, admin.key, node_name(pool.key)),
            _asked(pool),
            self._clock.monotonic_ns() + int(pause_s * 1e9),
        )

    async def _root(self, pool: Pool, offer: Offer, now: datetime) -> tuple[JsonObject, Root]:
        found = await self._own(pool, identity_name(pool.meta.name))
        if found is not None:
            return found, read_root(found)
        if pool.spec.tls_mode == SELF_SIGNED:
            authority = make_authority(f"MemKV pool {pool.key}", now)
        elif offer.authority is not None:
            authority = offer.authority
        else:
            raise Unavailable(offer.faults)
        trust = Trust(authority, served=pool.meta.annotations.get(ROTATE_CA, ""))
        tickets = TicketKeys(make_ticket_key(), now, served=_asked_of_tickets(pool))
        root = Root(
            trust, tickets, secrets.token_bytes(SALT_BYTES), pool.spec.tls_mode,
            offer.leaves.get(Role.ADMIN),
        )  # fmt: skip
        try:
            manifest = root_manifest(pool, root)
            return await self._objects.create(SECRETS, pool.meta.namespace, manifest), root
        except Conflict as error:
            raise RetryLater("another operator made the pool's identity first") from error

    async def _is_given(
        self,
        pool: Pool,
        trust: Trust,
        written: tuple[JsonObject | None, JsonObject | None],
        held: Held,
        now: datetime,
    ) -> bool:
        """Return whether pods and clients have been given what this phase is about."""
        if trust.phase is Phase.STEADY or trust.given_at is not None:
            return False  # nobody asks
        if not is_given_to_pods(pool, trust, written, held, now):
            return False
        name = connection_name(pool.meta.name)
        connection = await self._objects.get(CONFIG_MAPS, pool.meta.namespace, name)
        return connection is not None and authority_in(connection) == trust.bundle.decode("ascii")

    async def _write(
        self,
        pool: Pool,
        secret: JsonObject,
        before: Root,
        after: Root,
        leaves: Mapping[Role, Pair],
        live: tuple[JsonObject | None, JsonObject | None],
    ) -> None:
        """The root first: what signs certificates must never be lost."""
        namespace = pool.meta.namespace
        if after != before:
            version = read_meta(Reader(secret)).resource_version
            name = identity_name(pool.meta.name)
            await self._objects.merge(SECRETS, namespace, name, root_patch(after, version))
        for name, there, manifest in (
            (node_secret_name(pool.meta.name), live[0],
             node_manifest(pool, after, leaves[Role.NODE])),
            (metadata_secret_name(pool.meta.name), live[1],
             metadata_manifest(pool, after, leaves[Role.METADATA])),
        ):  # fmt: skip
            if not _holds(there, manifest):
                await self._objects.apply(SECRETS, namespace, name, manifest)

    async def _own(self, pool: Pool, name: str) -> JsonObject | None:
        """Return a Secret of the pool, None where there is none. RetryLater while it is an earlier
        pool's; Unavailable when it is somebody else's: it is never written over."""
        found = await self._get(pool, name)
        if found is None or pool.meta.uid in read_meta(Reader(found)).owners:
            return found
        owners = Reader(found).object("metadata").objects("ownerReferences")
        if any(owner.text("name") == pool.meta.name for owner in owners):
            raise RetryLater(f"Secret {name} of an earlier pool {pool.key} is still there")
        whose = ", ".join(f"{owner.text('kind')} {owner.text('name')}" for owner in owners)
        message = (
            f"Secret {pool.meta.namespace}/{name} is needed by pool {pool.key} and belongs to "
            f"{whose or 'nobody'}: delete it if nobody needs it, or make one of the two pools anew "
            "under another name"
        )
        raise Unavailable((Fault("NameClaimedTwice", message),))

    async def _get(self, pool: Pool, name: str) -> JsonObject | None:
        return await self._objects.get(SECRETS, pool.meta.namespace, name)


def _asked(pool: Pool) -> tuple[object, ...]:
    spec = pool.spec
    rotation = pool.meta.annotations.get(ROTATE_CA, "")
    return spec.tls_mode, spec.tls_secret, spec.issuer, rotation, _asked_of_tickets(pool)


def _asked_of_tickets(pool: Pool) -> Asked:
    texts = (pool.meta.annotations.get(name, "") for name in (ROTATE_TICKET_KEY, REVOKE_TICKET_KEY))
    return Asked(*texts)


def _ends(trust: Trust, leaves: Mapping[Role, Pair]) -> dict[str, float]:
    pems = {role.value: pair.certificate for role, pair in leaves.items()}
    return {
        name: certificates_of(pem)[0].not_valid_after_utc.timestamp()
        for name, pem in {"authority": trust.current.certificate, **pems}.items()
    }


def _holds(secret: JsonObject | None, manifest: Manifest) -> bool:
    return secret is not None and secret.get("data") == manifest["data"]
