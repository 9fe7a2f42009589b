"""How a client knows its pool, and what proves the client; where that is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.errors import CallerError, ConfigError

if TYPE_CHECKING:
    from memkv.metadata.certificates import ClientTls

CREDENTIAL_NAMES = ("ca", "token_file", "tls_cert", "tls_key", "payload_encryption")
PEM_BEGIN = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client knows that it talks to its pool, and what proves the client.

    `ca`: certificates of the pool's authority, in PEM, or the path of a file with them, which is
    read anew for each connection (of a connection.json its `ca` is taken). One of
    `token_file` (a projected ServiceAccount token, read anew for each call) and `certificate` with
    `key` (PEM files) proves the client. `payload_encryption`: whether the pool's nodes speak TLS on
    their data ports.
    """

    ca: str
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    payload_encryption: bool = True

    def __post_init__(self) -> None:
        if not self.ca:
            raise CallerError("credentials without a CA: nobody would be believed")
        if (self.certificate is None) != (self.key is None):
            raise CallerError("a certificate and its key go together")

    def tls(self) -> ClientTls:
        """Return how to connect to the metadata service."""
        from memkv.metadata.certificates import ClientTls

        return ClientTls(self.authorities, self.certificate, self.key, self.token_file)

    def authorities(self) -> bytes:
        """Return the certificates of `ca`. ConfigError when the file cannot be read."""
        if self.ca.lstrip().startswith(PEM_BEGIN):
            return self.ca.encode()
        try:
            data = Path(self.ca).read_bytes()
            return data if not self.ca.endswith(".json") else ca_of_connection_file(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self.ca} has no CA any more ({error!r})") from error
        except OSError as error:
            raise ConfigError(
                f"cannot read the CA {self.ca}: {error.strerror}; is the ConfigMap or Secret "
                "mounted there?"
            ) from error


def ca_of_connection_file(data: bytes) -> bytes:
    """Return the CA in a connection file. ValueError and its like for another content."""
    return str(json.loads(data)["ca"]).encode()


def parse_encryption(text: str) -> bool:
    """Return whether payload is encrypted: "TLS" or "None", as MemKVPool writes it. ValueError."""
    if text.lower() not in ("tls", "none"):
        raise ValueError(f"payload encryption {text!r} is neither TLS nor None")
    return text.lower() == "tls"


def credentials_of(values: Mapping[str, str], where: str) -> Credentials | None:
    """Return what `ca`, `token_file`, `tls_cert`, `tls_key` and `payload_encryption` say; None
    without a CA. CallerError for values that do not fit, naming `where`."""

    def path(name: str) -> Path | None:
        return Path(values[name]) if values.get(name) else None

    rest = [name for name in ("token_file", "tls_cert", "tls_key") if values.get(name)]
    try:
        encrypted = parse_encryption(values.get("payload_encryption") or "TLS")
        if not values.get("ca"):
            if rest:
                raise CallerError(
                    f"{rest[0]} without ca: a token or certificate is shown to a pool that proved "
                    "itself only"
                )
            return None
        return Credentials(
            values["ca"], path("token_file"), path("tls_cert"), path("tls_key"), encrypted
        )
    except ValueError as error:
        raise CallerError(f"{where}: {error}") from error
