"""Which authorities are believed and which one signs, while one replaces the other. Pure.

| phase     | who signs | who is believed            | ends                                       |
| --------- | --------- | -------------------------- | ------------------------------------------ |
| STEADY    | current   | current                    | when another authority is wanted           |
| ANNOUNCED | current   | current and the upcoming   | the grace after everyone was given both    |
| RETIRING  | current   | current and the former one | the grace after everyone was given the new |
|           |           |                            | certificates                               |

So nobody ever shows a certificate that another does not believe. The grace is for kubelet, which
takes a while to renew the files of pods. All of it is stored with the authority itself: whoever
leads next goes on from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from memkv.errors import ConfigError
from memkv_operator.identity.authority import Pair

GRACE = timedelta(minutes=15)  # kubelet takes up to two minutes; slow nodes and clients get more
CA, CA_KEY = "ca.crt", "ca.key"
NEXT_CA, NEXT_CA_KEY, FORMER_CA = "next-ca.crt", "next-ca.key", "former-ca.crt"
GIVEN_AT, SERVED = "given-at", "rotation-served"
FIELDS = (CA, CA_KEY, NEXT_CA, NEXT_CA_KEY, FORMER_CA, GIVEN_AT, SERVED)


class Phase(Enum):
    """How far the change of an authority is."""

    STEADY = "Steady"
    ANNOUNCED = "AuthorityAnnounced"
    RETIRING = "AuthorityRetiring"


@dataclass(frozen=True, slots=True)
class Trust:
    """Authorities of a pool, or of the agents. A pair without a key is somebody else's authority;
    its certificate may be several in one PEM."""

    current: Pair
    upcoming: Pair | None = None
    former: bytes = b""
    given_at: datetime | None = None
    """When everyone had been given what this phase is about; None: not yet."""
    served: str = ""
    """The last request for a rotation that was answered by one."""

    @property
    def phase(self) -> Phase:
        """How far a change is."""
        if self.upcoming is not None:
            return Phase.ANNOUNCED
        return Phase.RETIRING if self.former else Phase.STEADY

    @property
    def bundle(self) -> bytes:
        """Everyone who is believed, in PEM; the one that signs is the first."""
        upcoming = self.upcoming.certificate if self.upcoming is not None else b""
        return distinct(self.current.certificate, upcoming, self.former)


def step(
    trust: Trust, now: datetime, wanted: Pair | None, given: bool, grace: timedelta = GRACE
) -> Trust:
    """Return what holds from now on: the same, or one phase further.

    `wanted`: who should sign; None: whoever does, or is about to. `given`: whether everyone was
    given the bundle and certificates of the present phase.
    """
    if trust.phase is Phase.STEADY:
        if wanted is None or same(wanted.certificate, trust.current.certificate):
            return trust
        return replace(trust, upcoming=wanted, given_at=None)
    if trust.upcoming is not None and wanted is not None:
        if same(wanted.certificate, trust.current.certificate):
            return replace(trust, upcoming=None, given_at=None)  # it was taken back
        if not same(wanted.certificate, trust.upcoming.certificate):
            return replace(trust, upcoming=wanted, given_at=None)
    if trust.given_at is None:
        return replace(trust, given_at=now) if given else trust
    if now - trust.given_at < grace:
        return trust
    if trust.upcoming is not None:
        return take_at_once(trust, trust.upcoming)
    return replace(trust, former=b"", given_at=None)


def take_at_once(trust: Trust, wanted: Pair) -> Trust:
    """Return the trust in which `wanted` signs from now on, and the one before is on its way out.

    Without `step` before it only where no certificate of the one before is of use any more.
    """
    return Trust(wanted, None, trust.current.certificate, None, trust.served)


def is_due(authority: Pair, now: datetime) -> bool:
    """Return whether an authority should be replaced: two thirds of its life are over."""
    certificate = certificates_of(authority.certificate)[0]
    born, dies = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= born + (dies - born) * 2 / 3


def content_of_trust(trust: Trust) -> dict[str, bytes]:
    """Return what to store; fields of `FIELDS` that are not in it are to be taken away."""
    content = {CA: trust.current.certificate}
    optional = {
        CA_KEY: trust.current.key,
        NEXT_CA: trust.upcoming.certificate if trust.upcoming is not None else b"",
        NEXT_CA_KEY: trust.upcoming.key if trust.upcoming is not None else b"",
        FORMER_CA: trust.former,
        GIVEN_AT: trust.given_at.isoformat().encode() if trust.given_at is not None else b"",
        SERVED: trust.served.encode(),
    }
    return {**content, **{name: value for name, value in optional.items() if value}}


def read_trust(content: Mapping[str, bytes]) -> Trust:
    """Return what was stored. ConfigError when it is damaged."""
    if CA not in content:
        raise ConfigError(f"the stored authority has no {CA}")
    for name in (CA, NEXT_CA, FORMER_CA):
        if content.get(name):
            certificates_of(content[name])
    upcoming = None
    if NEXT_CA in content:
        upcoming = Pair(content[NEXT_CA], content.get(NEXT_CA_KEY, b""))
    return Trust(
        Pair(content[CA], content.get(CA_KEY, b"")),
        upcoming,
        content.get(FORMER_CA, b""),
        _time_of(content.get(GIVEN_AT, b"")),
        content.get(SERVED, b"").decode("utf-8", "replace"),
    )


def certificates_of(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates in a PEM text. ConfigError when there is none, or a damaged one."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"not a certificate in PEM ({error})") from error


def distinct(*pems: bytes) -> bytes:
    """Return the certificates of some PEM texts, each once, in their order."""
    found = {
        certificate.public_bytes(Encoding.PEM): None
        for pem in pems
        if pem
        for certificate in certificates_of(pem)
    }
    return b"".join(found)


def same(one: bytes, other: bytes) -> bool:
    """Return whether two PEM texts hold the same certificates, in whatever order."""
    return set(certificates_of(one)) == set(certificates_of(other))


def _time_of(text: bytes) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.decode("ascii")).astimezone(UTC)
    except ValueError as error:
        raise ConfigError(f"the stored authority's {GIVEN_AT} is no time ({error})") from error
