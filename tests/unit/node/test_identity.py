"""What a supervisor tells its workers of keys, grace and the ticket for moves, and when."""

import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memkv.errors import ConfigError, PeerGone, RetryLater
from memkv.metadata.watch import TicketGrant
from memkv.node.identity import (
    RETRY_S,
    IdentityKeeper,
    Sources,
    WorkerIdentity,
    read_ticket_keys,
)
from memkv.node.messages import Identity
from memkv.testing.clock import ManualClock
from memkv.wire.signed import TicketKey, TicketSigner, key_name
from memkv.wire.ticket import (
    CLIENT_RIGHTS,
    PEER_TENANT,
    TICKET_GRACE_S,
    TICKET_LIFETIME_S,
    Rights,
    Ticket,
    TicketRefused,
)

WAIT_S = 60
POOL = "default/pool"


def signer(seed: int) -> TicketSigner:
    return TicketSigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def pem(seed: int) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Bench:
    """A keeper whose sources a test changes, and what it told."""

    def __init__(self, key_file: Path | None = None) -> None:
        self.clock = ManualClock()
        self.keys: tuple[TicketKey, ...] = ()
        self.has_metadata = True
        self.grant: TicketGrant | None = None
        self.fetches = 0
        self.told: list[Identity] = []
        self._changed = threading.Condition()
        self.keeper = IdentityKeeper(
            Sources(lambda: self.keys, lambda: self.has_metadata, self._fetch, key_file),
            self.clock, self._take,
        )  # fmt: skip

    def _fetch(self) -> TicketGrant:
        self.fetches += 1
        if self.grant is None:
            raise PeerGone("nobody there")
        return self.grant

    def _take(self, identity: Identity) -> None:
        with self._changed:
            self.told.append(identity)
            self._changed.notify_all()

    def wait(self, count: int) -> Identity:
        """Return what was told as the `count`th."""
        self.keeper.poke()
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.told) >= count, WAIT_S)
        return self.told[count - 1]

    def __enter__(self) -> "Bench":
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.stop()


def test_first_word_comes_before_anything_changes() -> None:
    with Bench() as bench:
        assert bench.told[0] == Identity((), True, "")


