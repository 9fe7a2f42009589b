"""Every program of up to three operations, every crash point in it, every fate of what was not
flushed: lost, torn or kept."""

import copy
import itertools

import pytest

from memkv.limits import KIB, MIB
from memkv.testing.device import PendingWrite, WriteListDevice
from memkv.testing.faults import Faults
from memkv.testing.oracle import ContentOracle
from memkv.testing.store_simulation import Profile, Simulation

OPERATIONS = ("put", "put-same", "delete", "flush", "evict")
PROGRAMS = [
    program
    for length in (1, 2, 3)
    for program in itertools.product(OPERATIONS, repeat=length)
]
FATES = {
    "lost": Faults(crash_kept=0.0, crash_torn=0.0),
    "torn": Faults(crash_kept=0.0, crash_torn=1.0),
    "kept": Faults(crash_kept=1.0, crash_torn=0.0),
}
PROFILE = Profile("small scope", segments=8, segment_bytes=32 * KIB, keys=8, ttl_chance=0.0)


class Recorder(WriteListDevice):
    """Takes a picture of drive and promises before each operation that changes something."""

    oracle: ContentOracle | None = None

    def begin(self, kind: str) -> int | None:
        if self.oracle is not None and kind != "read":
            self.pictures.append((bytearray(self.image), self.pending, self.promises()))
        return super().begin(kind)

    def promises(self) -> ContentOracle:
        return copy.deepcopy(self.oracle) or ContentOracle()

    def __init__(self, seed: int, image: bytearray) -> None:
        super().__init__(seed, image=image)
        self.pictures: list[tuple[bytearray, list[PendingWrite], ContentOracle]] = []


def formatted_image() -> bytearray:
    simulation = Simulation(0, PROFILE)
    simulation.recover_and_check()
    simulation.store.close()
    simulation.device.crash()
    return simulation.device.image


def operate(simulation: Simulation, operation: str) -> None:
    alpha = simulation.tenants[0]
    if operation == "put":
        simulation.put(alpha, "key-0", 5000, durable=True)
    elif operation == "put-same":
        simulation.put(alpha, "key-0", 4096, durable=False)
    elif operation == "delete":
        simulation.delete(alpha, ["key-0"])
    elif operation == "flush":
        simulation.store.flush(simulation.deadline_ns())
    else:
        for number in range(1, 8):  # one fills a segment: the oldest ones are reclaimed
            simulation.delete(alpha, [f"key-{number}"])
            simulation.put(alpha, f"key-{number}", 12_288, durable=False)


@pytest.mark.slow
@pytest.mark.parametrize("first", OPERATIONS)
def test_every_crash_point_of_every_short_program(first: str) -> None:
    image = formatted_image()
    assert len(image) == MIB + 8 * 32 * KIB
    for program in PROGRAMS:
        if program[0] != first:
            continue
        simulation = Simulation(1, PROFILE)
        simulation.device = recorder = Recorder(1, bytearray(image))
        simulation.recover_and_check()
        recorder.oracle = simulation.oracle
        for operation in program:
            operate(simulation, operation)
        simulation.store.pump()
        for number, picture in enumerate(recorder.pictures):
            for fate, faults in FATES.items():
                check_after_crash(picture, faults, f"{program} at {number}, {fate}")


def check_after_crash(
    picture: tuple[bytearray, list[PendingWrite], ContentOracle], faults: Faults, case: str
) -> None:
    image, pending, oracle = picture
    device = WriteListDevice(7, faults, image=bytearray(image))
    device.take_pending(pending)
    device.crash()
    simulation = Simulation(7, PROFILE)
    simulation.device = device
    simulation.oracle = oracle
    try:
        simulation.recover_and_check()
    except AssertionError as error:
        raise AssertionError(f"{case}: {error}") from error
