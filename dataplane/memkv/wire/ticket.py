"""Tickets: who may do what to which tenant's blocks. Parsed and checked without asking anyone.

Layout (little-endian), 32 bytes and then the names, the salt and the signature:

    0 u8 version = 1 | 1 u8 salt_bytes | 2 u16 pool_bytes | 4 u16 tenant_bytes | 6 u16 subject_bytes
    8 u32 key_id (0: unsigned) | 12 u32 rights | 16 u64 issued_s | 24 u64 expires_s
    32 pool | tenant | subject | salt | signature (64 bytes Ed25519 over all before it, or none)

Times are wall-clock seconds since 1970. The salt is the key of the tenant's block ids; it is a
secret among the tenant's clients, so a ticket is never logged.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Protocol

from memkv import limits
from memkv.errors import ConfigError, MemKVError

TICKET_VERSION = 1
SIGNATURE_BYTES = 64
UNSIGNED_KEY_ID = 0
TICKET_LIFETIME_S = 12 * 3600  # long enough to outlive an outage of the metadata service
TICKET_GRACE_S = 12 * 3600  # beyond it, at a node that has no metadata service to renew at either
TICKET_CLOCK_SKEW_S = 300  # a ticket from further ahead is of a clock that is wrong; Kerberos: 300

_FIXED = struct.Struct("<BBHHHIIQQ")


class Rights(IntFlag):
    """What a ticket allows. STAT needs none of them."""

    NONE = 0
    GET = 1
    PUT = 2
    DELETE = 4
    PIN = 8
    PEER = 16
    """Listing slots and pulling blocks of every tenant: for nodes that move them."""


PEER_TENANT = "memkv-peer"  # moves are of all tenants; a session needs some tenant's name
CLIENT_RIGHTS = Rights.GET | Rights.PUT | Rights.DELETE | Rights.PIN


class TicketRefused(MemKVError):
    """The ticket does not open a session here. The message names the likely cause and the fix."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A parsed ticket. Nothing in it is true until a `TicketVerifier` returned it."""

    pool: str
    tenant: str
    subject: str
    rights: Rights
    issued_s: int
    expires_s: int
    key_id: int = UNSIGNED_KEY_ID
    salt: bytes = field(default=b"", repr=False)
    signature: bytes = field(default=b"", repr=False)

    def signed_part(self) -> bytes:
        """Return what the signature covers. Raises TicketRefused for a field over its limit."""
        pool, tenant = self.pool.encode(), self.tenant.encode()
        subject = self.subject.encode()
        _check_lengths(len(pool), len(tenant), len(subject), len(self.salt))
        fixed = _FIXED.pack(
            TICKET_VERSION, len(self.salt), len(pool), len(tenant), len(subject), self.key_id,
            int(self.rights), self.issued_s, self.expires_s,
        )  # fmt: skip
        return fixed + pool + tenant + subject + self.salt

    def encode(self) -> bytes:
        """Return the ticket as HELLO carries it."""
        return self.signed_part() + self.signature


def parse_ticket(data: bytes) -> Ticket:
    """Parse without judging. Raises TicketRefused for anything but exactly one ticket."""
    if not _FIXED.size <= len(data) <= limits.TICKET_BYTES_MAX:
        raise TicketRefused(
            f"a ticket of {len(data)} bytes: it is cut or no ticket; fetch one from the metadata "
            "service"
        )
    (
        version, salt_bytes, pool_bytes, tenant_bytes, subject_bytes, key_id, rights, issued,
        expires,
    ) = _FIXED.unpack_from(data)  # fmt: skip
    if version != TICKET_VERSION:
        raise TicketRefused(
            f"ticket version {version}, this build reads {TICKET_VERSION}: upgrade the older side"
        )
    _check_lengths(pool_bytes, tenant_bytes, subject_bytes, salt_bytes)
    parts: list[bytes] = []
    position = _FIXED.size
    for length in (pool_bytes, tenant_bytes, subject_bytes, salt_bytes):
        parts.append(data[position : position + length])
        position += length
    signature = data[position:]
    expected = 0 if key_id == UNSIGNED_KEY_ID else SIGNATURE_BYTES
    if position > len(data) or len(signature) != expected:
        raise TicketRefused(
            f"a ticket with key {key_id} and {len(signature)} bytes of signature instead of "
            f"{expected}: it is cut; fetch a new one from the metadata service"
        )
    try:
        pool, tenant, subject = (part.decode("utf-8") for part in parts[:3])
    except UnicodeDecodeError as error:
        raise TicketRefused("a name in the ticket is not UTF-8; fetch a new one") from error
    return Ticket(
        pool, tenant, subject, Rights(rights), issued, expires, key_id, parts[3], signature
    )


