"""Each check, switched off alone, must make the simulation find a wrong answer: by plain gets, and
in memory of the caller that the drive was read into."""

from dataclasses import replace

import pytest

from memkv.store.checks import ALL_CHECKS
from memkv.testing.store_simulation import NEGATIVE_CONTROLS, Simulation, WrongAnswer

SEEDS_MAX = 300  # found within 85 when this was written


def first_wrong_answer(check: str, way: str) -> WrongAnswer | None:
    """Return the first that came this way; what `read_into` had from DRAM does not count."""
    checks = replace(ALL_CHECKS, **{check: False})
    profile = replace(NEGATIVE_CONTROLS[check], checks=checks, into_chance=0.0)
    if way == "read_into":  # only blocks over a page are placed
        profile = replace(profile, into_chance=1.0, lengths=(8192, 12_288))
    for seed in range(SEEDS_MAX):
        try:
            Simulation(seed, profile).run()
        except WrongAnswer as answer:
            if answer.placed == (way == "read_into"):
                return answer
    return None


@pytest.mark.parametrize("way", ["get", "read_into"])
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
def test_without_this_check_a_wrong_answer_is_found(
    check: str, verdicts: set[str], way: str
) -> None:
    found = first_wrong_answer(check, way)
    assert found is not None, f"{SEEDS_MAX} seeds without {check} showed nothing wrong"
    assert found.verdict in verdicts


def test_every_check_has_a_control() -> None:
    assert set(NEGATIVE_CONTROLS) == set(ALL_CHECKS.__dataclass_fields__)
