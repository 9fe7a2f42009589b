"""Each check, switched off alone, must make the simulation find a wrong answer."""

from dataclasses import replace

import pytest

from memkv.store.checks import ALL_CHECKS
from memkv.testing.store_simulation import NEGATIVE_CONTROLS, Simulation, WrongAnswer

SEEDS_MAX = 300  # found within 20 when this was written


def first_wrong_answer(check: str) -> tuple[int, WrongAnswer] | None:
    checks = replace(ALL_CHECKS, **{check: False})
    profile = replace(NEGATIVE_CONTROLS[check], checks=checks)
    for seed in range(SEEDS_MAX):
        try:
            Simulation(seed, profile).run()
        except WrongAnswer as answer:
            return seed, answer
    return None


@pytest.mark.parametrize(
    ("check", "verdicts"),
    [
        ("payload_sum", {"wrong bytes"}),
        ("header_sum", {"wrong bytes", "expired"}),
        ("offset", {"stale after delete"}),
        ("generation", {"stale after delete", "expired"}),
        ("block_id", {"wrong bytes"}),
        ("tenant", {"wrong bytes"}),
    ],
)
def test_without_this_check_a_wrong_answer_is_found(check: str, verdicts: set[str]) -> None:
    found = first_wrong_answer(check)
    assert found is not None, f"{SEEDS_MAX} seeds without {check} showed nothing wrong"
    assert found[1].verdict in verdicts


def test_every_check_has_a_control() -> None:
    assert set(NEGATIVE_CONTROLS) == set(ALL_CHECKS.__dataclass_fields__)
