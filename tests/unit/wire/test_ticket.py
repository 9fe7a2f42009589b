"""Tickets: round trips, refusals, and that every kind of ticket takes one path."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.errors import ConfigError
from memkv.wire.ticket import (
    SIGNATURE_BYTES,
    AnonymousVerifier,
    Rights,
    Ticket,
    TicketRefused,
    anonymous_ticket,
    parse_ticket,
    verify_ticket,
)

NOW = 1_700_000_000
NAMES = st.text(min_size=1, max_size=40)
U64 = st.integers(0, 2**64 - 1)
GOOD = anonymous_ticket("pool", "tenant", NOW, salt=b"secret salt")


def changed(change: dict[str, Any]) -> Ticket:
    return replace(GOOD, **change)


@given(
    st.builds(
        Ticket,
        pool=NAMES,
        tenant=NAMES,
        subject=st.text(max_size=40),
        rights=st.integers(0, 31).map(Rights),
        issued_s=U64,
        expires_s=U64,
        key_id=st.integers(1, 2**32 - 1),
        salt=st.binary(max_size=64),
        signature=st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES),
    )
)
def test_ticket_round_trip(ticket: Ticket) -> None:
    assert parse_ticket(ticket.encode()) == ticket
    assert ticket.encode() == ticket.signed_part() + ticket.signature


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(TicketRefused):
        AnonymousVerifier(loopback=True).verify(data, "pool", NOW)


@pytest.mark.parametrize("length", range(len(GOOD.encode())))
def test_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(TicketRefused):
        parse_ticket(GOOD.encode()[:length])


def test_unsigned_ticket_opens_a_loopback_pool() -> None:
    assert AnonymousVerifier(loopback=True).verify(GOOD.encode(), "pool", NOW) == GOOD


def test_unsigned_tickets_are_for_loopback_only() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        AnonymousVerifier(loopback=False)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"pool": "other"}, "check the endpoint"),
        ({"expires_s": NOW}, "expired 0 s ago"),
        ({"rights": Rights(64)}, "upgrade the node"),
        ({"key_id": 5, "signature": bytes(SIGNATURE_BYTES)}, "fetch a new one"),
        ({"signature": bytes(SIGNATURE_BYTES)}, "cut"),
    ],
)
def test_refusals_name_cause_and_fix(change: dict[str, Any], hint: str) -> None:
    ticket = changed(change)
    with pytest.raises(TicketRefused, match=hint):
        AnonymousVerifier(loopback=True).verify(ticket.encode(), "pool", NOW)


@pytest.mark.parametrize(
    "change", [{"pool": ""}, {"tenant": ""}, {"tenant": "t" * 254}, {"salt": bytes(65)}]
)
def test_names_over_their_limits_are_refused_when_made(change: dict[str, Any]) -> None:
    with pytest.raises(TicketRefused, match="bytes"):
        changed(change).encode()


def test_signed_tickets_take_the_same_path() -> None:
    signed = replace(GOOD, key_id=9, signature=b"s" * SIGNATURE_BYTES)
    seen: list[bytes] = []

    def check(ticket: Ticket) -> bool:
        seen.append(ticket.signed_part())
        return ticket.key_id == 9

    assert verify_ticket(signed.encode(), "pool", NOW, check) == signed
    assert seen == [signed.signed_part()]
    with pytest.raises(TicketRefused, match="expired"):
        verify_ticket(signed.encode(), "pool", signed.expires_s, check)


def test_salt_and_signature_stay_out_of_logs() -> None:
    assert "secret salt" not in repr(GOOD)
