"""Signed tickets: what a node accepts offline, and everything it must refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from memkv.errors import ConfigError
from memkv.limits import TICKET_KEYS_MAX
from memkv.wire.signed import (
    PoolVerifier,
    TicketKey,
    TicketSigner,
    key_id_of,
    public_keys_from_pem,
)
from memkv.wire.ticket import (
    CLIENT_RIGHTS,
    TICKET_CLOCK_SKEW_S,
    TICKET_GRACE_S,
    TICKET_LIFETIME_S,
    Rights,
    Ticket,
    TicketRefused,
    anonymous_ticket,
)

NOW = 1_700_000_000
POOL = "default/pool"
PLAIN = NoEncryption()


def private_key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def signer(seed: int = 1) -> TicketSigner:
    return TicketSigner(private_key(seed))


def pem_of(key: Ed25519PrivateKey, encryption: KeySerializationEncryption = PLAIN) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def public_pem(seed: int) -> str:
    key = private_key(seed).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def unsigned(pool: str = POOL) -> Ticket:
    return Ticket(
        pool, "team-a", "system:serviceaccount:team-a:engine", CLIENT_RIGHTS, NOW,
        NOW + TICKET_LIFETIME_S, salt=b"s" * 32,
    )  # fmt: skip


GOOD = signer().sign(unsigned())


def verifier(*keys: TicketKey, trusting: bool = False) -> PoolVerifier:
    made = PoolVerifier(trusting=trusting)
    made.take_keys(keys)
    made.take_grace(has_metadata=True)
    return made


def test_signed_ticket_is_accepted_as_it_was_signed() -> None:
    assert verifier(signer().key).verify(GOOD.encode(), POOL, NOW) == GOOD


FORGED = TicketSigner(private_key(9))


def forge(**changes: Any) -> bytes:
    """Return the good ticket with a changed field and the old signature."""
    return replace(GOOD, **changes).encode()


def signed(**changes: Any) -> bytes:
    """Return a ticket that the pool's own service signed."""
    return signer().sign(replace(unsigned(), **changes)).encode()


