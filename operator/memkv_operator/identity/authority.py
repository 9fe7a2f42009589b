"""A pool's own certificate authority (metadata.tls.mode SelfSigned). Time is an argument."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from memkv.errors import ConfigError

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
CLOCK_SKEW = timedelta(hours=1)  # between the operator and whoever checks


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate, after which those may follow that lead to its authority, and its private key;
    in PEM."""

    certificate: bytes
    key: bytes


def make_authority(name: str, now: datetime) -> Pair:
    """Return a new authority. Two of one name differ in their serial number, so that whoever
    believes both knows which has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"[:16])
    subject = x509.Name([*_name(name), serial])
    builder = _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, dns_names: Sequence[str], now: datetime) -> Pair:
    """Return a certificate for servers and clients. ConfigError when the authority is damaged."""
    signer, signing = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has room for 64 characters; checks go by the names below.
    builder = _builder(_name("memkv"), signer.subject, key.public_key(), now, LEAF_LIFE)
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        builder.add_extension(names, critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(signing, hashes.SHA256()), key)


def is_fit(pair: Pair, authority: Pair, dns_names: Sequence[str], now: datetime) -> bool:
    """Return whether a certificate needs no renewal: signed by this authority, with these names,
    and with more than a third of its life before it."""
    try:
        certificate, key = _load(pair)
        signer, _ = _load(authority)
        certificate.verify_directly_issued_by(signer)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ConfigError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    if certificate.public_key() != key.public_key():
        return False
    left = certificate.not_valid_after_utc - now
    return set(found.value.get_values_for_type(x509.DNSName)) == set(dns_names) and (
        left > LEAF_LIFE / 3 and now >= certificate.not_valid_before_utc
    )


def make_ticket_key() -> bytes:
    """Return a new private key that signs tickets, in PEM."""
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_ticket_key(private: bytes) -> bytes:
    """Return the key by which nodes verify tickets, in PEM. ConfigError for anything else."""
    try:
        key = load_pem_private_key(private, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the ticket key is damaged ({error})") from error
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_pem(public: bytes) -> bytes:
    """Return a public key of tickets, 32 bytes, in PEM. ConfigError for another length."""
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise ConfigError(f"not a public key of tickets ({error})") from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"not a certificate and its key in PEM ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the key is not an elliptic curve key")
    return certificate, key


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )
