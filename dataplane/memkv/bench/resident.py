"""What a node's processes hold in memory at their peak, against what they were given."""

from dataclasses import dataclass

from memkv.bench.processes import peak_resident_bytes
from memkv.bench.target import Sizing, Target
from memkv.limits import MIB

ALLOWANCE_BYTES = 150 * MIB


@dataclass(frozen=True, slots=True)
class Resident:
    """Peak of supervisor and workers of one node together."""

    peak_bytes: int
    configured_bytes: int

    @property
    def over_bytes(self) -> int:
        return self.peak_bytes - self.configured_bytes


def measure(target: Target, sizing: Sizing) -> Resident:
    """Read the peaks; shared pages count once for each process, so this is an upper bound."""
    peaks = [peak_resident_bytes(pid) for pid in target.node_pids]
    return Resident(sum(peaks), sizing.memory_bytes)
