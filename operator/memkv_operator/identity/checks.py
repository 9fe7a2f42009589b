"""What is wrong with a certificate that somebody else has made. Pure; a sentence for each fault."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from memkv.errors import ConfigError
from memkv_operator.identity.authority import Pair
from memkv_operator.identity.trust import certificates_of

USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "server auth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "client auth",
}
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What parts of a certificate raise when they are looked at: its PEM is read without them."""


def faults_of_authority(pem: bytes, now: datetime, where: str) -> list[str]:
    """Return what is wrong with certificates that are to be believed. `where` names them."""
    if not pem:
        return [f"{where} is missing: without the authority's certificate nobody is believed"]
    try:
        authorities = certificates_of(pem)
    except ConfigError as error:
        return [f"{where}: {error}"]
    found = []
    for authority in authorities:
        try:
            name = authority.subject.rfc4514_string()
            authority.public_key()  # whoever believes it has to read it
            if not _is_authority(authority):
                found.append(
                    f"{where}: {name} is no authority (basicConstraints CA:TRUE is missing)"
                )
            found += [f"{where}: {name} {fault}" for fault in _faults_of_times(authority, now)]
        except UNREADABLE as error:
            found.append(f"{where} {_unreadable(error)}")
    return found


def faults_of_pair(
    pair: Pair, authorities: bytes, names: Sequence[str], now: datetime, where: str
) -> list[str]:
    """Return what is wrong with a certificate and its key. `authorities`: one of them must have
    signed it, by way of the certificates that follow it in its PEM; `names`: it must carry them
    all; `where` names it."""
    try:
        chain = certificates_of(pair.certificate)
    except ConfigError as error:
        return [f"{where}: {error}"]
    leaf = chain[0]
    found: list[str] = []
    try:
        found += _faults_of_key(leaf, pair.key)
        found += _faults_of_times(leaf, now)
        found += _faults_of_names(leaf, names)
        found += _faults_of_usage(leaf)
    except UNREADABLE as error:
        found.append(_unreadable(error))
    if not _leads_to(chain, authorities):
        found.append("is not signed by the authority that came with it (ca.crt)")
    return [f"{where} {fault}" for fault in found]


def _unreadable(error: Exception) -> str:
    return (
        f"has a part that cannot be read ({error}): issue it anew, with a key that is RSA or on "
        "the curve P-256, P-384 or P-521, and each extension once"
    )


def _faults_of_key(leaf: x509.Certificate, pem: bytes) -> Iterator[str]:
    try:
        key = load_pem_private_key(pem, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield f"has no unencrypted private key in PEM ({error})"
        return
    kind = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_bytes(*kind) != leaf.public_key().public_bytes(*kind):
        yield "and its key are not of one another: replace both together"


def _faults_of_times(certificate: x509.Certificate, now: datetime) -> Iterator[str]:
    if now >= certificate.not_valid_after_utc:
        yield f"has expired at {certificate.not_valid_after_utc.isoformat()}: renew it"
    if now < certificate.not_valid_before_utc:
        yield f"is not valid before {certificate.not_valid_before_utc.isoformat()}"


def _faults_of_names(leaf: x509.Certificate, names: Sequence[str]) -> Iterator[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        carried = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    except x509.ExtensionNotFound:
        carried = set()
    missing = [name for name in names if name.lower() not in carried]
    if missing:
        has = ", ".join(sorted(carried)) or "none"
        yield f"lacks the DNS name {', '.join(missing)} (it has: {has}): issue it with that name"


def _faults_of_usage(leaf: x509.Certificate) -> Iterator[str]:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # for everything
    missing = [text for usage, text in USAGES.items() if usage not in usages]
    if missing:
        yield f"may not be used for {' and '.join(missing)}: add the usage"


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _leads_to(chain: Sequence[x509.Certificate], authorities: bytes) -> bool:
    """Return whether the first is signed by an authority, or by the next, and so on."""
    try:
        believed = certificates_of(authorities)
    except ConfigError:
        return False
    for below, certificate in enumerate(chain):
        if any(_is_signed(certificate, authority, below) for authority in believed):
            return True
        if below + 1 == len(chain) or not _is_signed(certificate, chain[below + 1], below):
            return False
    return False


def _is_signed(certificate: x509.Certificate, issuer: x509.Certificate, below: int) -> bool:
    """Return whether an authority has signed, and may, with so many authorities below it."""
    try:
        certificate.verify_directly_issued_by(issuer)
        limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (*UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
        return False
    return limits.ca and (limits.path_length is None or below <= limits.path_length)
