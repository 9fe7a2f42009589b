"""Which authority signs next, and which certificate each role shows. Pure; time is an argument."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.api.names import ROTATE_CA
from memkv_operator.api.pool import Pool
from memkv_operator.identity.authority import Pair, is_fit, issue, make_authority
from memkv_operator.identity.offers import Offer, taken
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.secrets import SELF_SIGNED, content_of
from memkv_operator.identity.trust import CA, Phase, Trust, is_due, same, step, take_at_once

Held: TypeAlias = Mapping[Role, Pair | None]
"""The certificates in use."""


def next_trust(
    pool: Pool,
    trust: Trust,
    offer: Offer,
    held: Held,
    given: bool,
    now: datetime,
    grace: timedelta,
) -> Trust:
    """Return who is believed and who signs from now on. `given`: whether everyone was given what
    the present phase is about."""
    wanted = offer.authority
    if pool.spec.tls_mode == SELF_SIGNED:
        wanted = _own_authority(pool, trust, now)
    if not _can_serve(pool, trust, held, now):
        # Nobody can be protected any more: the certificates in use are missing, or of no use.
        heir = wanted or trust.upcoming
        if heir is not None and not same(heir.certificate, trust.current.certificate):
            return take_at_once(trust, heir)
    after = step(trust, now, wanted, given, grace)
    if trust.phase is Phase.STEADY and after.phase is Phase.ANNOUNCED:
        return _served(after, pool)
    return after


def leaves_of(
    pool: Pool, trust: Trust, offer: Offer, held: Held, now: datetime
) -> dict[Role, Pair]:
    """Return the certificate of each role: the one in use, or a newer one. ConfigError when there
    is none."""
    return {role: _leaf(pool, role, trust, offer, held.get(role), now) for role in Role}


def is_given_to_pods(
    pool: Pool,
    trust: Trust,
    written: Sequence[JsonObject | None],
    held: Held,
    now: datetime,
) -> bool:
    """Return whether the Secrets of pods hold the bundle, and all certificates are of whoever
    signs."""
    for secret in written:
        if secret is None or content_of(secret).get(CA) != trust.bundle:
            return False
    # The operator's own is in use from the moment in which it is made.
    roles, signer = (Role.NODE, Role.METADATA), trust.current.certificate
    return all(taken(held.get(role), None, role, pool, signer, now) for role in roles)


def _own_authority(pool: Pool, trust: Trust, now: datetime) -> Pair | None:
    """Return an authority of the pool's own that should replace the present one, if one should."""
    if trust.upcoming is not None:
        is_wanted = not trust.upcoming.key
    elif not trust.current.key:
        is_wanted = True  # so far somebody else has signed
    else:
        request = pool.meta.annotations.get(ROTATE_CA, "")
        is_asked = request not in ("", trust.served)
        is_wanted = trust.phase is Phase.STEADY and (is_asked or is_due(trust.current, now))
    return make_authority(f"MemKV pool {pool.key}", now) if is_wanted else None


def _served(trust: Trust, pool: Pool) -> Trust:
    request = pool.meta.annotations.get(ROTATE_CA, "")
    return Trust(trust.current, trust.upcoming, trust.former, trust.given_at, request)


def _can_serve(pool: Pool, trust: Trust, held: Held, now: datetime) -> bool:
    if trust.current.key:
        return True
    signer = trust.current.certificate
    return all(taken(held.get(role), None, role, pool, signer, now) for role in Role)


def _leaf(
    pool: Pool, role: Role, trust: Trust, offer: Offer, held: Pair | None, now: datetime
) -> Pair:
    names = names_of(role, pool)
    if pool.spec.tls_mode != SELF_SIGNED:
        signer = trust.current.certificate
        pair = taken(held, offer.leaves.get(role), role, pool, signer, now)
        if pair is not None:
            return pair
    elif held is not None and trust.current.key and is_fit(held, trust.current, names, now):
        return held
    if trust.current.key:
        return issue(trust.current, names, now)
    if held is not None:
        return held  # better than none, until its successor is believed
    raise ConfigError(
        f"there is no certificate for {role.value} and nobody who signs one: delete the Secret "
        f"{pool.meta.name}-identity, and the pool gets new ones"
    )
