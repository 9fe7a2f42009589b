"""What a node's processes hold in memory at their peak, against what they were given."""

from contextlib import closing
from dataclasses import dataclass

from memkv.bench.processes import forget_peak_resident_bytes, peak_resident_bytes
from memkv.bench.pump import Pump
from memkv.bench.statistics import PAIRS_MIN, median
from memkv.bench.target import Sizing, Target
from memkv.limits import MIB

ALLOWANCE_BYTES = 150 * MIB
SIZE_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True)
class Resident:
    """Peaks of supervisor and workers of one node together, in bytes.

    turns: the peak of each turn of puts and gets
    highest_bytes: of their whole life, all that was measured in this pool before included
    """

    turns: tuple[int, ...]
    highest_bytes: int
    configured_bytes: int

    @property
    def peak_bytes(self) -> float:
        return median(self.turns)

    @property
    def over_bytes(self) -> float:
        return self.peak_bytes - self.configured_bytes

    @property
    def highest_over_bytes(self) -> int:
        return self.highest_bytes - self.configured_bytes


def measure(
    target: Target, sizing: Sizing, seconds: float = 5.0, turns: int = PAIRS_MIN
) -> Resident:
    """Load the node in turns; shared pages count once for each process: an upper bound."""
    before = peak_bytes(target)
    peaks: list[int] = []
    with closing(Pump(target.client, SIZE_BYTES)) as pump:
        for turn in range(turns):
            for pid in target.node_pids:
                forget_peak_resident_bytes(pid)
            keys = [f"resident/{turn}/{n}" for n in range(sizing.data_bytes // SIZE_BYTES // turns)]
            pump.fill_pool(keys)
            pump.get(keys, seconds / turns)
            peaks.append(peak_bytes(target))
    return Resident(tuple(peaks), max(before, *peaks), sizing.memory_bytes)


def peak_bytes(target: Target) -> int:
    """Return the peaks of all processes of the node together."""
    return sum(peak_resident_bytes(pid) for pid in target.node_pids)