def test_keys_of_spec_and_file_are_told_together_and_anew(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(pem(1))
    with Bench(path) as bench:
        one, two = (signer(n).key.public_key.hex() for n in (1, 2))
        assert bench.told[0].keys == ((one, None),)
        bench.keys = (TicketKey(signer(2).key.public_key, 99),)
        assert bench.wait(2).keys == ((two, 99), (one, None))
        path.write_bytes(pem(2))
        assert [key for key, _ in bench.wait(3).keys] == [two]


def test_damaged_file_leaves_the_keys_before(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(pem(1))
    with Bench(path) as bench:
        path.write_bytes(b"half a ke")
        bench.has_metadata = False  # so that something is told
        assert bench.wait(2).keys == bench.told[0].keys


def test_unfit_file_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the ticket keys"):
        read_ticket_keys(tmp_path / "nowhere")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        Bench(tmp_path / "keys")


def test_ticket_for_moves_is_fetched_once_there_are_keys_and_renewed_at_a_quarter() -> None:
    with Bench() as bench:
        assert bench.fetches == 0
        expires_s = bench.clock.wall_s() + TICKET_LIFETIME_S
        bench.grant = TicketGrant(b"first", "memkv-peer", b"", expires_s)
        bench.keys = (signer(1).key,)
        told = len(bench.told)
        while bench.told[-1].peer_ticket != b"first".hex():
            told += 1
            bench.wait(told)
        told = len(bench.told)
        bench.grant = TicketGrant(b"second", "memkv-peer", b"", expires_s)
        bench.clock.advance_ms(TICKET_LIFETIME_S // 4 * 1000)
        assert bench.wait(told + 1).peer_ticket == b"second".hex()
        assert bench.fetches == 2


def ticket_of(clock: ManualClock) -> bytes:
    now_s = clock.wall_s()
    ticket = Ticket(POOL, "t", "s", CLIENT_RIGHTS, now_s, now_s + TICKET_LIFETIME_S)
    return signer(1).sign(ticket).encode()


def test_worker_goes_by_what_it_is_told() -> None:
    clock, identity = ManualClock(), WorkerIdentity(trusting=False)
    data, key = ticket_of(clock), signer(1).key.public_key.hex()
    late_s = clock.wall_s() + TICKET_LIFETIME_S
    with pytest.raises(TicketRefused, match="no ticket keys yet"):
        identity.verifier.verify(data, POOL, clock.wall_s())
    identity.take(Identity(((key, None),), True, b"peer".hex()))
    identity.verifier.verify(data, POOL, clock.wall_s())
    assert identity.peer_tickets.ticket() == b"peer"
    with pytest.raises(TicketRefused, match="expired"):
        identity.verifier.verify(data, POOL, late_s)
    identity.take(Identity(((key, None),), False, ""))
    identity.verifier.verify(data, POOL, late_s + TICKET_GRACE_S - 1)
    with pytest.raises(RetryLater, match="no ticket for its peers"):
        identity.peer_tickets.ticket()


def peer_grant(seed: int, clock: ManualClock) -> TicketGrant:
    now_s = clock.wall_s()
    ticket = Ticket(POOL, PEER_TENANT, "n", Rights.PEER, now_s, now_s + TICKET_LIFETIME_S)
    return TicketGrant(signer(seed).sign(ticket).encode(), PEER_TENANT, b"", ticket.expires_s)


def test_keys_are_said_once_workers_were_told_and_until_they_end(tmp_path: Path) -> None:
    """An end in the spec counts for a key of the file as well: files come later."""
    path = tmp_path / "keys"
    path.write_bytes(pem(1))
    names = [key_name(signer(n).key.key_id) for n in (1, 2)]
    bench = Bench(path)
    assert not bench.keeper.key_ids
    with bench:
        assert list(bench.keeper.key_ids) == [names[0]]
        bench.keys = (signer(2).key, TicketKey(signer(1).key.public_key, 1))
        told = bench.wait(2)
        assert told.keys[1] == (signer(1).key.public_key.hex(), 1)
    assert list(bench.keeper.key_ids) == [names[1]]  # the keeper has ended: nothing is under way
    verifier = WorkerIdentity(trusting=False)
    verifier.take(told)
    with pytest.raises(TicketRefused, match="the key was retired"):
        verifier.verifier.verify(ticket_of(bench.clock), POOL, bench.clock.wall_s())


def test_ticket_for_moves_is_replaced_when_its_key_was_revoked() -> None:
    with Bench() as bench:
        bench.grant = peer_grant(1, bench.clock)
        bench.keys = (signer(1).key,)
        told = len(bench.told)
        while bench.told[-1].peer_ticket != bench.grant.ticket.hex():
            told += 1
            bench.wait(told)
        told, old = len(bench.told), bench.grant
        bench.keys = (signer(2).key, TicketKey(signer(1).key.public_key, 1))
        bench.clock.advance_ms(RETRY_S * 1000)
        bench.wait(told + 1)  # and the metadata service still signs with the old key
        while bench.fetches < 2:
            bench.keeper.poke()
        bench.grant = peer_grant(2, bench.clock)
        assert bench.told[-1].peer_ticket == old.ticket.hex()
        bench.clock.advance_ms(RETRY_S * 1000)
        assert bench.wait(told + 2).peer_ticket == bench.grant.ticket.hex()
        assert bench.fetches == 3
        for _ in range(3):
            bench.clock.advance_ms(RETRY_S * 1000)
            bench.has_metadata = not bench.has_metadata  # so that something is told
            bench.wait(len(bench.told) + 1)
        assert bench.fetches == 3
