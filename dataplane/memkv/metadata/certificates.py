"""TLS of the gRPC services: files that may be replaced at any time, and the names in certificates.

A certificate names what its owner is to a pool, not an address: nodes come and go with addresses
that nobody knows beforehand. Servers read their files for each handshake and clients for each
channel, so a rotation needs no restart and fails no call; files that do not fit each other (they
are being replaced just now) leave what was in use before.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from memkv.errors import ConfigError

TOKEN_BYTES_MAX = 16 * 1024  # a ServiceAccount token has 1-2 KiB; gRPC takes headers of 8-16 KiB

AGENT_NAME = "memkv-agent"
"""DNS name in the certificate of agents: they serve all pools of a release."""
AGENT_OPERATOR_NAME = "memkv-operator"
"""DNS name in the certificate of who alone may ask and tell agents."""


def node_name(pool: str) -> str:
    """Return the DNS name in the certificates of a pool's nodes: node.NAME.NAMESPACE.memkv."""
    return f"node.{_domain(pool)}"


def admin_name(pool: str) -> str:
    """Return the DNS name in the certificate of who publishes a pool's map and tells its nodes what
    to be: admin.NAME.NAMESPACE.memkv."""
    return f"admin.{_domain(pool)}"


def _domain(pool: str) -> str:
    return ".".join([*reversed(pool.split("/")), "memkv"])


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one side of mutual TLS."""

    certificate: Path
    key: Path
    authority: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return (certificate, key, authority). ConfigError naming the missing file, or that
        certificate and key are not of one another."""
        certificate, key, authority = (
            read_pem(path) for path in (self.certificate, self.key, self.authority)
        )
        check_pair(certificate, key, f"{self.certificate} and {self.key}")
        return certificate, key, authority


def read_pem(path: Path) -> bytes:
    """Return a file. ConfigError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the TLS file {path}: {error.strerror}; check the path and its permissions"
        ) from error


def check_pair(certificate: bytes, key: bytes, where: str) -> None:
    """Raise ConfigError unless the key is the certificate's."""
    try:
        public = load_pem_x509_certificate(certificate).public_key()
        private = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{where}: not a certificate and an unencrypted private key in PEM ({error})"
        ) from error
    kind = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if public.public_bytes(*kind) != private.public_bytes(*kind):
        raise ConfigError(f"{where}: the key is not that of the certificate; replace both together")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client knows the server of a channel, and what proves the client.

    Files are read anew for each channel, the token for each call.
    """

    authority: Path | bytes | Callable[[], bytes]
    """CA certificates in PEM, their file, or who has them; ConfigError when that fails."""
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    """Bearer token, such as a projected ServiceAccount token."""
    server_name: str = ""
    """Name that the server's certificate must carry; empty: the host of the endpoint."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for a channel. ConfigError for a file that is missing or unfit."""
        authority = self.authority
        if isinstance(authority, Path):
            authority = read_pem(authority)
        elif not isinstance(authority, bytes):
            authority = authority()
        try:
            load_pem_x509_certificate(authority)
        except ValueError as error:
            raise ConfigError(f"the CA is no certificate in PEM ({error}); check --ca") from error
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(authority)
        certificate, key = read_pem(self.certificate), read_pem(self.key)
        check_pair(certificate, key, f"{self.certificate} and {self.key}")
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the headers of a call. ConfigError when the token cannot be read."""
        if self.token_file is None:
            return ()
        try:
            token = self.token_file.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the token {self.token_file}: {error.strerror}; is the projected "
                "ServiceAccount token mounted there, and readable for this user?"
            ) from error
        text = token.strip().decode("ascii", "replace")
        if not text.isprintable() or " " in text or not 0 < len(text) <= TOKEN_BYTES_MAX:
            raise ConfigError(
                f"{self.token_file} holds no token (one line of printable letters is expected)"
            )
        return (("authorization", f"Bearer {text}"),)


def names_of(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Return the names in the certificate by which a caller of gRPC was verified; [] without.

    Not its common name: issuers check who may have which alternative name, and let common names be.
    """
    names = auth_context.get("x509_subject_alternative_name", ())
    return [name.decode("utf-8", "replace") for name in names]


def client_tls(files: TlsFiles, *, server_name: str = "", token_file: Path | None = None
               ) -> ClientTls:
    """Return how the owner of server files is a client of others."""
    return ClientTls(files.authority, files.certificate, files.key, token_file, server_name)


def server_credentials(files: TlsFiles, *, asks_certificate: bool) -> grpc.ServerCredentials:
    """Return credentials of a server that take over replaced files with the next handshake.

    `asks_certificate`: only clients with a certificate of the CA get in; without it clients need
    none, and prove themselves otherwise. ConfigError for files that are missing or unfit.
    """
    reloader = _Reloader(files, asks_certificate)
    return grpc.dynamic_ssl_server_credentials(
        reloader.first,
        reloader.fetch,  # type: ignore[arg-type]  # the stubs forget that None is "unchanged"
        require_client_authentication=asks_certificate,
    )


class GrpcServer(Protocol):
    """What of a gRPC server, blocking or not, a port is opened with."""

    def add_insecure_port(self, address: str) -> int: ...
    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int: ...


def open_port(
    server: GrpcServer, address: str, tls: TlsFiles | None, *, asks_certificate: bool
) -> int:
    """Have a server listen, under TLS where there are files; return the port. RuntimeError where
    the address is not to be had; ConfigError as `server_credentials`, which explains the rest."""
    if tls is None:
        return server.add_insecure_port(address)
    credentials = server_credentials(tls, asks_certificate=asks_certificate)
    return server.add_secure_port(address, credentials)


class _Reloader:
    """Says at each handshake whether the files have changed. Called by threads of gRPC."""

    def __init__(self, files: TlsFiles, asks_certificate: bool) -> None:
        self._files = files
        self._asks_certificate = asks_certificate
        self._lock = threading.Lock()
        self._seen = files.read()
        self.first = self._configuration()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a configuration to change to, None to go on with the one in use."""
        try:
            now = self._files.read()
        except ConfigError:
            return None
        with self._lock:
            if now == self._seen:
                return None
            self._seen = now
            return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, authority = self._seen
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], authority if self._asks_certificate else None
        )
