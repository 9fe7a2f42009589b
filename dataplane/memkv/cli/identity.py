"""Flags of `memkv node`, `metadata` and `agent` that say who they are and whom they believe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.settings import Field, Settings, UsageError

if TYPE_CHECKING:
    from memkv.metadata.access import AccessConfig
    from memkv.metadata.certificates import TlsFiles

NODE, METADATA, AGENT = "node", "metadata", "agent"


def _file(name: str, section: str, text: str) -> Field[str]:
    return Field(name, units.parse_name, "", text, section, "FILE")


class TlsFields:
    """The three files of mutual TLS, for one command."""

    def __init__(self, section: str) -> None:
        self.certificate = _file(
            "tls_cert", section, "certificate of this process, in PEM; replaced files are taken"
            " over at once",
        )  # fmt: skip
        self.key = _file("tls_key", section, "private key of the certificate, in PEM")
        self.authority = _file(
            "tls_ca", section, "CA whose certificates are believed, in PEM; one may follow another"
        )

    def all(self) -> tuple[Field[str], ...]:
        """Return the fields."""
        return self.certificate, self.key, self.authority

    def read(self, settings: Settings) -> TlsFiles | None:
        """Return the files, None when no one was named. UsageError for some of them."""
        from memkv.metadata.certificates import TlsFiles

        named = [settings[field] for field in self.all()]
        if not any(named):
            return None
        if missing := [field.flag for field in self.all() if not settings[field]]:
            raise UsageError(
                f"{', '.join(missing)} missing: --tls-cert, --tls-key and --tls-ca go together"
            )
        certificate, key, authority = (Path(name) for name in named)
        return TlsFiles(certificate, key, authority)


NODE_TLS = TlsFields(NODE)
METADATA_TLS = TlsFields(METADATA)
AGENT_TLS = TlsFields(AGENT)
TICKET_KEYS = _file(
    "ticket_keys", NODE, "public keys of accepted tickets, in PEM, one after another; replaced"
    " files are taken over. Without keys unsigned tickets pass on loopback and with --insecure",
)  # fmt: skip
NODE_TOKEN = _file(
    "token_file", NODE, "token that proves the node to the metadata service; default: its"
    " certificate does",
)  # fmt: skip


def parse_payload(text: str) -> bool | None:
    """Return whether data ports speak TLS; None: nothing was said."""
    from memkv.client.credentials import parse_encryption

    return parse_encryption(text) if text else None


PAYLOAD: Field[bool | None] = Field(
    "payload_encryption", parse_payload, None, "whether the data ports speak TLS: TLS or None, the"
    " same for every node and client of the pool; default: TLS where there are certificates", NODE,
    "WHAT",
)  # fmt: skip
TICKET_KEY = _file(
    "ticket_key", METADATA, "private Ed25519 key that signs tickets, in PEM; a replaced file is"
    " taken over. Default: tickets are unsigned",
)  # fmt: skip
SALT_SECRET = _file(
    "salt_secret", METADATA, "32 or more random bytes that hide the keys of tenants from others;"
    " the same for every replica, for ever",
)  # fmt: skip


def parse_mode(text: str) -> str:
    """Return what proves callers, checked."""
    from memkv.metadata.access import Mode

    known = [mode.value for mode in Mode]
    if text not in known:
        raise ValueError(f"{text!r} is none of {', '.join(known)}")
    return text


def parse_accounts(text: str) -> tuple[str, ...]:
    """Return NAMESPACE/NAME,... checked."""
    accounts = tuple(part.strip() for part in text.split(",") if part.strip())
    for account in accounts:
        namespace, slash, name = account.partition("/")
        if not slash or not namespace or not name or "/" in name:
            raise ValueError(f"{account!r} is not NAMESPACE/NAME of a ServiceAccount")
    return accounts


AUTH: Field[str] = Field(
    "auth", parse_mode, "none", "what proves callers: none, certificate (a URI"
    " spiffe://DOMAIN/ns/NAMESPACE/sa/NAME in it) or serviceaccount (a token, reviewed by the API"
    " server)", METADATA, "MODE",
)  # fmt: skip
TENANTS = _file(
    "tenants", METADATA, "JSON with the pool's `tenants`, which name their ServiceAccounts; a"
    " replaced file is taken over. Default: each namespace is a tenant",
)  # fmt: skip
NODE_ACCOUNTS: Field[tuple[str, ...]] = Field(
    "node_accounts", parse_accounts, (), "ServiceAccounts of the pool's nodes, which may move slots"
    " (with --auth serviceaccount)", METADATA, "NAMESPACE/NAME,...",
)  # fmt: skip
AUDIENCE: Field[str] = Field(
    "audience", units.parse_name, "memkv-metadata", "whom tokens of callers must be meant for (with"
    " --auth serviceaccount)", METADATA, "NAME",
)  # fmt: skip
ACCESS = (AUTH, TENANTS, NODE_ACCOUNTS, AUDIENCE)


def access_of(settings: Settings) -> AccessConfig:
    """Return whom the metadata service lets in."""
    from memkv.metadata.access import AccessConfig, Mode
    from memkv.metadata.bearer import ServiceAccount

    pairs = [account.partition("/") for account in settings[NODE_ACCOUNTS]]
    accounts = frozenset(ServiceAccount(namespace, name) for namespace, _, name in pairs)
    tenants = path_of(settings, TENANTS)
    return AccessConfig(Mode(settings[AUTH]), tenants, accounts, settings[AUDIENCE])


def path_of(settings: Settings, field: Field[str]) -> Path | None:
    """Return the path that a field names, None when it names none."""
    return Path(settings[field]) if settings[field] else None
