"""Seeded lives with power losses: 20,000 crash points in every run after which every durable block
must be back (counted below), and others on drives that lie; more by MEMKV_CRASH_SEEDS.

MEMKV_CRASH_SEEDS=FIRST:COUNT runs COUNT crash points of the honest drive from seed FIRST on.
SEED=N PROFILE=NAME runs one seed, as a failure's message says.
"""

import os

import pytest

from memkv.testing.store_simulation import (
    FLUSH_PROFILE,
    HONEST_PROFILE,
    LYING_PROFILE,
    NEGATIVE_CONTROLS,
    QUOTA_PROFILE,
    Profile,
    Simulation,
)

LIVES = HONEST_PROFILE.lives
SEEDS_AT_ONCE = 100
FIRST, COUNT = (int(part) for part in os.environ.get("MEMKV_CRASH_SEEDS", "0:17400").split(":"))
PROFILES = {
    profile.name: profile
    for profile in (
        HONEST_PROFILE, LYING_PROFILE, FLUSH_PROFILE, QUOTA_PROFILE, *NEGATIVE_CONTROLS.values()
    )
}


CRASH_POINTS_WANTED = 20_000
OTHER_SEEDS = 200  # of the flush and the lying profile
CONTROL_SEEDS = 40  # of each control's


def test_the_default_run_has_enough_crash_points() -> None:
    strict = sum(profile.durable_required for profile in NEGATIVE_CONTROLS.values())
    assert FLUSH_PROFILE.durable_required
    count = COUNT + OTHER_SEEDS * LIVES * 9 // 10 + strict * CONTROL_SEEDS * LIVES
    assert count >= CRASH_POINTS_WANTED


def live(profile: Profile, first: int, count: int) -> int:
    """Run seeds; return how many crash points they had."""
    crash_points = placed = 0
    for seed in range(first, first + count):
        simulation = Simulation(seed, profile)
        try:
            simulation.run()
        except Exception as error:
            again = (
                f"SEED={seed} PROFILE={profile.name!r} python -m pytest"
                " tests/crash/test_power_loss.py -k one_seed"
            )
            raise AssertionError(f"{error!r}\nreproduce: {again}") from error
        crash_points += simulation.crash_points
        placed += simulation.placed
    assert placed >= count // 2, "next to nothing was read into the caller's memory"
    return crash_points


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT // LIVES, SEEDS_AT_ONCE))
def test_an_honest_drive_loses_nothing_durable_and_shows_no_wrong_byte(first: int) -> None:
    count = min(SEEDS_AT_ONCE, FIRST + COUNT // LIVES - first)
    assert live(HONEST_PROFILE, first, count) >= count * LIVES


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, 50))
def test_a_drive_whose_flushes_fail_loses_nothing_that_was_acknowledged(first: int) -> None:
    # Some end early: all segments are retired until the next open.
    assert live(FLUSH_PROFILE, first, 50) >= 45 * LIVES


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, 50))
def test_quotas_that_change_all_the_time_lose_nothing_and_bring_nothing_back(first: int) -> None:
    assert live(QUOTA_PROFILE, first, 50) >= 50 * LIVES


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHER_SEEDS, 50))
def test_a_lying_and_rotting_drive_never_shows_wrong_bytes(first: int) -> None:
    assert live(LYING_PROFILE, first, 50) > 50  # it ends early where both superblocks are gone


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVE_CONTROLS)
def test_with_all_checks_the_profiles_of_the_controls_are_harmless(name: str) -> None:
    assert live(NEGATIVE_CONTROLS[name], 0, CONTROL_SEEDS) >= CONTROL_SEEDS * LIVES


@pytest.mark.skipif("SEED" not in os.environ, reason="SEED chooses the seed")
def test_one_seed() -> None:
    live(PROFILES[os.environ.get("PROFILE", HONEST_PROFILE.name)], int(os.environ["SEED"]), 1)
