"""The nth operation of a device fails, for every n until nothing fails, once and for good."""

import errno
from dataclasses import replace

import pytest

from memkv.errors import ConfigError
from memkv.testing.faults import HONEST, Faults
from memkv.testing.store_simulation import Profile, Simulation

OPERATIONS_MAX = 400  # the program below needs about 200
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "short": 0}
PROFILE = Profile("nth failure", segments=8, keys=6, ttl_chance=0.0)


def program(simulation: Simulation) -> None:
    """Durable and cached puts, deletes, reclaim and reads, judged by the oracle on the way."""
    alpha, beta = simulation.tenants
    for number in range(6):
        simulation.put(alpha, f"key-{number}", 5000, durable=number % 2 == 0)
        simulation.put(beta, f"key-{number}", 12_288, durable=number % 2 == 1)
    simulation.delete(alpha, ["key-0", "key-1"])
    simulation.read(simulation.names)
    for number in range(6):
        simulation.delete(beta, [f"key-{number}"])
        simulation.put(beta, f"key-{number}", 8192, durable=True)
    simulation.store.pump()
    simulation.read(simulation.names)


def fail_at(count: int, error: int, for_good: bool) -> bool:
    """Run with the nth operation failing, lose power, heal, recover; False when none failed."""
    simulation = Simulation(count, PROFILE)
    simulation.device.faults = faults = Faults(
        fail_at=count, fail_errno=error, fail_for_good=for_good
    )
    try:
        simulation.open(faults)
    except ConfigError:
        pass  # the superblock could not be read or written: refused with a reason
    else:
        program(simulation)
    reached = simulation.device.operations >= count
    simulation.device.after_crash(HONEST)
    simulation.recover_and_check()
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_operation_breaks_no_promise(error: str, for_good: bool) -> None:
    for count in range(1, OPERATIONS_MAX):
        try:
            if not fail_at(count, ERRORS[error], for_good):
                return
        except AssertionError as problem:
            raise AssertionError(f"operation {count}, {error}: {problem}") from problem
    raise AssertionError(f"the program has over {OPERATIONS_MAX} operations")


def test_the_program_works_without_failures() -> None:
    simulation = Simulation(0, PROFILE)
    simulation.open(replace(HONEST))
    program(simulation)
    assert simulation.hits >= 10
