"""A certificate authority for tests: certificates of any role, in files or in memory."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from memkv.metadata.certificates import TlsFiles

_BORN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_DIES = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates. Two of one name are still two: their keys differ."""

    def __init__(self, name: str = "MemKV test CA", signer: Authority | None = None) -> None:
        """`signer`: default: it has signed its own certificate."""
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        above = signer or self
        made = _builder(self._name, above._name, self._key.public_key(), _BORN, _DIES)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = made.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        self.pem = made.sign(above._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(
        self, *names: str, common_name: str = "test", until: datetime.datetime = _DIES
    ) -> Pair:
        """Return a certificate for DNS names, addresses and URIs, for servers and clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        made = _builder(subject, self._name, key.public_key(), _BORN, until)
        if names:
            made = made.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]),
                critical=False,
            )
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
            critical=False,
        )
        return Pair(
            made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def files(self, folder: Path, name: str, *names: str) -> TlsFiles:
        """Write a certificate, its key and this authority into a folder, as `name`.*."""
        # Not at the top: tests of the native streams run without gRPC, under sanitizers.
        from memkv.metadata.certificates import TlsFiles

        files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.ca")
        write_pair(files, self.issue(*names, common_name=name))
        files.authority.write_bytes(self.pem)
        return files


def write_pair(files: TlsFiles, pair: Pair) -> None:
    """Replace certificate and key, one after the other as a careless person does."""
    for path, data in ((files.certificate, pair.certificate), (files.key, pair.key)):
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_bytes(data)
        fresh.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    born: datetime.datetime, dies: datetime.datetime,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(born)
        .not_valid_after(dies)
    )


def _general_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
