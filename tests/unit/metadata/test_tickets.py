"""Who gets which ticket."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from memkv.errors import CallerError, ConfigError
from memkv.metadata.callers import ANONYMOUS, Caller
from memkv.metadata.tickets import (
    AnonymousIssuer,
    SignerFile,
    TicketIssuer,
    issuer_of,
    public_salt,
    secret_salts,
)
from memkv.testing.clock import ManualClock
from memkv.wire.signed import PoolVerifier, TicketSigner
from memkv.wire.ticket import CLIENT_RIGHTS, PEER_TENANT, Rights, TicketRefused

POOL = "default/pool"
CLIENT = Caller("system:serviceaccount:team-a:engine", "team-a")
NODE = Caller("system:serviceaccount:default:pool-node", rights=Rights.PEER)
ANYONE = Caller(ANONYMOUS, any_tenant=True, rights=CLIENT_RIGHTS | Rights.PEER)


def write_key(path: Path, seed: int) -> TicketSigner:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return TicketSigner(key)


def make_issuer(folder: Path, *, secret: bytes = b"s" * 32) -> tuple[TicketIssuer, PoolVerifier]:
    signer = write_key(folder / "key", 1)
    (folder / "secret").write_bytes(secret)
    verifier = PoolVerifier(trusting=False)
    verifier.take_keys([signer.key])
    return issuer_of(folder / "key", folder / "secret", ManualClock()), verifier


def test_signed_ticket_names_the_callers_tenant_and_is_accepted(tmp_path: Path) -> None:
    issuer, verifier = make_issuer(tmp_path)
    ticket = issuer.issue(POOL, "", CLIENT, peer=False)
    now_s = ManualClock().wall_s()
    assert verifier.verify(ticket.encode(), POOL, now_s) == ticket
    assert (ticket.tenant, ticket.subject) == ("team-a", CLIENT.subject)
    assert ticket.rights == CLIENT_RIGHTS
    assert ticket.salt == secret_salts(b"s" * 32)(POOL, "team-a")


REFUSED = {
    "another's tenant": (CLIENT, "team-b", False, TicketRefused, "may not use 'team-b'"),
    "a client that says it is a node": (CLIENT, "", True, TicketRefused, "is no node"),
    "a node that wants blocks": (NODE, "", False, TicketRefused, "no client"),
    "a tenant that has no name": (ANYONE, "No Name!", False, CallerError, "tenant name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    caller, tenant, peer, error, words = REFUSED[case]
    issuers: list[TicketIssuer] = [AnonymousIssuer(ManualClock()), make_issuer(tmp_path)[0]]
    for issuer in issuers:
        with pytest.raises(error, match=words):
            issuer.issue(POOL, tenant, caller, peer=peer)


def test_client_that_was_told_no_tenant_gets_its_own(tmp_path: Path) -> None:
    issuer = make_issuer(tmp_path)[0]
    assert issuer.issue(POOL, "default", CLIENT, peer=False).tenant == "team-a"
    assert issuer.issue(POOL, "team-a", CLIENT, peer=False).tenant == "team-a"


def test_node_gets_a_ticket_for_moves_and_nothing_else(tmp_path: Path) -> None:
    ticket = make_issuer(tmp_path)[0].issue(POOL, "", NODE, peer=True)
    assert (ticket.tenant, ticket.rights, ticket.salt) == (PEER_TENANT, Rights.PEER, b"")


def test_anonymous_callers_name_their_tenant(tmp_path: Path) -> None:
    issuer = issuer_of(None, None, ManualClock())
    ticket = issuer.issue(POOL, "team-b", ANYONE, peer=False)
    assert (ticket.tenant, ticket.key_id, ticket.rights) == ("team-b", 0, CLIENT_RIGHTS)
    assert issuer.issue(POOL, "", ANYONE, peer=True).rights == Rights.PEER


def test_salts_differ_by_tenant_pool_and_secret() -> None:
    one, other = secret_salts(b"s" * 32), secret_salts(b"t" * 32)
    salts = [one(POOL, "a"), one(POOL, "b"), one("default/b", "a"), other(POOL, "a")]
    salts.append(public_salt(POOL, "a"))
    assert len(set(salts)) == len(salts)
    assert one(POOL, "a") == secret_salts(b"s" * 32)(POOL, "a")


def test_secret_salt_is_frozen() -> None:
    """Another one would make every stored block unreachable."""
    salt = secret_salts(b"s" * 32)("default/local", "default")
    assert salt.hex() == "315af9f7e63b5c664f7e63b9278c74e40f370c2ef2b477d6c746fdd2ad996891"


@pytest.mark.parametrize(("size", "words"), [(0, "0 bytes"), (31, "31 bytes")])
def test_short_secret_is_refused(tmp_path: Path, size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_issuer(tmp_path, secret=bytes(size))


def test_secret_without_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ticket-key"):
        issuer_of(None, tmp_path / "secret", ManualClock())


def test_replaced_key_signs_from_then_on_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    first = write_key(tmp_path / "key", 1)
    signers = SignerFile(tmp_path / "key")
    assert signers().key == first.key
    second = write_key(tmp_path / "key", 2)
    assert signers().key == second.key
    (tmp_path / "key").write_bytes(b"half a key")
    assert signers().key == second.key
    (tmp_path / "key").unlink()
    assert signers().key == second.key


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-key.*openssl genpkey"):
        SignerFile(tmp_path / "no-key")
