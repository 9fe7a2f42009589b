"""Seeded lives of an honest drive with power losses: after each of them every durable block must be
back. With those of test_power_loss_elsewhere.py 20,000 in every run; more by MEMKV_CRASH_SEEDS.

MEMKV_CRASH_SEEDS=FIRST:COUNT runs COUNT crash points from seed FIRST on.
SEED=N PROFILE=NAME runs one seed, as a failure's message says.
"""

import os

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
SEEDS_AT_ONCE = 100
FIRST, COUNT = (int(part) for part in os.environ.get("MEMKV_CRASH_SEEDS", "0:15000").split(":"))
PROFILES = {
    profile.name: profile
    for profile in (
        HONEST_PROFILE, LYING_PROFILE, FLUSH_PROFILE, QUOTA_PROFILE, *NEGATIVE_CONTROLS.values()
    )
}


CRASH_POINTS_WANTED = 20_000


def test_the_default_run_has_enough_crash_points() -> None:
    """Only those count after which every durable block must be back."""
    strict = sum(profile.durable_required for profile in NEGATIVE_CONTROLS.values())
    assert FLUSH_PROFILE.durable_required
    assert QUOTA_PROFILE.durable_required
    others = OTHER_SEEDS * LIVES * 9 // 10 + OTHER_SEEDS * LIVES
    assert COUNT + others + strict * CONTROL_SEEDS * LIVES >= CRASH_POINTS_WANTED


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT // LIVES, SEEDS_AT_ONCE))
def test_an_honest_drive_loses_nothing_durable_and_shows_no_wrong_byte(first: int) -> None:
    count = min(SEEDS_AT_ONCE, FIRST + COUNT // LIVES - first)
    assert run_seeds(HONEST_PROFILE, first, count) >= count * LIVES


@pytest.mark.skipif("SEED" not in os.environ, reason="SEED chooses the seed")
def test_one_seed() -> None:
    run_seeds(PROFILES[os.environ.get("PROFILE", HONEST_PROFILE.name)], int(os.environ["SEED"]), 1)
