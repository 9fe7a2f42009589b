"""Who gets which ticket: unsigned ones where everyone is trusted, signed ones everywhere else."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memkv.clock import Clock
from memkv.errors import ConfigError
from memkv.metadata.callers import Caller
from memkv.tenant import check_tenant_name
from memkv.wire.signed import TicketSigner
from memkv.wire.ticket import (
    PEER_TENANT,
    TICKET_LIFETIME_S,
    Rights,
    Ticket,
    TicketRefused,
    anonymous_ticket,
)

TENANT_DEFAULT = "default"
SALT_BYTES = 32
SALT_SECRET_BYTES_MIN = 32  # as long as the salts that it makes

SaltOf = Callable[[str, str], bytes]
"""(pool, tenant) -> the key of the tenant's block ids."""


class TicketIssuer(Protocol):
    """Decides on tickets. Called from the server's event loop: must not block."""

    def issue(self, pool: str, tenant: str, caller: Caller, *, peer: bool) -> Ticket:
        """Return a ticket of `tenant` ("" for the caller's own), or with `peer` one for moves.

        CallerError for an impossible name; TicketRefused (memkv.wire.ticket) when the caller may
        not use the tenant, or is no node.
        """


@dataclass(frozen=True, slots=True)
class AnonymousIssuer:
    """Gives unsigned tickets, which nodes take on loopback and with --insecure only."""

    clock: Clock

    def issue(self, pool: str, tenant: str, caller: Caller, *, peer: bool) -> Ticket:
        name, rights = granted(tenant, caller, peer=peer)
        salt = b"" if peer else public_salt(pool, name)
        return anonymous_ticket(pool, name, self.clock.wall_s(), salt=salt, rights=rights)


class SignedIssuer:
    """Gives tickets that nodes verify without asking anyone."""

    def __init__(self, signer: Callable[[], TicketSigner], salt_of: SaltOf, clock: Clock) -> None:
        """`signer()`: of the key to use now."""
        self._signer = signer
        self._salt_of = salt_of
        self._clock = clock

    def issue(self, pool: str, tenant: str, caller: Caller, *, peer: bool) -> Ticket:
        name, rights = granted(tenant, caller, peer=peer)
        now_s = self._clock.wall_s()
        salt = b"" if peer else self._salt_of(pool, name)
        ticket = Ticket(
            pool, name, caller.subject, rights, now_s, now_s + TICKET_LIFETIME_S, salt=salt
        )
        return self._signer().sign(ticket)


def granted(tenant: str, caller: Caller, *, peer: bool) -> tuple[str, Rights]:
    """Return whose blocks a ticket for the caller is about, and what it allows. CallerError for an
    impossible name, TicketRefused for what the caller may not have."""
    if peer:
        if not caller.rights & Rights.PEER:
            raise TicketRefused(
                f"{caller.subject} is no node of this pool: only nodes get tickets for moves; see "
                "--node-accounts"
            )
        return PEER_TENANT, Rights.PEER
    if not (rights := caller.rights & ~Rights.PEER):
        raise TicketRefused(f"{caller.subject} is a node of this pool and no client of it")
    name = tenant or caller.tenant or TENANT_DEFAULT
    if name == TENANT_DEFAULT and caller.tenant and not caller.any_tenant:
        name = caller.tenant  # clients that were told no tenant ask for this one
    check_tenant_name(name)
    if not caller.any_tenant and name != caller.tenant:
        raise TicketRefused(
            f"{caller.subject} belongs to tenant {caller.tenant!r} and may not use {name!r}: leave "
            "the tenant out, or have the pool's tenants name this subject"
        )
    return name, rights


def public_salt(pool: str, tenant: str) -> bytes:
    """Return the salt of a tenant of a pool without secrets.

    It keeps the block ids of tenants apart and hides nothing. Derived, so that every replica gives
    the same one and a lost state file does not make stored blocks unreachable.
    """
    return hashlib.blake2b(
        f"{pool}\0{tenant}".encode(), digest_size=SALT_BYTES, person=b"memkv-pub-salt"
    ).digest()


def secret_salts(secret: bytes) -> SaltOf:
    """Return salts that only who has a ticket knows: HMACs of the pool's secret.

    Every replica with the same secret gives the same ones. Another secret makes every stored block
    unreachable, so it is not rotated with the ticket key. ConfigError when it is too short.
    """
    if len(secret) < SALT_SECRET_BYTES_MIN:
        raise ConfigError(
            f"a salt secret of {len(secret)} bytes; at least {SALT_SECRET_BYTES_MIN} random ones "
            "are needed: `openssl rand -out FILE 32`"
        )

    def salt_of(pool: str, tenant: str) -> bytes:
        return hmac.digest(secret, f"memkv-salt\0{pool}\0{tenant}".encode(), hashlib.sha256)

    return salt_of


class SignerFile:
    """The signing key in a file, read anew when the file was replaced: a rotation needs no restart.
    For one thread."""

    def __init__(self, path: Path) -> None:
        """ConfigError when it cannot be read or is no Ed25519 key."""
        self._path = path
        self._seen = b""
        self._signer = self._read()

    def __call__(self) -> TicketSigner:
        """Return the signer of the newest good key; a damaged file leaves the one before."""
        try:
            self._signer = self._read()
        except ConfigError:
            return self._signer
        return self._signer

    def _read(self) -> TicketSigner:
        try:
            pem = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the ticket key {self._path}: {error.strerror}; make one with "
                "`openssl genpkey -algorithm ed25519 -out FILE`"
            ) from error
        if pem != self._seen:
            try:
                self._signer = TicketSigner.from_pem(pem)
            except ConfigError as error:
                raise ConfigError(f"{self._path}: {error}") from error
            self._seen = pem
        return self._signer


def issuer_of(ticket_key: Path | None, salt_secret: Path | None, clock: Clock) -> TicketIssuer:
    """Return the issuer of a service with these files. ConfigError for one that is unfit, and for a
    secret without a key: salts that anyone may ask for are none."""
    if ticket_key is None:
        if salt_secret is not None:
            raise ConfigError("--salt-secret needs --ticket-key: without it anyone gets the salts")
        return AnonymousIssuer(clock)
    salts: SaltOf = public_salt
    if salt_secret is not None:
        try:
            salts = secret_salts(salt_secret.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"cannot read the salt secret {salt_secret}: {error.strerror}"
            ) from error
    return SignedIssuer(SignerFile(ticket_key), salts, clock)
