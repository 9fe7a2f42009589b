"""Seeded lives with power losses on drives that fail or lie, and with quotas that change. In a file
of its own: files of tests run side by side, and the honest drive takes the longest of all.
"""

import pytest

from memkv.testing.store_simulation import (
    CONTROL_SEEDS,
    FLUSH_PROFILE,
    HONEST_PROFILE,
    LYING_PROFILE,
    NEGATIVE_CONTROLS,
    OTHER_SEEDS,
    QUOTA_PROFILE,
    run_seeds,
)

LIVES = HONEST_PROFILE.lives
SEEDS_AT_ONCE = 50


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, SEEDS_AT_ONCE))
def test_a_drive_whose_flushes_fail_loses_nothing_that_was_acknowledged(first: int) -> None:
    # Some end early: all segments are retired until the next open.
    assert run_seeds(FLUSH_PROFILE, first, SEEDS_AT_ONCE) >= SEEDS_AT_ONCE * LIVES * 9 // 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, SEEDS_AT_ONCE))
def test_quotas_that_change_all_the_time_lose_nothing_and_bring_nothing_back(first: int) -> None:
    assert run_seeds(QUOTA_PROFILE, first, SEEDS_AT_ONCE) >= SEEDS_AT_ONCE * LIVES


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, SEEDS_AT_ONCE))
def test_a_lying_and_rotting_drive_never_shows_wrong_bytes(first: int) -> None:
    # It ends early where both superblocks are gone.
    assert run_seeds(LYING_PROFILE, first, SEEDS_AT_ONCE) > SEEDS_AT_ONCE


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVE_CONTROLS)
def test_with_all_checks_the_profiles_of_the_controls_are_harmless(name: str) -> None:
    assert run_seeds(NEGATIVE_CONTROLS[name], 0, CONTROL_SEEDS) >= CONTROL_SEEDS * LIVES
