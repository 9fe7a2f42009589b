"""Certificates that somebody else has made, as they are found in Secrets, and which of them are
taken over. Pure.

A Secret (metadata.tls.mode Secret) holds `ca.crt`, and for each role `node.crt` and `node.key`,
`metadata.crt`, ..., `admin.crt`, ...; `tls.crt` and `tls.key` are those of roles that have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from memkv_operator.api.pool import Pool
from memkv_operator.identity.authority import Pair
from memkv_operator.identity.checks import faults_of_authority, faults_of_pair
from memkv_operator.identity.roles import Role, names_needed
from memkv_operator.identity.secrets import CERTIFICATE, KEY
from memkv_operator.identity.trust import CA, distinct
from memkv_operator.plan.identity import Fault

INVALID, UNAVAILABLE = "CertificateInvalid", "CertificatesUnavailable"


@dataclass(frozen=True, slots=True)
class Offer:
    """What others offer a pool: usable as a whole, or not at all."""

    authority: Pair | None = None
    """Whom to believe, without a key; None: the offer is of no use."""
    leaves: Mapping[Role, Pair] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def offer_of_secret(pool: Pool, name: str, content: Mapping[str, bytes], now: datetime) -> Offer:
    """Return what one Secret offers all roles."""
    authority = content.get(CA, b"")
    faults = faults_of_authority(authority, now, f"Secret {name}: {CA}")
    leaves: dict[Role, Pair] = {}
    for role in Role:
        own = f"{role.value}.crt"
        certificate, key = (own, f"{role.value}.key") if own in content else (CERTIFICATE, KEY)
        leaves[role] = pair = Pair(content.get(certificate, b""), content.get(key, b""))
        where = f"Secret {name}: {certificate}"
        faults += faults_of_pair(pair, authority, names_needed(role, pool), now, where)
    return _judged(authority, leaves, faults)


def offer_of_secrets(
    pool: Pool, contents: Mapping[Role, Mapping[str, bytes]], now: datetime
) -> Offer:
    """Return what a Secret for each role offers, as cert-manager fills them."""
    authorities: list[bytes] = []
    leaves: dict[Role, Pair] = {}
    faults: list[str] = []
    for role, content in contents.items():
        where, authority = f"the certificate for {role.value}", content.get(CA, b"")
        found = faults_of_authority(authority, now, f"{where}: {CA}")
        leaves[role] = pair = Pair(content.get(CERTIFICATE, b""), content.get(KEY, b""))
        found += faults_of_pair(pair, authority, names_needed(role, pool), now, where)
        authorities += [authority] if not found else []
        faults += found
    return _judged(distinct(*authorities) if not faults else b"", leaves, faults)


def taken(
    held: Pair | None, offered: Pair | None, role: Role, pool: Pool, believed: bytes, now: datetime
) -> Pair | None:
    """Return which certificate to use: the offered one if those who are believed have signed it,
    else the one in use as long as it is good; None: neither is."""
    for pair in (offered, held):
        if pair is not None and not faults_of_pair(
            pair, believed, names_needed(role, pool), now, ""
        ):
            return pair
    return None


def _judged(authority: bytes, leaves: Mapping[Role, Pair], faults: list[str]) -> Offer:
    if faults:
        # One certificate for several roles has its faults once.
        return Offer(None, {}, tuple(Fault(INVALID, text) for text in dict.fromkeys(faults)))
    return Offer(Pair(distinct(authority), b""), leaves)
