"""A change of the authority, phase by phase; time is an argument."""

from datetime import UTC, datetime, timedelta

import pytest

from memkv.errors import ConfigError
from memkv_operator.identity.authority import AUTHORITY_LIFE, Pair, make_authority
from memkv_operator.identity.trust import (
    GIVEN_AT,
    Phase,
    Trust,
    certificates_of,
    content_of_trust,
    distinct,
    is_due,
    read_trust,
    same,
    step,
    take_at_once,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GRACE = timedelta(minutes=15)
A, B, C = (make_authority("one name for all", NOW) for _ in range(3))
LATE = NOW + GRACE

STEADY = Trust(A)
ANNOUNCED = Trust(A, B)
GIVEN = Trust(A, B, given_at=NOW)
SIGNING = Trust(B, former=A.certificate)
TAKEN = Trust(B, former=A.certificate, given_at=NOW)

STEPS: dict[str, tuple[Trust, Pair | None, bool, datetime, Trust]] = {
    "nothing is wanted": (STEADY, None, False, NOW, STEADY),
    "the same is wanted": (STEADY, A, False, NOW, STEADY),
    "another is wanted": (STEADY, B, False, NOW, ANNOUNCED),
    "not everyone was told": (ANNOUNCED, None, False, LATE, ANNOUNCED),
    "everyone was told": (ANNOUNCED, None, True, NOW, GIVEN),
    "told, and the grace runs": (GIVEN, None, False, LATE - timedelta(seconds=1), GIVEN),
    "told, and the grace is over": (GIVEN, None, False, LATE, SIGNING),
    "a third while one is announced": (GIVEN, C, True, LATE, Trust(A, C)),
    "back to the old while one is announced": (GIVEN, A, True, LATE, STEADY),
    "not everyone has new certificates": (SIGNING, None, False, LATE, SIGNING),
    "everyone has new certificates": (SIGNING, None, True, NOW, TAKEN),
    "new certificates, and the grace runs": (TAKEN, None, True, NOW, TAKEN),
    "new certificates, and the grace is over": (TAKEN, None, False, LATE, Trust(B)),
    "a third while one retires": (TAKEN, C, True, NOW, TAKEN),
}


@pytest.mark.parametrize("case", STEPS)
def test_step(case: str) -> None:
    trust, wanted, given, now, after = STEPS[case]
    assert step(trust, now, wanted, given, GRACE) == after


def test_whoever_signs_is_believed_a_grace_before_and_a_grace_after() -> None:
    """Seconds pass one by one: every certificate that may be in use is believed by every bundle
    that may be."""
    trust, lag = STEADY, timedelta(seconds=10)
    history: list[tuple[datetime, Trust]] = []
    for second in range(120):
        now = NOW + timedelta(seconds=second)
        trust = step(trust, now, B if second == 5 else None, True, 2 * lag)
        history.append((now, trust))
    phases = list(dict.fromkeys(t.phase for _, t in history))
    assert phases == [Phase.STEADY, Phase.ANNOUNCED, Phase.RETIRING]
    assert (history[-1][1].phase, history[-1][1].current) == (Phase.STEADY, B)
    for now, shown in history:
        for then, believing in history:
            if abs(now - then) <= lag:
                signer = certificates_of(shown.current.certificate)[0]
                assert signer in certificates_of(believing.bundle)


@pytest.mark.parametrize("trust", [STEADY, ANNOUNCED, GIVEN, SIGNING, TAKEN, Trust(A, served="x")])
def test_what_is_stored_is_read_again(trust: Trust) -> None:
    assert read_trust(content_of_trust(trust)) == trust


@pytest.mark.parametrize("field", ["ca.crt", "next-ca.crt", "former-ca.crt", GIVEN_AT])
def test_damage_is_refused(field: str) -> None:
    content = {**content_of_trust(Trust(A, B, C.certificate, NOW)), field: b"?"}
    with pytest.raises(ConfigError):
        read_trust(content)
    del content["ca.crt"]
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        read_trust(content)


def test_two_authorities_of_one_name_differ_in_their_subject() -> None:
    one, other = (certificates_of(pair.certificate)[0].subject for pair in (A, B))
    assert one != other


def test_bundles_hold_each_certificate_once() -> None:
    both = distinct(A.certificate + B.certificate, B.certificate, b"")
    assert len(certificates_of(both)) == 2
    assert same(both, B.certificate + A.certificate)
    assert not same(both, A.certificate)
    assert ANNOUNCED.bundle == A.certificate + B.certificate
    assert SIGNING.bundle == B.certificate + A.certificate


def test_an_authority_is_due_after_two_thirds_of_its_life() -> None:
    assert not is_due(A, NOW + AUTHORITY_LIFE * 0.66)
    assert is_due(A, NOW + AUTHORITY_LIFE * 0.67)


def test_what_is_of_no_use_is_replaced_at_once() -> None:
    assert take_at_once(GIVEN, C) == Trust(C, former=A.certificate)