def verify_ticket(
    data: bytes, pool: str, now_s: int, signature_is_valid: Callable[[Ticket], bool], *,
    grace_s: int = 0, refuse_future: bool = False,
) -> Ticket:  # fmt: skip
    """Parse and judge a ticket; every verifier goes through here.

    `signature_is_valid` decides about key id and signature alone; `grace_s` is added to the
    ticket's life; `refuse_future` refuses one that was issued after now. Raises TicketRefused.
    """
    ticket = parse_ticket(data)
    if ticket.pool != pool:
        raise TicketRefused(
            f"the ticket is for pool {ticket.pool!r}, this worker serves {pool!r}: check the "
            "endpoint and the pool name the client was given"
        )
    if int(ticket.rights) & ~int(CLIENT_RIGHTS | Rights.PEER):
        raise TicketRefused("the ticket has rights this build does not know: upgrade the node")
    if refuse_future and ticket.issued_s > now_s + TICKET_CLOCK_SKEW_S:
        raise TicketRefused(
            f"the ticket is from {ticket.issued_s - now_s} s ahead of this node's clock: check the "
            "clocks of this node and of the metadata service"
        )
    if now_s >= ticket.expires_s + grace_s:
        raise TicketRefused(
            f"the ticket expired {now_s - ticket.expires_s} s ago: renew it at the metadata "
            "service, or check the clocks of both machines"
        )
    if not signature_is_valid(ticket):
        raise TicketRefused(
            f"the ticket's signature with key {ticket.key_id} is not accepted here: the key was "
            "retired or the ticket is not from this pool's metadata service; fetch a new one"
        )
    return ticket


class TicketVerifier(Protocol):
    """Judges tickets. Implementations are thread-safe and ask nobody."""

    def verify(self, data: bytes, pool: str, now_s: int) -> Ticket:
        """Return the ticket or raise TicketRefused."""


class AnonymousVerifier:
    """Accepts unsigned tickets, and only them: for a pool that listens on loopback alone."""

    def __init__(self, *, loopback: bool) -> None:
        if not loopback:
            raise ConfigError(
                "unsigned tickets are accepted on loopback only: configure ticket keys for this "
                "pool, or bind it to 127.0.0.1"
            )

    def verify(self, data: bytes, pool: str, now_s: int) -> Ticket:
        return verify_ticket(data, pool, now_s, lambda ticket: ticket.key_id == UNSIGNED_KEY_ID)


def anonymous_ticket(
    pool: str, tenant: str, now_s: int, *, salt: bytes = b"", rights: Rights = CLIENT_RIGHTS
) -> Ticket:
    """Return the unsigned ticket of a loopback pool."""
    return Ticket(
        pool, tenant, "anonymous", rights, now_s, now_s + TICKET_LIFETIME_S, UNSIGNED_KEY_ID, salt
    )


def _check_lengths(pool: int, tenant: int, subject: int, salt: int) -> None:
    if not (
        1 <= pool <= limits.POOL_NAME_BYTES_MAX
        and 1 <= tenant <= limits.TENANT_NAME_BYTES_MAX
        and subject <= limits.TICKET_SUBJECT_BYTES_MAX
        and salt <= limits.TENANT_SALT_BYTES_MAX
    ):
        raise TicketRefused(
            f"ticket names of {pool}, {tenant} and {subject} bytes and a salt of {salt}: pool and "
            f"tenant have 1 to {limits.POOL_NAME_BYTES_MAX} and {limits.TENANT_NAME_BYTES_MAX} "
            f"bytes, the subject up to {limits.TICKET_SUBJECT_BYTES_MAX}, the salt up to "
            f"{limits.TENANT_SALT_BYTES_MAX}"
        )


_LARGEST = (
    _FIXED.size + limits.POOL_NAME_BYTES_MAX + limits.TENANT_NAME_BYTES_MAX
    + limits.TICKET_SUBJECT_BYTES_MAX + limits.TENANT_SALT_BYTES_MAX + SIGNATURE_BYTES
)  # fmt: skip
assert _FIXED.size == 32
assert _LARGEST <= limits.TICKET_BYTES_MAX
