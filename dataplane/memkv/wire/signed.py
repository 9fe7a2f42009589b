"""Signed tickets: Ed25519 keys, the signature, and the verifier of nodes, which asks nobody.

A key names itself: its id is made from the public key, so two keys of one id are one key, and a
file or a NodeSpec that confuses ids is refused. Any number of keys are valid at once, so that a new
one is known to every node before the first ticket is signed with it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from memkv.errors import ConfigError
from memkv.limits import TICKET_KEYS_MAX
from memkv.wire.ticket import (
    TICKET_GRACE_S,
    UNSIGNED_KEY_ID,
    Ticket,
    TicketRefused,
    verify_ticket,
)

PUBLIC_KEY_BYTES = 32
_PEM_END = "-----END PUBLIC KEY-----"


def key_id_of(public_key: bytes) -> int:
    """Return the id by which tickets name a key: never that of unsigned tickets."""
    digest = hashlib.blake2b(public_key, digest_size=4, person=b"memkv-ticketkey").digest()
    return int.from_bytes(digest, "little") or 1


def key_name(key_id: int) -> str:
    """Return a key's id as people and NodeSpecs write it."""
    return f"{key_id:08x}"


@dataclass(frozen=True, slots=True)
class TicketKey:
    """A key that verifies tickets. ConfigError for bytes that are no Ed25519 public key."""

    public_key: bytes
    not_after_s: int | None = None
    """Tickets signed with it are refused from then on; None: while the key is listed."""

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_KEY_BYTES:
            raise ConfigError(
                f"a ticket key of {len(self.public_key)} bytes; the raw public key of Ed25519 has "
                f"{PUBLIC_KEY_BYTES}"
            )

    @property
    def key_id(self) -> int:
        """By which tickets name it."""
        return key_id_of(self.public_key)

    def signed(self, ticket: Ticket, now_s: int) -> bool:
        """Whether this key signed the ticket, and may still."""
        if self.not_after_s is not None and now_s >= self.not_after_s:
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_key)
            key.verify(ticket.signature, ticket.signed_part())
        except (InvalidSignature, ValueError):
            return False
        return True


class TicketSigner:
    """Signs tickets. Thread-safe."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.key = TicketKey(
            private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        )
        """What nodes verify by."""

    @classmethod
    def from_pem(cls, pem: bytes) -> "TicketSigner":
        """Read a PKCS#8 private key, as `openssl genpkey -algorithm ed25519` makes it. ConfigError
        for anything else."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"not an unencrypted private key in PEM ({error})") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                "the private key is not of Ed25519: make one with `openssl genpkey -algorithm "
                "ed25519`"
            )
        return cls(key)

    def sign(self, ticket: Ticket) -> Ticket:
        """Return the ticket with this key's id and signature."""
        named = replace(ticket, key_id=self.key.key_id, signature=b"")
        return replace(named, signature=self._private_key.sign(named.signed_part()))


def public_keys_from_pem(text: str) -> tuple[TicketKey, ...]:
    """Read one or more public keys in PEM, one after another. ConfigError for anything else."""
    blocks = [part + _PEM_END for part in text.split(_PEM_END) if "-----BEGIN" in part]
    if not blocks:
        raise ConfigError(
            "no public key in PEM there: `openssl pkey -in KEY -pubout` makes one of a private key"
        )
    keys: list[TicketKey] = []
    for block in blocks:
        try:
            key = load_pem_public_key(block.strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"not a public key in PEM ({error})") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError("a public key that is not of Ed25519")
        keys.append(TicketKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw)))
    return checked_keys(keys)


def checked_keys(keys: Iterable[TicketKey]) -> tuple[TicketKey, ...]:
    """Return keys that can be used together. ConfigError for too many, and for ids that clash."""
    found: dict[int, TicketKey] = {}
    for key in keys:
        known = found.setdefault(key.key_id, key)
        if known.public_key != key.public_key:
            raise ConfigError(f"two ticket keys share the id {key_name(key.key_id)}: make another")
    if len(found) > TICKET_KEYS_MAX:
        raise ConfigError(f"{len(found)} ticket keys; at most {TICKET_KEYS_MAX} are valid at once")
    return tuple(found.values())


class PoolVerifier:
    """Judges tickets by the keys a node has now. Thread-safe; nothing is asked of anyone.

    With keys only signed tickets pass. Without, unsigned ones pass where everyone who reaches the
    port is trusted (`trusting`), and none anywhere else: a node that was not told its keys yet
    serves nobody.
    """

    def __init__(self, *, trusting: bool) -> None:
        self._trusting = trusting
        self._keys: dict[int, TicketKey] = {}
        self._grace_s = 0

    @property
    def is_signed(self) -> bool:
        """Whether only signed tickets pass."""
        return bool(self._keys) or not self._trusting

    def take_keys(self, keys: Iterable[TicketKey]) -> None:
        """Go by these keys from now on; sessions that are open stay so."""
        self._keys = {key.key_id: key for key in checked_keys(keys)}

    def take_grace(self, has_metadata: bool) -> None:
        """Expired tickets pass for TICKET_GRACE_S more while nobody can renew one."""
        self._grace_s = 0 if has_metadata else TICKET_GRACE_S

    def verify(self, data: bytes, pool: str, now_s: int) -> Ticket:
        """Return the ticket or raise TicketRefused."""
        keys = self._keys
        if not keys and not self._trusting:
            raise TicketRefused(
                "this node has no ticket keys yet and takes no unsigned tickets: give it "
                "--ticket-keys, or wait for the operator to tell it"
            )
        if not keys:
            return verify_ticket(data, pool, now_s, lambda t: t.key_id == UNSIGNED_KEY_ID)

        def is_signed(ticket: Ticket) -> bool:
            key = keys.get(ticket.key_id)
            return key is not None and key.signed(ticket, now_s)

        return verify_ticket(
            data, pool, now_s, is_signed, grace_s=self._grace_s, refuse_future=True
        )