# What is shown, at which time (against NOW), and what the refusal must say.
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 0, "cut or no ticket"),
    "cut in its head": (GOOD.encode()[:20], 0, "cut or no ticket"),
    "cut in its salt": (GOOD.encode()[:80], 0, "is cut"),
    "cut in its signature": (GOOD.encode()[:-1], 0, "is cut"),
    "a byte too many": (GOOD.encode() + b"\0", 0, "is cut"),
    "over the limit": (GOOD.encode() + bytes(5000), 0, "cut or no ticket"),
    "another version": (b"\x02" + GOOD.encode()[1:], 0, "ticket version 2"),
    "expired this second": (GOOD.encode(), TICKET_LIFETIME_S, "expired 0 s ago"),
    "expired a year ago": (GOOD.encode(), 365 * 86400, "expired"),
    "not yet": (GOOD.encode(), -TICKET_CLOCK_SKEW_S - 1, "ahead of this node's clock"),
    "born expired": (signed(expires_s=NOW - 1), 0, "expired"),
    "foreign key": (FORGED.sign(unsigned()).encode(), 0, "not accepted"),
    "foreign key under the pool's id": (
        replace(FORGED.sign(unsigned()), key_id=GOOD.key_id).encode(), 0, "not accepted",
    ),
    "unsigned": (unsigned().encode(), 0, "not accepted"),
    "anonymous": (anonymous_ticket(POOL, "team-a", NOW).encode(), 0, "not accepted"),
    "signed for another pool": (signed(pool="default/other"), 0, "check the endpoint"),
    "another pool's name written over": (forge(pool="default/poo1"), 0, "check the endpoint"),
    "another tenant's name written over": (forge(tenant="team-b"), 0, "not accepted"),
    "another subject": (forge(subject="system:serviceaccount:team-a:enginf"), 0, "not accepted"),
    "more rights": (forge(rights=CLIENT_RIGHTS | Rights.PEER), 0, "not accepted"),
    "fewer rights": (forge(rights=Rights.GET), 0, "not accepted"),
    "rights nobody knows, signed": (signed(rights=Rights(1 << 20)), 0, "upgrade the node"),
    "a longer life": (forge(expires_s=GOOD.expires_s + 1), 0, "not accepted"),
    "a later birth": (forge(issued_s=NOW + 1), 0, "not accepted"),
    "another salt": (forge(salt=b"t" * 32), 0, "not accepted"),
    "no signature but a key": (GOOD.signed_part(), 0, "is cut"),
    "a signature of zeros": (forge(signature=bytes(64)), 0, "not accepted"),
    "a name that is not UTF-8": (
        GOOD.encode().replace(b"team-a", b"team-\xff", 1), 0, "not UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_cause(case: str) -> None:
    data, later_s, words = REFUSED[case]
    with pytest.raises(TicketRefused, match=words):
        verifier(signer().key, trusting=True).verify(data, POOL, NOW + later_s)


@pytest.mark.parametrize("position", range(len(GOOD.encode())))
def test_flipped_bit_anywhere_is_refused(position: int) -> None:
    flipped = bytearray(GOOD.encode())
    for bit in range(8):
        flipped[position] ^= 1 << bit
        with pytest.raises(TicketRefused):
            verifier(signer().key, trusting=True).verify(bytes(flipped), POOL, NOW)
        flipped[position] ^= 1 << bit


def test_two_keys_are_valid_while_one_replaces_the_other() -> None:
    old, new = signer(1), signer(2)
    tickets = [old.sign(unsigned()).encode(), new.sign(unsigned()).encode()]
    judge = verifier(old.key, new.key)
    assert {judge.verify(ticket, POOL, NOW).key_id for ticket in tickets} == {
        old.key.key_id, new.key.key_id,
    }  # fmt: skip
    judge.take_keys([new.key])
    judge.verify(tickets[1], POOL, NOW)
    with pytest.raises(TicketRefused, match="retired"):
        judge.verify(tickets[0], POOL, NOW)


def test_key_is_refused_after_its_end() -> None:
    judge = verifier(replace(signer().key, not_after_s=NOW + 10))
    judge.verify(GOOD.encode(), POOL, NOW + 9)
    with pytest.raises(TicketRefused, match="retired"):
        judge.verify(GOOD.encode(), POOL, NOW + 10)


def test_expired_ticket_has_grace_only_without_a_metadata_service() -> None:
    judge = verifier(signer().key)
    judge.take_grace(has_metadata=False)
    last_s = GOOD.expires_s + TICKET_GRACE_S - 1
    judge.verify(GOOD.encode(), POOL, last_s)
    with pytest.raises(TicketRefused, match="expired"):
        judge.verify(GOOD.encode(), POOL, last_s + 1)
    judge.take_grace(has_metadata=True)
    with pytest.raises(TicketRefused, match="expired"):
        judge.verify(GOOD.encode(), POOL, GOOD.expires_s)


def test_grace_is_none_of_unsigned_tickets() -> None:
    judge = verifier(trusting=True)
    judge.take_grace(has_metadata=False)
    ticket = anonymous_ticket(POOL, "team-a", NOW)
    judge.verify(ticket.encode(), POOL, NOW)
    with pytest.raises(TicketRefused, match="expired"):
        judge.verify(ticket.encode(), POOL, ticket.expires_s)


def test_node_without_keys_serves_nobody_beyond_loopback() -> None:
    for ticket in (GOOD, unsigned()):
        with pytest.raises(TicketRefused, match="no ticket keys yet"):
            verifier().verify(ticket.encode(), POOL, NOW)


def test_keys_end_the_trust_in_unsigned_tickets() -> None:
    judge = verifier(trusting=True)
    judge.verify(unsigned().encode(), POOL, NOW)
    judge.take_keys([signer().key])
    with pytest.raises(TicketRefused):
        judge.verify(unsigned().encode(), POOL, NOW)


# --- keys ------------------------------------------------------------------------------------


def test_keys_are_read_from_pem() -> None:
    assert TicketSigner.from_pem(pem_of(private_key(3))).key == signer(3).key
    keys = public_keys_from_pem("# old\n" + public_pem(3) + "# new\n" + public_pem(4))
    assert keys == (signer(3).key, signer(4).key)


def of_another_kind() -> bytes:
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, PLAIN)


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (lambda: b"garbage", "not an unencrypted private key"),
        (lambda: pem_of(private_key(1), BestAvailableEncryption(b"x")), "unencrypted"),
        (of_another_kind, "not of Ed25519"),
        (lambda: public_pem(1).encode(), "not an unencrypted private key"),
    ],
    ids=["garbage", "encrypted", "elliptic", "public"],
)
def test_unfit_private_keys_are_refused(pem: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TicketSigner.from_pem(pem())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no public key"),
        (pem_of(private_key(1)).decode(), "no public key|not a public key"),
        (public_pem(1).replace("MC", "XX"), "not a public key"),
        ("".join(public_pem(n) for n in range(1, TICKET_KEYS_MAX + 2)), "at most"),
    ],
    ids=["empty", "private", "damaged", "too many"],
)
def test_unfit_public_keys_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        public_keys_from_pem(text)


def test_key_of_a_wrong_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="31 bytes"):
        TicketKey(bytes(31))


def test_key_id_is_frozen() -> None:
    assert key_id_of(bytes(32)) == 0x80F18942
